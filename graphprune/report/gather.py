"""Measure everything that a report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from graphprune.errors import GraphpruneError, LoadError
from graphprune.report.ancestry import Origin, not_the_source, origin_of, plan_again
from graphprune.report.drawing import draw
from graphprune.report.exited import read_exits
from graphprune.report.searched import read_searched
from graphprune.report.subject import Side, Subject

if TYPE_CHECKING:
    from graphprune.compare import Verification
    from graphprune.importance.results import Ranking
    from graphprune.pipeline import Plan
    from graphprune.play import Source
    from graphprune.roofline import Limit, Peak
    from graphprune.settings import Settings
    from graphprune.timing import Bench

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """On what and how the models run: `cells` are further sizes to time, as batch and length."""

    source: Source
    settings: Settings
    rounds: int
    steps: int
    cells: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class _Log:
    """Tells each step as it begins, and keeps a note of what could not be measured."""

    on_step: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    def attempt(self, what: str, measure: Callable[[], T]) -> T | None:
        """What `measure` finds, or None and a note."""
        self.on_step(f"measuring {what}")
        try:
            return measure()
        except GraphpruneError as error:
            self.notes.append(f"Not measured: {what}. {error}")
            return None


def gather(
    model: Path,
    dense: Path | None,
    wanted: Wanted,
    *,
    command: str = "",
    ranking: Ranking | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Subject:
    """All of it; only what cannot be read at all raises (`LoadError`, `GraphError`)."""
    log = _Log(on_step)
    names = _names(model, dense)
    other = None if dense is None else _side(names[0], dense, wanted, log)
    own = _side(names[-1], model, wanted, log)
    origin, plan = _origin(own, other, log)
    searched, doubt = read_searched(model, origin)
    exits, unread = read_exits(model, origin)
    log.notes.extend(filter(None, (doubt, unread)))
    influence = log.attempt("importance", lambda: _importance(other or own, wanted, log))
    limits = log.attempt("the limits of the machine", lambda: _limits(own, wanted))
    peak = log.attempt("the speed of the machine", lambda: _peak(own, wanted)) if limits else None
    stacks, notes = draw(own, other, plan, influence or {}, limits or {})
    log.notes.extend(notes)
    bench = log.attempt("latency and memory", lambda: _bench(other, own, wanted, log))
    agreement = None if other is None else _agreement(other, own, wanted, log)
    return Subject(
        own, other, origin, plan, stacks, wanted.settings, _said(wanted.source, own), command, bench,
        agreement, tuple(dict.fromkeys(log.notes)), peak, ranking, searched, exits,
    )  # fmt: skip


def _names(model: Path, dense: Path | None) -> list[str]:
    """What the models are called on the page: as much of the ends of their paths as tells them apart."""
    paths = [path.absolute() for path in (dense, model) if path is not None]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
    return [str(path) for path in paths]


def _side(name: str, path: Path, wanted: Wanted, log: _Log) -> Side:
    from graphprune.bundle import load
    from graphprune.pipeline import sizes_of
    from graphprune.profiler import profile
    from graphprune.survey import inspect

    log.on_step(f"reading {name}")
    bundle = load(path)
    files = inspect(bundle)
    source, settings = wanted.source, wanted.settings
    found = log.attempt(
        f"the time of the blocks of {name}",
        lambda: profile(path, source, rounds=wanted.rounds, steps=wanted.steps, settings=settings),
    )
    return Side(name, path, bundle, files, sizes_of(bundle, files), found)


def _origin(model: Side, dense: Side | None, log: _Log) -> tuple[Origin, Plan | None]:
    """What the model says of itself, checked against the dense model."""
    try:
        origin = origin_of(model.bundle)
        source = origin_of(dense.bundle) if dense is not None else None
    except OSError as error:
        raise LoadError(f"{model.path}: cannot be read: {error.strerror or error}") from error
    log.notes.extend(origin.notes)
    if dense is None or source is None:
        return origin, None
    doubt = not_the_source(origin, source)
    if doubt:
        log.notes.append(f"{dense.name} may not be what {model.name} was made from: {doubt}.")
    plan, notes = plan_again(dense.bundle, origin)
    log.notes.extend(notes)
    return origin, plan


def _importance(side: Side, wanted: Wanted, log: _Log) -> dict[str, float]:
    from graphprune.influence import block_influence

    found = block_influence(side.path, wanted.source, settings=wanted.settings)
    known = found.by_block
    reasons = {one.id: one.reason for one in found.blocks if one.id not in known}
    for reason in dict.fromkeys(reasons.values()):
        blocks = [id for id, why in reasons.items() if why == reason]
        log.notes.append(f"Not measured: the importance of {_few(blocks)}. {reason}")
    return known


def _few(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _limits(side: Side, wanted: Wanted) -> dict[str, Limit]:
    """How fast this machine could run each block of a model that was profiled."""
    from graphprune.roofline import limit_of

    blocks = side.profile.blocks if side.profile else ()
    limits = {part.name: limit_of(part, wanted.settings) for part in blocks}
    return {name: one for name, one in limits.items() if one is not None}


def _bench(dense: Side | None, model: Side, wanted: Wanted, log: _Log) -> Bench:
    """The models in turns, on the inputs and at each of the further sizes; given arrays have one size."""
    from graphprune.intervals import MIN_LOADS
    from graphprune.timing import bench

    sides = [model] if dense is None else [dense, model]
    sources = [wanted.source]
    if not wanted.source.arrays:
        sources += [replace(wanted.source, batch=batch, sequence=length) for batch, length in wanted.cells]
    found = bench(
        [side.path for side in sides],
        _distinct(sources, model),
        rounds=wanted.rounds,
        loads=MIN_LOADS if len(sides) > 1 else 1,
        steps=wanted.steps,
        settings=wanted.settings,
        on_progress=lambda what, share: log.on_step(f"{what} ({share:.0%})"),
    )
    log.notes.extend(f"Not measured: {note}" for note in found.notes)
    for one in found.left_out:
        log.notes.append(f"{one.model} was not timed at {one.batch} × {one.sequence}: {one.reason}")
    return found


def _distinct(sources: Sequence[Source], side: Side) -> list[Source]:
    """Those of the sources that are inputs of different shapes: not every model has a length."""
    kept = {_shapes(source, side): source for source in reversed(sources)}
    return [source for source in sources if source in kept.values()]


def _shapes(source: Source, side: Side) -> tuple[object, ...]:
    from graphprune.inputs import make_inputs

    if source.arrays:
        return (id(source),)
    made = [make_inputs(f.path, batch=source.batch, sequence=source.sequence) for f in side.bundle.files]
    return tuple((name, array.shape) for arrays in made for name, array in sorted(arrays.items()))


def _agreement(dense: Side, model: Side, wanted: Wanted, log: _Log) -> Verification | None:
    from graphprune.compare import verify

    paths = dense.path, model.path
    return log.attempt("agreement", lambda: verify(*paths, wanted.source, settings=wanted.settings))


def _said(source: Source, side: Side) -> str:
    """The inputs in words; without a length where the model takes none."""
    try:
        longer = _shapes(replace(source, sequence=source.sequence + 1), side)
        length = f" × length {source.sequence}" if _shapes(source, side) != longer else ""
    except GraphpruneError:
        length = f" × length {source.sequence}"
    return f"{'the given' if source.arrays else 'random'} inputs of batch {source.batch}{length}"


def _peak(side: Side, wanted: Wanted) -> Peak:
    """What the machine does at most in the type in which the model mostly multiplies."""
    from graphprune.roofline import element_of, peak

    macs = Counter[str]()
    for part in side.profile.blocks if side.profile else ():
        for kernel in part.kernels:
            macs[element_of(kernel)] += int(kernel.macs)
    return peak(wanted.settings, macs.most_common(1)[0][0])
