"""Every kernel belongs to the block that it serves, whatever ONNX Runtime made of the graph.

The oracle on real exports are the names that torch's exporter gives to nodes: the paths of the modules
that they come from. The code under test never reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest

from graphprune.attribution import UNREAD, Place, attribute
from graphprune.blockparts import PARTS
from graphprune.bundle import load
from graphprune.profiled import Profiled, open_profiled
from graphprune.recover import recover
from graphprune.scopes import Scope
from graphprune.settings import LEVELS, Settings
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
    """Exports at every level, dialects at the last; most of it carries the mark `matrix`."""
    for entry in entries(fast=True):
        name = entry.family.name
        for dialect in ("exported", *DIALECTS):
            for level in LEVELS if dialect == "exported" else ("all",):
                chosen = name in FAST if dialect == "exported" else (name, dialect) in FAST_DIALECTS
                fast = chosen and level in FAST_LEVELS
                marks = [] if fast else [pytest.mark.matrix]
                yield pytest.param(entry, dialect, level, id=f"{entry.id}-{dialect}-{level}", marks=marks)


@pytest.mark.parametrize(("entry", "dialect", "level"), list(cases()))
def test_zoo(entry: Entry, dialect: str, level: str, tmp_path: Path) -> None:
    wrong: list[str] = []
    made = 0
    for number, file in enumerate(entry.files()):
        try:
            path = entry.dialect(file, dialect)
        except NotExportableError:
            continue
        made += 1
        bundle = load(path)
        architecture = inspect(bundle)[0].architecture
        folder = tmp_path / str(number)
        profiled = open_profiled(bundle.files[0], architecture, folder, Settings(threads=1, level=level))
        layers = [f"{stack.name}.{layer.index}" for stack in architecture.stacks for layer in stack.layers]
        wrong += _wrong(entry, file.stem, profiled, layers)
    if not made:
        pytest.skip(f"{dialect} cannot be made of it")
    assert not wrong, "\n".join(wrong[:20])


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


def test_a_graph_without_blocks_is_unread() -> None:
    assert set(places("y = MatMul (x, w_8x8)").values()) == {UNREAD}


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
