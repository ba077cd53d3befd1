"""Fit rules to data, put them into a model, and say what they cost it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from graphprune.errors import SelectionError
from graphprune.skipping.rules import Policy, Rule, fit_rules, values_of
from graphprune.skipping.watching import Seen, Unit, feel, watch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.data.dataset import Batch, Data
    from graphprune.data.judging import Judge
    from graphprune.pipeline import Pruned
    from graphprune.settings import Settings

_Outputs: TypeAlias = (
    "Callable[[str | Path, Sequence[Batch], Settings | None], Iterator[Mapping[str, NDArray[Any]]]]"
)
VALUES = "skips.npz"
Kinds = Literal["all", "attention", "ffn"]
Phase = Literal["all", "decode", "prefill"]


@dataclass(frozen=True, eq=False)
class Skipping:
    """A model with rules, not saved yet.

    `score` is what it is worth by `metric` on examples that nothing was fitted to, each by itself; `dense` is
    what the model without rules is worth, and `fixed` what one is that always leaves out the blocks `always`:
    as many as the rules do, those without which its outputs stay most alike.
    """

    rules: tuple[Rule, ...]
    pruned: Pruned
    metric: str
    score: float
    dense: float
    fixed: float
    always: tuple[str, ...]
    examples: int

    @property
    def skipped(self) -> float:
        """The share of the runs of blocks that the rules leave out, on the examples that they were set by."""
        return float(np.mean([rule.skipped for rule in self.rules]))

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write and check the model, with the values that its recipe reads beside it, all or nothing.

        Raises `SaveError`, `CheckError`.
        """
        from graphprune.healing.building import Built, save_values

        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            values = Path(folder) / VALUES
            save_values(values, values_of(self.rules))
            return Built(self.pruned, values, VALUES).write(Path(out), overwrite=overwrite)


def fit_skips(
    model: str | Path,
    data: Data | None = None,
    *,
    policy: Policy = "router",
    share: float = 0.25,
    blocks: str = "all",
    kinds: Kinds = "ffn",
    phase: Phase = "all",
    settings: Settings | None = None,
) -> Skipping:
    """Fit rules by which blocks of `blocks` do not run, and put them into a model by `insert_skips`.

    Three quarters of `data` (a sample text by default) are fitted to, each example by itself, and where
    `phase` is "decode" each token; the rest judges. Raises `LoadError`, `SelectionError`, `RunError`.
    """
    from graphprune.bundle import load
    from graphprune.data.dataset import read_data
    from graphprune.healing.building import save_values
    from graphprune.pipeline import prune

    data = data or read_data()
    fitted, held = data.split(0.75)
    bundle = load(model)
    ids = _gated(bundle, blocks, kinds)
    sources = [batch.source for batch in fitted.batches(model, 1)]
    unit: Unit = "token" if phase == "decode" else "example"
    seen = watch(model, sources, ids, unit, settings)
    felt = feel(model, sources, seen, unit, settings)
    seen = {id: replace(one, alike=felt[id]) for id, one in seen.items() if id in felt}
    rules = fit_rules(seen, policy, share)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        values = Path(folder) / VALUES
        save_values(values, values_of(rules))
        options = {"kinds": kinds, "phase": phase, "policy": policy, "values": str(values)}
        options["blocks"] = ",".join(rule.block for rule in rules)
        pruned = prune(bundle, insert_skips=options)
    outputs = _stepped if phase == "decode" else _passed
    always = _least(rules, seen)
    options = {"kinds": kinds, "phase": phase, "skip": ",".join(always)}
    other = prune(bundle, insert_skips=options) if always else None
    judge, scores = _judged(model, (pruned, other), held, outputs, settings)
    return Skipping(rules, pruned, judge.metric, scores[0], judge.dense, scores[1], always, held.examples)


def _least(rules: Sequence[Rule], seen: Mapping[str, Seen]) -> tuple[str, ...]:
    """As many blocks as rules leave out on the mean, those that change the outputs least."""
    ordered = sorted(rules, key=lambda rule: -float(seen[rule.block].alike.mean()))
    return tuple(rule.block for rule in ordered[: round(sum(rule.skipped for rule in rules))])


def _gated(bundle: Any, blocks: str, kinds: Kinds) -> tuple[str, ...]:
    """The blocks that gates are for. Raises `SelectionError` where none can have one."""
    from graphprune.gates import read_gates
    from graphprune.pipeline import prune

    made = prune(bundle, insert_skips={"blocks": blocks, "kinds": kinds}).bundle
    ids = dict.fromkeys(id for file in made.files for id in read_gates(file.model.metadata_props))
    if not ids:
        raise SelectionError(f"{blocks!r} names no block that can have a gate")
    return tuple(ids)


def _judged(
    model: str | Path, made: Sequence[Pruned | None], held: Data, outputs: _Outputs, settings: Settings | None
) -> tuple[Judge, list[float]]:
    """The judge, and the scores of what was made of the model; None is the model itself."""
    from graphprune.data.judging import open_judge

    batches = held.batches(model, 1)
    judge = open_judge(held, batches, outputs(model, batches, settings))
    scores = [judge.dense for _ in made]
    for number, pruned in ((n, one) for n, one in enumerate(made) if one is not None):
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            name = "model" if pruned.bundle.folder else "model.onnx"
            path = pruned.save(Path(folder) / name, run=False)
            scores[number] = judge.score(outputs(path, batches, settings))
    return judge, scores


def _passed(
    path: str | Path, batches: Sequence[Batch], settings: Settings | None
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """What the last file puts out for each batch."""
    from graphprune.play import is_cache, play
    from graphprune.session import open_sessions

    sessions = open_sessions(path, settings)
    for batch in batches:
        last = play(sessions, batch.source)[-1]
        yield {name: array for name, array in last.outputs.items() if not is_cache(name)}


def _stepped(
    path: str | Path, batches: Sequence[Batch], settings: Settings | None
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The scores for the tokens of each batch, which are read one by one with the model's cache."""
    from graphprune.lane import Lane
    from graphprune.language import open_model

    model = open_model(path, settings)
    for batch in batches:
        ids = batch.source.arrays["input_ids"].tolist()
        lane = Lane(model, [row[:1] for row in ids], {})
        scores = [lane.begin(), *(lane.advance(tokens) for tokens in list(zip(*ids, strict=True))[1:])]
        yield {"logits": np.stack(scores, axis=1)}
