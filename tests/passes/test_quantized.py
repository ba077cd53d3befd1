"""What passes do to quantized files is what they do to float ones: unrounding and pruning commute.

A pruned quantized file, read over real numbers with its scales and zero points, gives what the
float graph gives that is unrounded first and pruned then. Scales that no longer fit what they are
read with, sums requantized twice and biases zeroed to a number that stands for another would show.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import graphprune as gp
from graphprune.architecture import Architecture
from graphprune.errors import CheckError, EditError
from graphprune.pipeline import Pruned
from graphprune.prunepass import Skipped
from graphprune.recipe import parse
from tests.passes.agreement import NOT_REORDERED
from tests.passes.unrounded import unround
from tests.passes.zeroed import apart, droppable_steps, open_plain, run, sizes_for
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_feeds import make_feeds

TOLERANCE = 1e-4
DIALECTS = (
    "int8",
    "int8-ort",
    "fused-int8",
    "int4",
    "int4-qdq",
    "qdq",
    "qdq-ort",
    "qoperator",
    "weight-only",
)
FAST = {("bert", "qoperator"), ("gpt_neox", "qdq"), ("llama", "int8-ort")}
FAMILIES = ("bert", "vit", "gpt2", "llama", "gpt_neox", "gemma2", "t5", "bart")
Step = dict[str, object]


def steps(architecture: Architecture, family: str, seed: int) -> Iterator[Step]:
    """A step for every pass, on blocks drawn at random."""
    draw = random.Random(seed)
    drops = [step for step, _ in droppable_steps(architecture)]
    for name in ("drop_ffn", "drop_attention", "drop_layers"):
        own = [step for step in drops if name in step]
        yield from draw.sample(own, min(2, len(own)))
    blocks = [block.id for block in architecture.blocks if block.droppable]
    for name in ("drop_norm", "drop_residual", "drop_bias"):
        yield {name: {"blocks": draw.choice(blocks)}}
    yield {"drop_activation": {"blocks": draw.choice([id for id in blocks if "attention" not in id])}}
    yield {"drop_bias": {"blocks": draw.choice(blocks), "roles": ["norm"]}}
    stack = architecture.stacks[0]
    if family in NOT_REORDERED:
        return
    order = [layer.index for layer in stack.layers]
    while order == sorted(order) and len(order) > 1:
        draw.shuffle(order)
    yield {"reorder_layers": {"order": ",".join(map(str, order)), "stack": stack.name}}


def pruned(source: Path, step: Step, target: Path) -> tuple[Path | None, str]:
    """The pruned file; None with the reasons where nothing is done."""
    planned = gp.plan(gp.load(source), parse({"passes": [step]}))
    if not planned.edits:
        return None, "; ".join(o.answer.reason for o in planned.outcomes if isinstance(o.answer, Skipped))
    return Pruned(planned.apply(), planned).save(target, run=False, overwrite=True), ""


def problems(path: Path, family: str, folder: Path) -> Iterator[str]:
    """What differs between pruning a file and then unrounding it, and the other way round."""
    sizes = sizes_for(path)
    plain = unround(path, folder / "plain.onnx", scaled=False)
    architecture = gp.inspect(gp.load(path))[0].architecture
    for step in steps(architecture, family, zlib.crc32(path.name.encode())):
        try:
            expected, _ = pruned(plain, step, folder / "expected.onnx")
            got, reason = pruned(path, step, folder / "got.onnx")
        except (EditError, CheckError) as error:
            yield f"{step}: {error}"
            continue
        if expected is None or got is None:
            if (expected is None) != (got is None):
                yield f"{step}: {'done' if got else f'not done ({reason})'}, unlike in the float graph"
            continue
        left, right = open_plain(unround(got, folder / "unrounded.onnx", scaled=True)), open_plain(expected)
        feeds = make_feeds(right, **sizes)
        wanted, given = run(right, feeds), run(left, feeds)
        assert [*given] == [*wanted], step
        gap = max(apart(given[name], wanted[name]) for name in wanted)
        if not gap <= TOLERANCE:
            yield f"{step}: off by {gap:.2g}"


def cases() -> Iterator[object]:
    for entry in entries(*FAMILIES, fast=True):
        for dialect in DIALECTS:
            marks = () if (entry.family.name, dialect) in FAST else (pytest.mark.matrix,)
            for file in dict.fromkeys(file for stack in entry.family.stacks for file in stack.files):
                if not file.endswith("merged"):  # the quantizers leave its branches alone
                    yield pytest.param(
                        entry, file, dialect, marks=marks, id=f"{entry.family.name}-{file}-{dialect}"
                    )


@pytest.mark.parametrize(("entry", "file", "dialect"), list(cases()))
def test_pruning_and_unrounding_commute(entry: Entry, file: str, dialect: str, tmp_path: Path) -> None:
    try:
        path = entry.dialect(next(path for path in entry.files() if path.stem == file), dialect)
        wrong = [*problems(path, entry.family.name, tmp_path)]
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    assert not wrong
