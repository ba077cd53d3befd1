"""Whatever a graph or a recipe looks like: a one-line error and nothing written, or a valid model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphprune as gp
from tests import tiny

SOURCE = tiny.model(layers=3).SerializeToString()
OPERATORS = ("Add", "Mul", "MatMul", "Relu", "Softmax", "Identity", "Shape", "LayerNormalization", "Unheard")
Pick = Callable[[int], int]


def _value(graph: onnx.GraphProto, pick: Pick) -> str:
    """Any name that there is: an input, an initializer, what a node puts out; or none at all."""
    names = [v.name for v in graph.input] + [i.name for i in graph.initializer]
    names += [name for node in graph.node for name in node.output]
    return [*names, "", "nobody"][pick(len(names) + 2)]


def rewire(graph: onnx.GraphProto, pick: Pick) -> None:
    node = graph.node[pick(len(graph.node))]
    if node.input:
        node.input[pick(len(node.input))] = _value(graph, pick)


def swap(graph: onnx.GraphProto, pick: Pick) -> None:
    node = graph.node[pick(len(graph.node))]
    node.input[:] = list(node.input)[::-1]


def delete(graph: onnx.GraphProto, pick: Pick) -> None:
    del graph.node[pick(len(graph.node))]


def move(graph: onnx.GraphProto, pick: Pick) -> None:
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[pick(len(graph.node))])
    graph.node.remove(node)
    graph.node.insert(pick(len(graph.node) + 1), node)


def retype(graph: onnx.GraphProto, pick: Pick) -> None:
    graph.node[pick(len(graph.node))].op_type = OPERATORS[pick(len(OPERATORS))]


def estrange(graph: onnx.GraphProto, pick: Pick) -> None:
    graph.node[pick(len(graph.node))].domain = ("com.microsoft", "of.nobody")[pick(2)]


def forget(graph: onnx.GraphProto, pick: Pick) -> None:
    del graph.initializer[pick(len(graph.initializer))]


def cut(graph: onnx.GraphProto, pick: Pick) -> None:
    tensor = graph.initializer[pick(len(graph.initializer))]
    tensor.raw_data = tensor.raw_data[: pick(len(tensor.raw_data) + 1)]


def expose(graph: onnx.GraphProto, pick: Pick) -> None:
    graph.output.add(name=_value(graph, pick))


MUTATIONS = (rewire, rewire, swap, delete, move, retype, estrange, forget, cut, expose)
BLOCKS = st.sampled_from(("0", "1", "all", "-1", "encoder.1", "encoder.2.ffn", "9", "", "x", "first:2"))
RECIPES = st.dictionaries(
    st.sampled_from(("drop_ffn", "drop_attention", "drop_layers", "drop_bias", "drop_norm", "drop_residual",
                     "drop_activation", "repeat_layers")),
    BLOCKS, min_size=1, max_size=3,
)  # fmt: skip


def _accepted(path: Path) -> bool:
    """Whether ONNX and ONNX Runtime take a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        onnx.checker.check_model(path, full_check=True)
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), recipe=RECIPES)
def test_no_graph_crashes_and_none_comes_out_worse(
    tmp_path: Path, data: st.DataObject, recipe: dict[str, str]
) -> None:
    def pick(count: int) -> int:
        return data.draw(st.integers(0, max(count - 1, 0)))

    proto = onnx.ModelProto.FromString(SOURCE)
    for mutate in data.draw(st.lists(st.sampled_from(MUTATIONS), min_size=0, max_size=3)):
        if proto.graph.node and proto.graph.initializer:
            mutate(proto.graph, pick)
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    try:
        gp.prune(gp.load(source), **recipe).save(out, overwrite=True)
    except gp.GraphpruneError as error:
        assert str(error)
        assert not out.exists()
    else:
        assert _accepted(out) or not _accepted(source)
        out.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"source.onnx"}
