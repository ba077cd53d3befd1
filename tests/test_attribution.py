"""Every kernel belongs to the block that it serves, whatever ONNX Runtime made of the graph.

The oracle on real exports are the names that torch's exporter gives to nodes: the paths of the modules
that they come from. The code under test never reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import pytest

from graphprune.attribution import UNREAD, Place, attribute
from graphprune.blockparts import PARTS
from graphprune.bundle import load
from graphprune.errors import LoadError, RunError
from graphprune.play import Source, play
from graphprune.profiled import Profiled, open_profiled
from graphprune.profiler import profile
from graphprune.recover import recover
from graphprune.scopes import Scope
from graphprune.session import open_sessions
from graphprune.settings import LEVELS, Level, Settings
from graphprune.survey import inspect
from tests import graphs
from tests.recovered import STAGED
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_dialects import DIALECTS

# One of a kind: post-norm, a cache, two files and a merged one, parallel blocks, two towers, convolutions.
FAST = ("bert", "llama", "bart", "gptj", "clip", "resnet")
FAST_LEVELS = ("disabled", "all")
FAST_DIALECTS = (("bert", "fused"), ("llama", "fused-fp16"), ("gpt2", "int8"))
# What writes the stream in another form belongs to who reads it so, under whatever name; and so do
# constants that several layers share.
RESTATE = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Unsqueeze", "Cast"}


def cases() -> Iterator[object]:
    """Every export as it is, each exporter's main one in all dialects; most carry the mark `matrix`."""
    fast = {entry.id for entry in entries(fast=True)}
    for entry in entries():
        for dialect in ("exported", *(DIALECTS if entry.main else ())):
            name = entry.family.name
            chosen = name in FAST if dialect == "exported" else (name, dialect) in FAST_DIALECTS
            quick = chosen and entry.id in fast
            for levels in (FAST_LEVELS, LEVELS) if quick else (LEVELS,):
                marks = [] if levels is FAST_LEVELS else [pytest.mark.matrix]
                yield pytest.param(
                    entry, dialect, levels, id=f"{entry.id}-{dialect}-{len(levels)}", marks=marks
                )


@pytest.mark.parametrize(("entry", "dialect", "levels"), list(cases()))
def test_zoo(entry: Entry, dialect: str, levels: Sequence[Level], tmp_path: Path) -> None:
    wrong: list[str] = []
    for stem, path in made(entry, dialect):
        bundle = load(path)
        architecture = inspect(bundle)[0].architecture
        layers = [f"{stack.name}.{layer.index}" for stack in architecture.stacks for layer in stack.layers]
        for level in levels:
            folder, settings = tmp_path / f"{stem}-{level}", Settings(threads=1, level=level)
            try:
                profiled = open_profiled(bundle.files[0], architecture, folder, settings)
            except LoadError as error:
                assert "NOT_IMPLEMENTED" in str(error)  # half precision has not all kernels on a CPU
                continue
            wrong += (f"{level}: {one}" for one in _wrong(entry, stem, profiled, layers))
    assert not wrong, "\n".join(wrong[:20])


def made(entry: Entry, dialect: str) -> list[tuple[str, Path]]:
    """The files of an export in a dialect, with their stems; skips the test where there are none."""
    found = []
    reason = ""
    try:
        for file in entry.files():
            try:
                found.append((file.stem, entry.dialect(file, dialect)))
            except NotExportableError as refusal:
                reason = str(refusal)
    except NotExportableError as refusal:
        reason = str(refusal)
    if not found:
        pytest.skip(f"not made: {reason[:200]}")
    return found


def runs() -> Iterator[object]:
    """Whole bundles as they are, at every level, and files one by one in every dialect."""
    for entry in entries():
        if entry.main or entry.exporter == "optimum":
            for level in LEVELS:
                yield pytest.param(entry, "exported", level, id=f"{entry.id}-exported-{level}")
        for dialect in DIALECTS if entry.main else ():
            yield pytest.param(entry, dialect, "all", id=f"{entry.id}-{dialect}-all")


@pytest.mark.matrix
@pytest.mark.parametrize(("entry", "dialect", "level"), list(runs()))
def test_nearly_all_time_has_a_place(entry: Entry, dialect: str, level: Level) -> None:
    files = [path for _, path in made(entry, dialect)]
    settings = Settings(threads=1, level=level)
    source = Source(sequence=6)
    for path in [files[0].parent] if dialect == "exported" else files:
        try:
            found = profile(path, source, rounds=2, steps=1, settings=settings)
        except (LoadError, RunError) as error:
            # What ONNX Runtime cannot run without a profiler either is not the profiler's to run.
            with pytest.raises(type(error)):
                play(open_sessions(path, settings), source, steps=1)
            continue
        assert found.attributed >= 0.99
        for phase in found.phases:
            whole = sum(part.us for part in (*phase.blocks, *phase.outside))
            assert whole == pytest.approx(phase.kernel_us)
            assert phase.kernel_us <= phase.session_us
            assert phase.blocks


def _wrong(entry: Entry, stem: str, profiled: Profiled, layers: list[str]) -> Iterator[str]:
    """The kernels without a place, and those whose place is not what their torch modules say."""
    truth = _Truth(entry, stem)
    placed = 0
    for name, node in profiled.nodes.items():
        place = profiled.places.get(name, Place(UNREAD))
        placed += place.owner != UNREAD
        origin = profiled.trail.main_origin(node)
        if origin is not None and place.inside:
            yield from truth.layer(origin.name or "", node, place, layers)
            if origin in profiled.trail.scope.linears:
                yield from truth.role(origin.name or "", node, place)
    if placed < 0.99 * len(profiled.nodes):
        yield f"{len(profiled.nodes) - placed} of {len(profiled.nodes)} kernels have no place"


