"""Run models in turns, and time them.

Whatever drifts (clock speed, other programs) meets all models alike: every round runs each of them once, in
an order drawn anew. All are loaded several times, in such orders, too; every second load is the mirror of the
one before it, with all of its orders reversed, so that no place in a round or among loads favours a model.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.play import is_cache, play
from graphprune.session import in_turn, open_session
from graphprune.starting import first_line

if TYPE_CHECKING:
    from graphprune.play import Call, Source
    from graphprune.session import Session
    from graphprune.settings import Settings

# What is timed: the place of a source, that of a model.
Pair = tuple[int, int]
# Milliseconds of each round of each load, by the phase.
Times = dict[str, list[list[float]]]
Shapes = tuple[tuple[int, ...], ...]
_INTEGERS = ("tensor(int64)", "tensor(int32)")

log = logging.getLogger("graphprune")


@dataclass(frozen=True)
class Runnable:
    """A model: where it is, and the files that are opened, with their names (`session.runnable`)."""

    path: Path
    files: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Plan:
    """How often: `loads` times every model is loaded, and runs `rounds` times on every source.

    `warmup` rounds before these are not timed; `steps` are further tokens for models that take a
    cache. `clock` tells nanoseconds.
    """

    rounds: int
    loads: int
    warmup: int
    steps: int
    settings: Settings
    clock: Callable[[], int]


@dataclass(frozen=True, eq=False)
class Turns:
    """What came of it: times, why some pairs have none, and the files that every model ran."""

    times: dict[Pair, Times] = field(default_factory=dict)
    left_out: dict[Pair, str] = field(default_factory=dict)
    files: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Play:
    """One model on one source, ready to run again: its calls by phase, and the shapes that it is fed."""

    runs: tuple[tuple[str, Callable[[], object]], ...]
    shapes: Shapes

    @property
    def phases(self) -> tuple[str, ...]:
        """In the order in which they run."""
        return tuple(dict.fromkeys(phase for phase, _ in self.runs))

    def milliseconds(self, clock: Callable[[], int]) -> dict[str, float]:
        """Run all calls: the time of each phase; of `decode`, per token."""
        total = dict.fromkeys(self.phases, 0)
        for phase, once in self.runs:
            start = clock()
            once()
            total[phase] += clock() - start
        calls = Counter(phase for phase, _ in self.runs)
        return {
            phase: max(nanoseconds, 1) / 1e6 / (calls[phase] if phase == "decode" else 1)
            for phase, nanoseconds in total.items()
        }


def take_turns(
    models: Sequence[Runnable],
    sources: Sequence[Source],
    plan: Plan,
    turns: Turns,
    on_round: Callable[[], None],
) -> None:
    """Time every model on every source that is not left out already; `on_round` is called after every round.

    A source that a model cannot take is left out, with the reason. Raises `LoadError`; `RunError` where a
    model takes none of the sources, or fails where it ran before.
    """
    race = _Race(tuple(models), tuple(sources), plan, turns, on_round)
    for load in range(plan.loads):
        with _warnings_once(again=load > 0):
            race.load(load)


@contextmanager
def _warnings_once(*, again: bool) -> Iterator[None]:
    """What there is to say of a session is said when it is first opened."""
    level = log.level
    log.setLevel(logging.ERROR if again else level)
    try:
        yield
    finally:
        log.setLevel(level)


class _Race:
    """Models, the sources that they run on, and what has been timed so far."""

    def __init__(
        self,
        models: tuple[Runnable, ...],
        sources: tuple[Source, ...],
        plan: Plan,
        turns: Turns,
        on_round: Callable[[], None],
    ) -> None:
        self.models, self.sources, self.plan = models, sources, plan
        self.turns, self.on_round = turns, on_round
        self._rng = random.Random(0)
        self._orders: dict[int | None, list[list[int]]] = {}
        self._shapes: dict[tuple[int, Shapes], int] = {}

    def load(self, number: int) -> None:
        """Load all models, and time them on every source; the first load finds what fits."""
        first, mirrored = number == 0, number % 2 == 1
        opened: dict[int, tuple[Session, ...]] = {}
        for model in self._drawn(None, 1, mirrored=mirrored)[0]:
            files = self.models[model].files
            opened[model] = _needed(
                in_turn(open_session(path, name, self.plan.settings) for path, name in files)
            )
        cells = list(range(len(self.sources)))
        for cell in cells if first else self._rng.sample(cells, len(cells)):
            orders = self._drawn(cell, self.plan.rounds, mirrored=mirrored)
            self._time(cell, self._plays(cell, opened, first=first), orders)
        if first:
            self._require_some()
            self.turns.files.extend(tuple(one.name for one in opened[model]) for model in sorted(opened))

    def _drawn(self, key: int | None, count: int, *, mirrored: bool) -> list[list[int]]:
        """Orders of the models, drawn anew, or those that were drawn last for `key`, reversed."""
        if mirrored:
            return [order[::-1] for order in self._orders[key]]
        number = len(self.models)
        self._orders[key] = [self._rng.sample(range(number), number) for _ in range(count)]
        return self._orders[key]

    def _plays(
        self, cell: int, opened: Mapping[int, tuple[Session, ...]], *, first: bool
    ) -> dict[int, _Play]:
        """The models that take this source, each run on it once, in the order in which they were loaded."""
        plays: dict[int, _Play] = {}
        for model, sessions in opened.items():
            if (cell, model) in self.turns.left_out:
                continue
            try:
                one = _play(sessions, self.sources[cell], self.plan.steps)
                same = self._shapes.setdefault((model, one.shapes), cell)
                if same != cell:
                    raise RunError(f"its inputs are those of {_size(self.sources[same])}")
                plays[model] = one
            except RunError as error:
                if not first:
                    raise RunError(f"{self._where(cell, model)}: {error}") from error
                self.turns.left_out[cell, model] = str(error)
        return plays

    def _time(self, cell: int, plays: Mapping[int, _Play], orders: Sequence[Sequence[int]]) -> None:
        """Time the models in turns on one source, as long as they stay loaded."""
        for _ in range(self.plan.warmup):
            self._round(cell, plays, list(plays))
        rounds = [self._round(cell, plays, order) for order in orders]
        for model, one in plays.items():
            times = self.turns.times.setdefault((cell, model), {})
            for phase in one.phases:
                times.setdefault(phase, []).append([done[model][phase] for done in rounds])

    def _round(
        self, cell: int, plays: Mapping[int, _Play], order: Sequence[int]
    ) -> dict[int, dict[str, float]]:
        done: dict[int, dict[str, float]] = {}
        for model in order:
            if model not in plays:
                continue
            try:
                done[model] = plays[model].milliseconds(self.plan.clock)
            except Exception as error:  # the runtime's own exceptions share no public base
                raise RunError(f"{self._where(cell, model)}: {first_line(error)}") from error
        self.on_round()
        return done

    def _where(self, cell: int, model: int) -> str:
        return f"{self.models[model].path} fails at {_size(self.sources[cell])}"

    def _require_some(self) -> None:
        for model, one in enumerate(self.models):
            reasons = [self.turns.left_out.get((cell, model)) for cell in range(len(self.sources))]
            if all(reasons):
                raise RunError(f"{one.path} cannot be timed at {_size(self.sources[0])}: {reasons[0]}")


def _needed(sessions: Sequence[Session]) -> tuple[Session, ...]:
    """The sessions of one pass: a merged decoder does the work of the plain ones beside it."""
    if not any("use_cache_branch" in one.inputs for one in sessions):
        return tuple(sessions)
    return tuple(
        one
        for one in sessions
        if "use_cache_branch" in one.inputs or not any(map(is_cache, (*one.inputs, *one.outputs)))
    )


def _play(sessions: Sequence[Session], source: Source, steps: int) -> _Play:
    for session in sessions if not source.arrays else ():
        _require_sizes(session, source)
    try:
        calls = play(sessions, source, steps=steps)
    except (MemoryError, ValueError) as error:  # numpy's, of sizes beyond all bounds
        raise RunError(f"inputs of this size cannot be made: {first_line(error)}") from error
    phases = phase_names([call.phase for call in calls])
    runs = [(phase, call.session.prepared(call.feeds)) for phase, call in zip(phases, calls, strict=True)]
    return _Play(tuple(runs), _shapes(calls))


def phase_names(phases: Sequence[str]) -> list[str]:
    """The phases that calls are timed as: beside a decoder, an encoder belongs to the prefill."""
    alone = set(phases) == {"run"}
    return [phase if alone or phase == "decode" else "prefill" for phase in phases]


def _shapes(calls: Sequence[Call]) -> Shapes:
    return tuple(array.shape for call in calls for array in call.feeds.values())


def _require_sizes(session: Session, source: Source) -> None:
    """Raise `RunError` where the file's own sizes are fixed, and others: random inputs would have those."""
    inputs = [one for one in session.runtime.get_inputs() if len(one.shape) > 1]
    batches = {one.shape[0] for one in inputs}
    if batches and all(isinstance(size, int) for size in batches) and source.batch not in batches:
        raise RunError(f"{session.name} takes batches of {min(batches)} only")
    if session.pasts:
        return
    for one in inputs:
        tokens = len(one.shape) == 2 and one.type in _INTEGERS and "mask" not in one.name
        if tokens and isinstance(one.shape[1], int) and one.shape[1] != source.sequence:
            raise RunError(f"{session.name} takes sequences of {one.shape[1]} tokens only")


def _size(source: Source) -> str:
    """`batch 8, sequence 128`."""
    return f"batch {source.batch}, sequence {source.sequence}"
