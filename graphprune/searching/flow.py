"""Search for what to remove: from a model, data and targets to a pruned and healed model, and the reasons."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import SaveError
from graphprune.healing.building import REPORT, to_text
from graphprune.jsonable import finite
from graphprune.searching.asking import Asker, Budget
from graphprune.searching.evaluating import close_all, opened
from graphprune.searching.found import Found, FoundStep, Judged, Search
from graphprune.searching.goals import Target, costs_of, goal_of, parse_target
from graphprune.searching.hunt import Caught, Hunt
from graphprune.searching.preparing import (
    identity_of,
    levels_of,
    open_space,
    require_actions,
    stored,
)
from graphprune.searching.pricing import price_model
from graphprune.searching.steering import front, reasons, require_reachable
from graphprune.searching.trials import open_trials, require_optuna
from graphprune.searching.workers import open_workers

if TYPE_CHECKING:
    from graphprune.data.dataset import Data
    from graphprune.healing.choice import Action
    from graphprune.play import Source
    from graphprune.searching.evaluating import Quality
    from graphprune.searching.space import Picks
    from graphprune.searching.workers import Workers
    from graphprune.settings import Settings

# What may become of a block by default: a constant hardly ever beats dropping with the norm refitted.
ACTIONS = ("drop", "linear", "half", "quarter", "eighth")
# Choices that are evaluated at most.
TRIALS = 80
# The trials, in a folder that a search wrote.
STORED = ".search"


def search(
    model: str | Path,
    out: str | Path | None,
    data: Data | None = None,
    *,
    targets: Sequence[str | Target],
    actions: Sequence[str] = ACTIONS,
    blocks: str = "all",
    source: Source | Sequence[Source] | None = None,
    settings: Settings | None = None,
    steps: int = 0,
    trials: int | None = TRIALS,
    budget: float | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    seed: int = 0,
    storage: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda what: None,
) -> Search:
    """Find the best model that reaches the targets, by removing blocks and healing the rest; write it.

    `targets` are like `speedup=1.5`, `latency=3.2ms`, `parameters=0.7` (up to 1: a share), `macs=1.2G`,
    `size=50MB`, `quality=0.995` (a share of the dense model's; alone: then the fastest model above it).
    `data` is what is fitted to and judged by, on different parts of it; a sample text by default. `actions`
    say what may become of `blocks` (a selection). Latency is that of `source` (one or several: the mean of
    the ratios; random inputs of batch 1 by default) with `settings` (one thread on the CPU by default), with
    `steps` further tokens for models that take a cache.

    At most `trials` choices are evaluated; or at most for `budget` seconds, and then what is found depends
    on the machine's speed. `jobs` are processes, `scheduler` the address of a Dask scheduler. All trials are
    kept in the file `storage`, by default `.<name of out>.search` beside `out`: with `resume` a search that
    was broken off goes on from it, and ends as it would have. `on_step` is told what is going on.

    With `out` None nothing is written but `storage`. Raises `CheckError` where the targets cannot be
    reached, and says what is the most that can be had; `SelectionError`, `RunError`, `LoadError`,
    `SaveError`, `MissingExtraError`.
    """
    from graphprune.settings import Settings

    require_optuna()
    wanted = tuple(one if isinstance(one, Target) else parse_target(one) for one in targets)
    target = None if out is None else Path(out)
    place = _storage(target, storage, resume=resume)
    _require_free(target, overwrite=overwrite)
    with ExitStack() as stack:
        workers = stack.enter_context(open_workers(jobs, scheduler))
        folder = Path(stack.enter_context(_folder(target or place)))
        stack.callback(close_all)
        start = Start(
            Path(model), data, wanted, require_actions(actions), blocks, _sources(source),
            settings or Settings(threads=1), steps, seed, folder, on_step,
        )  # fmt: skip
        hunt, declined = _begin(start, workers, Budget(trials, budget), place, resume=resume)
        caught = hunt.run()
        found = _found(hunt, caught, wanted, declined, target)
        if target is not None:
            on_step(f"writing {target}")
            texts = {REPORT: to_text(finite(found.to_json()))}
            caught.built.write(target, overwrite=overwrite, texts=texts)
    if storage is None:
        _put_away(place, target)
    return found


@dataclass(frozen=True, eq=False)
class Start:
    """What a search is asked; as the options of `search`, which says what they mean."""

    model: Path
    data: Data | None
    targets: tuple[Target, ...]
    actions: tuple[Action, ...]
    blocks: str
    sources: tuple[Source, ...]
    settings: Settings
    further: int
    seed: int
    folder: Path
    tell: Callable[[str], None]


def _begin(
    start: Start, workers: Workers, budget: Budget, place: Path | None, *, resume: bool
) -> tuple[Hunt, dict[str, str]]:
    """A search that is ready to run, and why blocks are not in it."""
    from graphprune.bundle import load
    from graphprune.data.dataset import read_data

    start.tell(f"reading {start.model.name}")
    bundle, data = load(start.model), start.data or read_data()
    bundle.only("searched")
    levels = levels_of(start.model, data, replace(start.settings, threads=workers.threads), start.seed)
    if workers.jobs > 1:
        levels = stored(levels, start.folder)
    space, declined = open_space(bundle, levels, start.actions, start.blocks)
    identity = identity_of(bundle, data, levels, space, start.seed)
    known = open_trials(space, place, identity, resume=resume)
    start.tell("measuring what blocks cost")
    pricing = price_model(
        start.model, costs_of(start.targets), start.sources, start.settings, start.further, known
    )
    goal = goal_of(start.targets, pricing.dense)
    asker = Asker(
        space, goal, pricing, dict(levels.openers), levels.racing, known, workers, budget, start.tell
    )  # fmt: skip
    require_reachable(asker)
    hunt = Hunt(
        start.model, bundle, levels, asker, start.sources, start.settings, start.further, start.folder,
        start.seed, start.tell,
    )  # fmt: skip
    return hunt, declined


def _found(
    hunt: Hunt, caught: Caught, targets: Sequence[Target], declined: Mapping[str, str], out: Path | None
) -> Search:
    """What a search found, in words and numbers."""
    from graphprune.bundle import fingerprint

    asker, levels = hunt.asker, hunt.levels
    judge = opened(levels.openers[levels.last]).judge
    why = tuple(reasons(asker, caught.picks))
    trials = {level: len(asker.trials.of(level)) for level in levels.openers}
    return Search(
        hunt.model, out, tuple(map(str, targets)),
        Judged(judge.metric, judge.better, judge.dense, *levels.examples[levels.last], levels.healed),
        asker.goal.cost, asker.goal.dense, _choice(asker, caught.picks, caught.quality),
        tuple(FoundStep(s.phase, s.changed, s.price, s.quality, s.tried) for s in hunt.steps),
        caught.healing.steps if caught.healing else (), _choices(asker),
        why, declined, caught.timed, trials, fingerprint(hunt.bundle.files[0])["source_sha256"],
        (*levels.notes, *hunt.notes),
    )  # fmt: skip


def _choices(asker: Asker) -> tuple[Found, ...]:
    """All that was evaluated where choices compete to the last."""
    pairs = [(one.picks, one.quality) for one in asker.trials.of(asker.top)]
    fronts = front(asker.goal, [(asker.price(picks), quality) for picks, quality in pairs])
    return tuple(_choice(asker, *pair, on_front) for pair, on_front in zip(pairs, fronts, strict=True))


def _choice(asker: Asker, picks: Picks, quality: Quality, on_front: bool = False) -> Found:
    return Found(asker.space.choice(picks), asker.price(picks), quality, on_front)


def _sources(source: Source | Sequence[Source] | None) -> tuple[Source, ...]:
    from graphprune.play import Source

    return (source,) if isinstance(source, Source) else tuple(source or (Source(sequence=32),))


def _storage(out: Path | None, storage: str | Path | None, *, resume: bool) -> Path | None:
    """The file of the trials; those of a search that has ended well lie in what it wrote."""
    if storage is not None or out is None:
        return None if storage is None else Path(storage)
    place = out.with_name(f".{out.name}.search")
    if resume and not place.exists() and (out / STORED).is_file():
        shutil.copyfile(out / STORED, place)
    return place


def _put_away(place: Path | None, out: Path | None) -> None:
    """Move the trials into the folder that was written; beside a single file they stay where they are."""
    if place is not None and out is not None and out.is_dir():
        place.replace(out / STORED)


def _require_free(out: Path | None, *, overwrite: bool) -> None:
    """Raise `SaveError` before the work where nothing could be written after it."""
    if out is not None and not overwrite and os.path.lexists(out):
        raise SaveError(f"{out} exists: name another target, or allow overwriting")


def _folder(near: Path | None) -> tempfile.TemporaryDirectory[str]:
    """A hidden folder for what is not to stay, where all who work on it can see it."""
    if near is None:
        return tempfile.TemporaryDirectory(prefix="graphprune-")
    near.absolute().parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f".{near.name}.", dir=near.absolute().parent)
