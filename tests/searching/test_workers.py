"""Tasks at the same time: in this process, in others, on a cluster of which a worker is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from graphprune.errors import LoadError, MissingExtraError, RunError
from graphprune.searching import workers as module
from graphprune.searching.workers import open_workers

pytest.importorskip("joblib")

TASKS = list(range(12))
SQUARES = [task**2 for task in TASKS]


def square(task: int) -> int:
    time.sleep(0.01 * (task % 3))
    return task**2


def square_and_pid(task: int) -> tuple[int, int]:
    time.sleep(0.1)
    return task**2, os.getpid()


def fail(task: int, error: Exception) -> int:
    if task == 3:
        raise error
    return task


def die_once(folder: Path, task: int) -> int:
    """Kill the process that runs a task, the first time; the runs of all are written down."""
    first = not any(folder.glob("4.*"))
    (folder / f"{task}.{time.monotonic_ns()}").touch()
    if task == 4 and first:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return task**2


def variables(task: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be noticed does not."""
    psutil = pytest.importorskip("psutil")
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as found:
        yield found


@pytest.fixture(params=["here", "processes", "cluster"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "cluster":
        return {"scheduler": request.getfixturevalue("cluster").scheduler_address}
    return {"jobs": 2 if request.param == "processes" else 1}


def test_results_in_order_and_told_as_they_come(where: dict[str, Any]) -> None:
    told: dict[int, int] = {}
    with open_workers(**where) as workers:
        assert workers.map(square, TASKS, done=told.__setitem__) == SQUARES
        assert workers.map(square, ()) == []
        assert workers.map(square, (5,)) == [25]
        assert workers.threads >= 1
    assert told == dict(enumerate(SQUARES))


def test_errors_come_through(where: dict[str, Any]) -> None:
    with open_workers(**where) as workers:
        with pytest.raises(LoadError, match=r"^model\.onnx: not there$"):
            workers.map(partial(fail, error=LoadError("model.onnx: not there")), TASKS)
        with pytest.raises(RunError, match=r"^a task failed: ZeroDivisionError: what, and where$"):
            workers.map(partial(fail, error=ZeroDivisionError("what,\nand where")), TASKS)
        assert workers.map(square, TASKS) == SQUARES  # they can go on


def test_whoever_is_told_may_stop(where: dict[str, Any]) -> None:
    def stop(number: int, result: int) -> None:
        raise KeyboardInterrupt

    with open_workers(**where) as workers:
        with pytest.raises(KeyboardInterrupt):
            workers.map(square, TASKS, done=stop)
        assert workers.map(square, TASKS) == SQUARES


def test_one_job_needs_no_joblib() -> None:
    code = """
        import sys
        from graphprune.searching.workers import open_workers
        with open_workers() as workers:
            assert workers.map(abs, [-1, 2]) == [1, 2]
        assert not {"joblib", "distributed"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True)


def test_processes_share_the_threads_and_end() -> None:
    with open_workers(2) as workers:
        pids = {pid for _, pid in workers.map(square_and_pid, TASKS)}
        assert workers.map(variables, TASKS) == [str(workers.threads)] * len(TASKS)
        assert len(pids) == 2 and os.getpid() not in pids
        assert {pid for _, pid in workers.map(square_and_pid, TASKS)} == pids  # what they cache stays
    assert not any(map(alive, pids))


def test_a_killed_process_is_said(tmp_path: Path) -> None:
    with open_workers(2) as workers:
        with pytest.raises(RunError, match="a worker failed: Terminated") as caught:
            workers.map(partial(die_once, tmp_path), TASKS)
        assert "\n" not in str(caught.value)
        assert workers.map(square, TASKS) == SQUARES


def test_a_killed_worker_of_a_cluster_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    told: dict[int, int] = {}
    with open_workers(scheduler=cluster.scheduler_address) as workers:
        assert workers.map(partial(die_once, tmp_path), TASKS, done=told.__setitem__) == SQUARES
        assert told == dict(enumerate(SQUARES))
        assert len(list(tmp_path.glob("4.*"))) > 1

        killed: list[int] = []

        def kill(number: int, result: tuple[int, int]) -> None:
            if not killed:  # it holds further results, and runs a task
                killed.append(result[1])
                os.kill(result[1], signal.SIGKILL)

        found = workers.map(square_and_pid, TASKS, done=kill)
    assert [value for value, _ in found] == SQUARES
    assert not alive(killed[0])


def test_a_cluster_of_one_worker_does_the_work() -> None:
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as one,
        open_workers(scheduler=one.scheduler_address) as workers,
    ):
        assert {pid for _, pid in workers.map(square_and_pid, TASKS[:3])} & {os.getpid()} == set()


def test_clusters_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("dask.distributed")
    monkeypatch.setattr(module, "_ANSWER", 0.5)
    monkeypatch.setattr(module, "_FIRST", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    for address in (nobody, "nonsense://here", "tcp://127.0.0.1:1:2", ""):
        with (
            pytest.raises(RunError, match=r"^no Dask scheduler answers at [^\n]*$"),
            open_workers(scheduler=address),
        ):
            pass
    options = {"processes": False, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=0, **options) as empty:
        address = empty.scheduler_address
        with pytest.raises(RunError, match="has no workers"), open_workers(scheduler=address):
            pass
        empty.scale(n=1)  # with as many threads as there are cores
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, **options) as threaded,
        pytest.raises(RunError, match="--nthreads 1"),
        open_workers(scheduler=threaded.scheduler_address),
    ):
        pass


def test_a_scheduler_that_goes_is_said(tmp_path: Path) -> None:
    distributed = pytest.importorskip("dask.distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50,
        protocol="tcp",
    )  # fmt: skip

    def close(number: int, result: int) -> None:
        if number == 0:
            cluster.close()

    with (
        pytest.raises(RunError, match="is gone"),
        open_workers(scheduler=cluster.scheduler_address) as workers,
    ):
        workers.map(square_and_pid, TASKS, done=close)


@pytest.mark.parametrize(
    ("library", "extra", "asked"),
    [("joblib", "search", {"jobs": 2}), ("dask.distributed", "distributed", {"scheduler": "tcp://here:1"})],
)
def test_what_is_not_installed_is_named(
    library: str, extra: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with (
        pytest.raises(MissingExtraError, match=rf"pip install 'graphprune\[{extra}\]'"),
        open_workers(**asked),
    ):
        pass


def test_jobs_are_counted_from_one() -> None:
    with pytest.raises(RunError, match="1 or more, not 0"), open_workers(0):
        pass


SCRIPT = """
    import os, time
    from graphprune.searching.workers import open_workers

    def wait(task):
        open(os.path.join({folder!r}, str(os.getpid())), "w").close()
        time.sleep(60)

    if __name__ == "__main__":
        with open_workers(2) as workers:
            workers.map(wait, range(4))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal are POSIX's")
def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    pids.mkdir()
    script.write_text(textwrap.dedent(SCRIPT.format(folder=str(pids))))
    run = subprocess.Popen(
        [sys.executable, "-W", "error", script], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if len(list(pids.iterdir())) == 2:
            break
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all of them
    try:
        _, told = run.communicate(timeout=120)  # the machine may be busy
    finally:
        run.kill()
    assert run.returncode == -signal.SIGINT and told.count("Traceback") == 1, told
    assert len(list(pids.iterdir())) == 2
    assert not any(alive(int(path.name)) for path in pids.iterdir())
