"""Whatever a graph looks like: an error of ours, or a valid model; and never half a file.

Real models are broken in a few places at random and pruned by random recipes. Where ONNX and
ONNX Runtime accepted the broken source, they must accept what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import graphprune as gp
from graphprune.errors import CheckError, GraphpruneError
from graphprune.surgery import output_projections, place_for, post_norm
from tests import tiny
from tests.graphs import STREAM, attention, ffn, norm, proto
from tools.zoo import entries

Draw = Callable[[st.SearchStrategy[int]], int]


def pre_norm() -> onnx.ModelProto:
    """Two layers, the second one's joins fused with norms."""
    body = f"""
    {norm("x", "m")} {attention("m", "a")} h = Add (x, a) {norm("h", "n")} {ffn("n", "f")}
    o, o0, o1, i = com.microsoft.SkipLayerNormalization (h, f, g_8, b_8, c_8)
    {attention("o", "d")} j = Add (i, d)
    {norm("j", "p")} {ffn("p", "k")} y = Add (j, k)
    """
    return proto(body)


def cached() -> onnx.ModelProto:
    """Two layers with KV caches."""
    body = ""
    for stream, out, number in (("x", "a", 0), ("a", "b", 1)):
        body += f"""
        {out}q = MatMul ({stream}, {out}q_8x8) {out}n = MatMul ({stream}, {out}n_8x8)
        present{number} = Concat <axis = 1> (past{number}, {out}n)
        {out}t = Transpose <perm = [0, 2, 1]> (present{number})
        {out}s = MatMul ({out}q, {out}t) {out}p = Softmax <axis = -1> ({out}s)
        {out}c = MatMul ({out}p, present{number}) {out}o = MatMul ({out}c, {out}o_8x8)
        {out}h = Add ({stream}, {out}o) {ffn(f"{out}h", f"{out}f")} {out} = Add ({out}h, {out}f)
        """
    caches = [", ".join(f"float[batch, past, 8] {name}{i}" for i in range(2)) for name in ("past", "present")]
    return proto(body + "y = Relu (b)", inputs=f"{STREAM} x, {caches[0]}", outputs=f"{STREAM} y, {caches[1]}")


@cache
def sources() -> tuple[bytes, ...]:
    """Small models of several kinds, serialized."""
    exported = [
        next(entries(name, fast=True)).files()[0].read_bytes()
        for name in ("distilbert", "gpt_neox", "resnet")
    ]
    return (*(one.SerializeToString() for one in (tiny.model(), pre_norm(), cached())), *exported)


def rewire(model: onnx.ModelProto, draw: Draw) -> None:
    """A node reads something else."""
    node = pick(readers(model), draw)
    names = [name for other in model.graph.node for name in other.output] + [
        i.name for i in model.graph.input
    ]
    node.input[draw(st.integers(0, len(node.input) - 1))] = pick(names, draw)


def delete_node(model: onnx.ModelProto, draw: Draw) -> None:
    """A node goes; who read it reads what it read."""
    node = pick(readers(model), draw)
    for other in model.graph.node:
        for index, name in enumerate(other.input):
            if name in node.output and name:
                other.input[index] = node.input[0]
    if not {o.name for o in model.graph.output} & set(node.output):
        model.graph.node.remove(node)


def swap_operands(model: onnx.ModelProto, draw: Draw) -> None:
    """The first two inputs of a node change places."""
    nodes = [node for node in model.graph.node if len(node.input) > 1]
    node = pick(nodes, draw)
    node.input[0], node.input[1] = node.input[1], node.input[0]


def change_attribute(model: onnx.ModelProto, draw: Draw) -> None:
    """A number in an attribute changes."""
    attributes = [a for node in model.graph.node for a in node.attribute if a.HasField("i") or a.ints]
    if attributes:
        attribute = pick(attributes, draw)
        if attribute.ints:
            attribute.ints[draw(st.integers(0, len(attribute.ints) - 1))] = draw(st.integers(-3, 5))
        else:
            attribute.i = draw(st.integers(-3, 5))


def change_op(model: onnx.ModelProto, draw: Draw) -> None:
    """A node becomes another op."""
    kinds = ("Relu", "Add", "MatMul", "Identity", "Shape", "Softmax", "Mul", "Cast", "Unheard", "Sum")
    pick(list(model.graph.node), draw).op_type = pick(kinds, draw)


def drop_initializer(model: onnx.ModelProto, draw: Draw) -> None:
    """A weight is missing."""
    if model.graph.initializer:
        del model.graph.initializer[draw(st.integers(0, len(model.graph.initializer) - 1))]


def reshape_initializer(model: onnx.ModelProto, draw: Draw) -> None:
    """A weight is flat."""
    if model.graph.initializer:
        index = draw(st.integers(0, len(model.graph.initializer) - 1))
        old = model.graph.initializer[index]
        old.CopyFrom(numpy_helper.from_array(np.ravel(numpy_helper.to_array(old)), old.name))


def share_weight(model: onnx.ModelProto, draw: Draw) -> None:
    """Two nodes read one weight."""
    names = [tensor.name for tensor in model.graph.initializer]
    nodes = [node for node in model.graph.node if set(node.input) & set(names)]
    if nodes:
        one = pick(nodes, draw)
        index = next(i for i, name in enumerate(one.input) if name in names)
        one.input[index] = pick(names, draw)