class _Truth:
    """The torch modules of one file: layers by their paths, and linears with their roles."""

    def __init__(self, entry: Entry, stem: str) -> None:
        stacks = entry.stacks(stem)
        self.staged = entry.family.name in STAGED
        numbered = [(i, layer) for stack in stacks for i, layer in enumerate(stack.layers)]
        if self.staged:
            numbered = list(enumerate(layer for _, layer in numbered))
        shared = any(layer.call for _, layer in numbered)
        self.layers = [] if shared else [(_prefix(layer.path), i) for i, layer in numbered]
        self.roles = [
            (_prefix(f"{layer.path}.{module}"), block.kind, "conv" if part.kind == "conv" else PARTS[role])
            for _, layer in numbered
            for block in layer.blocks
            for part in block.parts
            for role, module in part.roles.items()  # type: ignore[attr-defined]
        ]

    def layer(self, name: str, node: ir.Node, place: Place, layers: list[str]) -> Iterator[str]:
        layer = place.owner.rpartition(".")[0]
        expected = {i for prefix, i in self.layers if prefix in name}
        got = layers.index(layer) if self.staged else int(layer.rpartition(".")[2])
        if expected and got not in expected and node.op_type not in RESTATE:
            yield f"{name} ({node.op_type}): in {place.owner}, not in layer {expected}"

    def role(self, name: str, node: ir.Node, place: Place) -> Iterator[str]:
        kind = place.owner.rpartition(".")[2]
        roles = [(kind, part) for prefix, kind, part in self.roles if prefix in name]
        part = place.part.rpartition(".")[2]
        found = [(k, p) for k, p in roles if kind.startswith(k) and part in {p, "fused", "linear"}]
        if roles and not found:
            yield f"{name} ({node.op_type}): {place.part} of {place.owner}, not {roles}"


def _prefix(path: str) -> str:
    """`encoder.layer.0` as the exporter writes it into names: `/encoder/layer.0/`."""
    steps: list[str] = []
    for step in path.split("."):
        steps = [*steps[:-1], f"{steps[-1]}.{step}"] if step.isdigit() and steps else [*steps, step]
    return f"/{'/'.join(steps)}/"


def places(body: str, **options: object) -> dict[str, str]:
    """Where the nodes of a written graph belong, by the names of their first outputs."""
    model = graphs.written(body, **options)
    scope = Scope.of(model)
    found = attribute(recover(model), scope)
    return {
        node.outputs[0].name or "": f"{place.owner} {place.part}".strip() for node, place in found.items()
    }


def test_parts_of_a_small_model() -> None:
    found = places(
        f"""
        scaled = Mul (x, half)
        {graphs.norm("scaled", "n")}
        {graphs.attention("n", "a")}
        s = Add (scaled, a)
        {graphs.ffn("s", "f")}
        t = Add (s, f)
        mean = ReduceMean <axes = [1], keepdims = 1> (t)
        y = MatMul (mean, head_8x8)
        """
    )
    expected = {
        "scaled": "embedding",
        **dict.fromkeys(("a_q", "a_k", "a_v"), "encoder.0.attention projections"),
        **dict.fromkeys(("a_t", "a_scores", "a_p", "a_c"), "encoder.0.attention scores"),
        "a": "encoder.0.attention output",
        "s": "encoder.0.attention join",
        "f_up": "encoder.0.ffn up",
        "f_act": "encoder.0.ffn activation",
        "f": "encoder.0.ffn down",
        "t": "encoder.0.ffn join",
        "mean": "pooling",
        "y": "head",
    }
    assert {name: found[name] for name in expected} == expected
    assert {place for name, place in found.items() if name not in expected} == {"encoder.0.attention norm"}


def test_a_graph_without_blocks_goes_by_its_linear_maps() -> None:
    found = places(
        """
        begun = Add (x, x)
        wide = MatMul (begun, w_8x8)
        open = Relu (wide)
        two = Conv (open, w_8x8x1)
        y = Tanh (two)
        """,
        inputs="float[1, 8, 8] x",
    )
    assert found == {
        "begun": "other", "wide": "linear maps", "open": "linear maps",
        "two": "convolutions", "y": "convolutions",
    }  # fmt: skip


def test_masks_and_positions_stand_beside_the_blocks() -> None:
    def attention(stream: str, out: str) -> str:
        return graphs.attention(stream, out).replace(
            f"Softmax <axis = -1> ({out}_scores)", f"Softmax <axis = -1> ({out}_biased)"
        ).replace(f"{out}_p =", f"{out}_biased = Add ({out}_scores, bias)\n{out}_p =")  # fmt: skip

    found = places(
        f"""
        far = Mul (mask, minus_half)
        near = Gather (table_9x1, positions)
        bias = Add (far, near)
        {attention("x", "a")}
        s = Add (x, a)
        {attention("s", "b")}
        y = Add (s, b)
        """,
        inputs=f"{graphs.STREAM} x, float[1, sequence, sequence] mask, int64[sequence] positions",
    )
    assert (found["far"], found["near"]) == ("masks", "positions")
    assert found["a_biased"].endswith("0.attention scores")
