"""Run independent tasks at the same time: in processes of this machine, or on those of a Dask cluster.

A task may run twice, where a machine of the cluster goes: it must do the same each time. Processes of this
machine are joblib's (loky). For clusters Dask's own client is used, not joblib's backend for it, which runs
the tasks in the calling process where the cluster has one worker of one thread, and puts large arguments on
one worker, so that all tasks are lost with it.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from graphprune.errors import GraphpruneError, MissingExtraError, RunError
from graphprune.starting import first_line

T = TypeVar("T")
R = TypeVar("R")
Results = Generator[tuple[int, Any], None, None]

# Seconds to wait for an answer of a scheduler, and for a first worker.
_ANSWER, _FIRST = 5, 30


@dataclass(frozen=True, eq=False)
class Workers:
    """`jobs` tasks run at a time, each with a share of `threads` threads of its machine.

    `results` yields numbers and results of tasks as they come.
    """

    jobs: int
    threads: int
    results: Callable[[Callable[[Any], Any], Sequence[Any]], Results]

    def map(
        self, function: Callable[[T], R], tasks: Sequence[T], *, done: Callable[[int, R], None] | None = None
    ) -> list[R]:
        """What `function` makes of each task, in their order; `done` is told each as it comes.

        With more than one job, function, tasks and results are pickled (by cloudpickle): they should be
        small, and name files rather than hold arrays. What is kept between tasks, as an open model, belongs
        in a cache of the process that runs them. The first error ends it: one of graphprune's as it is, any
        other as `RunError`.
        """
        found: dict[int, R] = {}
        with closing(_translated(self.results(function, tasks))) as coming:
            for number, result in coming if tasks else ():
                found[number] = result
                if done is not None:
                    done(number, result)
        return [found[number] for number in range(len(tasks))]


@contextmanager
def open_workers(jobs: int = 1, scheduler: str | None = None) -> Iterator[Workers]:
    """Workers for as long as the context lasts; no process of theirs is left after it.

    One job runs in this process. `scheduler` is the address of a Dask scheduler (`tcp://host:8786`): then
    its workers do the work, as many as there are; each must have graphprune, see the same files, and run
    one task at a time (`dask worker ADDRESS --nthreads 1`). One that goes is replaced by the others.
    Raises `RunError`; `MissingExtraError` without the extra `search`, or `distributed`.
    """
    if jobs < 1:
        raise RunError(f"the number of jobs is 1 or more, not {jobs}")
    if scheduler is not None:
        with _cluster(scheduler) as workers:
            yield workers
    elif jobs > 1:
        with _processes(jobs) as workers:
            yield workers
    else:
        yield Workers(1, _cores(), _here)


def _run(function: Callable[[T], R], task: T) -> R:
    """One task; whatever goes wrong is an error that can be pickled."""
    try:
        return function(task)
    except GraphpruneError:
        raise
    except Exception as error:
        raise RunError(f"a task failed: {type(error).__name__}: {first_line(error)}") from error


def _here(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Results:
    """One after another, in this process."""
    yield from enumerate(_run(function, task) for task in tasks)


def _translated(results: Results) -> Results:
    """The same results; errors of those who run the tasks become `RunError`."""
    try:
        yield from results
    except GraphpruneError:
        raise
    except Exception as error:
        raise RunError(f"a worker failed: {type(error).__name__}: {first_line(error)}") from error


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _processes(jobs: int) -> Iterator[Workers]:
    """Processes of this machine; they are ended with the context."""
    try:
        import joblib
        from joblib.externals.loky import get_reusable_executor
    except ImportError as error:
        raise MissingExtraError("more than one job needs joblib: pip install 'graphprune[search]'") from error

    threads = max(1, _cores() // jobs)

    def results(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Results:
        run = joblib.delayed(_numbered)
        with joblib.parallel_config(
            "loky", n_jobs=jobs, inner_max_num_threads=threads, initializer=_leave_interrupts
        ):
            # One by one, as they come; arrays as they are, not mapped into memory and read-only.
            parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, max_nbytes=None)
            yield from parallel(run(function, number, task) for number, task in enumerate(tasks))

    with warnings.catch_warnings():
        # A process that has grown is replaced by a new one.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        # Whoever stops early knows.
        warnings.filterwarnings("ignore", ".* tasks .*", UserWarning, r"joblib\.parallel")
        try:
            yield Workers(jobs, threads, results)
        finally:
            get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def _numbered(function: Callable[[T], R], number: int, task: T) -> tuple[int, R]:
    return number, _run(function, task)


def _leave_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal: the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    """The workers of a Dask scheduler."""
    try:
        from dask.distributed import Client
        from distributed.comm.addressing import get_address_host
    except ImportError as error:
        raise MissingExtraError("a scheduler needs Dask: pip install 'graphprune[distributed]'") from error

    try:
        get_address_host(address)  # a client of an address that cannot be one would not end
        client = Client(address, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RunError(
            f"no Dask scheduler answers at {address!r}: start one with 'dask scheduler', and give its "
            f"address as tcp://HOST:PORT ({first_line(error)})"
        ) from error
    with _quiet(logging.getLogger("distributed.client")), client:
        yield _workers_of(client, address)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """What goes wrong is said by errors: without traces of what was tried to connect again."""
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _workers_of(client: Any, address: str) -> Workers:
    from dask.distributed import as_completed

    try:
        client.submit(os.getpid, pure=False).result(timeout=_FIRST)
    except TimeoutError as error:
        raise RunError(
            f"the Dask scheduler at {address} has no workers: start some with 'dask worker {address} "
            "--nthreads 1'"
        ) from error
    threads = client.nthreads()
    if any(number > 1 for number in threads.values()):
        raise RunError(
            f"workers of the Dask scheduler at {address} run several tasks in one process: start them with "
            "--nthreads 1 (and --nworkers N)"
        )

    def results(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Results:
        futures = client.map(_numbered, [function] * len(tasks), range(len(tasks)), tasks, pure=False)
        for future, result in as_completed(futures, loop=client.loop, with_results=True):
            if future.status != "finished":
                raise RunError(f"the Dask scheduler at {address} is gone: run it again")
            yield result

    return Workers(max(1, len(threads)), 1, results)