def rename(model: onnx.ModelProto, draw: Draw) -> None:
    """A value gets another name, everywhere, of characters that are rare in names."""
    old = pick([name for node in model.graph.node for name in node.output if name], draw)
    new = pick(("", "a b", "é/…", "x" * 300, "x"), draw)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def shuffle(model: onnx.ModelProto, draw: Draw) -> None:
    """Two nodes change places in the file."""
    nodes = list(model.graph.node)
    i, j = (draw(st.integers(0, len(nodes) - 1)) for _ in range(2))
    nodes[i], nodes[j] = nodes[j], nodes[i]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def expose(model: onnx.ModelProto, draw: Draw) -> None:
    """A value in the middle is an output too."""
    name = pick([name for node in model.graph.node for name in node.output if name], draw)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


MUTATIONS = (
    rewire, delete_node, swap_operands, change_attribute, change_op, drop_initializer, reshape_initializer,
    share_weight, rename, shuffle, expose,
)  # fmt: skip


def readers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.input]


def pick(items: list | tuple, draw: Draw) -> object:  # type: ignore[type-arg]
    return items[draw(st.integers(0, len(items) - 1))]


SELECTIONS = st.sampled_from(
    ["0", "1", "-1", "0-1", "all", "last:1", "all-but:0", "encoder", "stage0.1", "9", ""]
)
ORDERS = st.sampled_from(["1,0", "1,0,2", "3,1,2,0", "2,1,0,3", "0,0", "x"])
PASSES = [
    "drop_ffn", "drop_attention", "drop_layers", "drop_bias", "drop_residual", "drop_norm", "drop_activation",
    "repeat_layers", "reorder_layers", "merge_layers", "parallelize", "replace_linear", "replace_mean",
    "refit",
]  # fmt: skip
# Where a test keeps the values for passes that need some.
VALUES = "values.npz"


def options(name: str) -> st.SearchStrategy[object]:
    """What a pass may be given."""
    if name == "parallelize":
        return st.fixed_dictionaries({"layers": SELECTIONS, "what": st.sampled_from(["layers", "blocks"])})
    if name in {"replace_linear", "replace_mean", "refit"}:
        return st.fixed_dictionaries({"blocks": SELECTIONS, "values": st.just(VALUES)})
    return ORDERS if name == "reorder_layers" else SELECTIONS


RECIPES = st.lists(st.sampled_from(PASSES), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: options(name) for name in names})
)


def write_values(path: Path, bundle: gp.Bundle) -> None:
    """Values for every block of a model, as far as its weights tell what size they are of."""
    arrays: dict[str, np.ndarray] = {}
    for block in gp.inspect(bundle)[0].architecture.blocks:
        shapes: dict[str, tuple[int, ...]] = {}
        if not isinstance(place := place_for(block), str):
            shapes |= {"linear": (place.width, place.width), "constant": (place.width,)}
        if not isinstance(norm := post_norm(block), str):
            shapes |= {"scale": norm.gamma.shape[-1:], "shift": norm.gamma.shape[-1:]}
        if not isinstance(found := output_projections(block), str):
            shapes["bias"] = (found.width,)
            shapes |= {f"weight.{i}": (one.inputs, one.width) for i, one in enumerate(found.parts)}
        arrays |= {f"{block.id}/{key}": np.full(shape, 0.1, np.float32) for key, shape in shapes.items()}
    np.savez(path, **arrays)


def accepted(path: Path) -> bool:
    """Whether ONNX and ONNX Runtime take a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        onnx.checker.check_model(str(path), full_check=True)
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:  # the two libraries' errors share no base
        return False
    return True


@given(data=st.data())
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_a_broken_graph_gives_an_error_or_a_valid_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    model = onnx.load_from_string(
        data.draw(st.sampled_from(range(len(sources()))).map(lambda i: sources()[i]))
    )
    for _ in range(data.draw(st.integers(0, 3))):
        data.draw(st.sampled_from(MUTATIONS))(model, data.draw)
    source, out = tmp_path / "source.onnx", tmp_path / "pruned.onnx"
    source.write_bytes(model.SerializeToString())
    out.unlink(missing_ok=True)
    recipe = data.draw(RECIPES)
    monkeypatch.chdir(tmp_path)
    try:
        bundle = gp.load(source)
        gp.inspect(bundle)
        write_values(tmp_path / VALUES, bundle)
        gp.prune(bundle, **recipe).save(out)
    except GraphpruneError as error:
        assert "\n" not in str(error)
        assert not out.exists()
        assert not (isinstance(error, CheckError) and accepted(source)), error
    else:
        assert accepted(out) or not accepted(source)
    assert {path.name for path in tmp_path.iterdir()} <= {"source.onnx", "pruned.onnx", VALUES}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[one.__name__ for one in MUTATIONS])
def test_each_mutation_changes_the_model(mutation: Callable[[onnx.ModelProto, Draw], None]) -> None:
    """The property is worth something only if the mutations do something."""
    changed = 0
    for number in range(20):
        model = pre_norm()
        random = np.random.default_rng(number)

        def draw(numbers: st.SearchStrategy[int], random: np.random.Generator = random) -> int:
            low, high = numbers.wrapped_strategy.start, numbers.wrapped_strategy.end  # type: ignore[attr-defined]
            return int(random.integers(low, high + 1))

        mutation(model, draw)
        changed += model.SerializeToString() != pre_norm().SerializeToString()
    assert changed
