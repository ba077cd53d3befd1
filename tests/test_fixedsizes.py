"""Open axes get sizes: by name, within expressions, by the shape of an input; else a clear error."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import GraphError
from graphprune.fixedsizes import FixedSizes, fix_sizes, open_axes, parse_sizes
from graphprune.ortformat import as_library
from tests import tiny

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
sizes (float[batch, sequence, 4] x, float[batch, past, 4] cache, float[batch, "past + sequence"] mask,
       float[?, 2] plain) => (float[batch, "past + sequence", 4] y, float[batch, "past + sequence"] z)
<float[batch, sequence, 4] inner>
{
    inner = Identity (x)
    y = Concat <axis = 1> (cache, inner)
    z = Identity (mask)
}
"""


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def shapes(model: ir.Model) -> dict[str, list[object]]:
    values = {value.name or "": value for graph in model.graphs() for value in graph.inputs}
    values |= {out.name or "": out for graph in model.graphs() for node in graph for out in node.outputs}
    return {
        name: [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()]
        for name, value in values.items()
    }


def test_items_are_axes_or_whole_shapes() -> None:
    found = parse_sizes(["batch_size=1, sequence_length = 128", "x:0:1x3x224"])
    assert found == FixedSizes({"batch_size": 1, "sequence_length": 128}, {"x:0": (1, 3, 224)})
    assert not parse_sizes([]) and parse_sizes(["past + 1=8"]).axes == {"past + 1": 8}
    assert parse_sizes(["a=1", "a=1"]).axes == {"a": 1}


@pytest.mark.parametrize("text", ["", "batch", "=3", "a=0", "a=-1", "a=x", "a=1e3", "x:1x", ":1x2", "a=1,"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(GraphError, match=r"fixes no size: name an axis \(batch_size=1\)"):
        parse_sizes([text])


def test_two_sizes_for_one_name_are_refused() -> None:
    with pytest.raises(GraphError, match="a has another size before that"):
        parse_sizes(["a=1,a=2"])
    with pytest.raises(GraphError, match="x has another size before that"):
        parse_sizes(["x:1x2", "x:1x3"])


@given(st.lists(st.text(alphabet=st.sampled_from("ab=:x,0123456789 +١") | st.characters(), max_size=40)))
def test_any_text_is_read_or_refused(texts: list[str]) -> None:
    try:
        found = parse_sizes(texts)
    except GraphError:
        return
    sizes = [*found.axes.values(), *(size for shape in found.shapes.values() for size in shape)]
    assert all(0 < size < 10**9 for size in sizes)


def test_a_name_is_fixed_everywhere_and_within_expressions() -> None:
    one = model()
    assert list(open_axes(one)) == ["batch", "sequence", "past", "past + sequence"]
    fix_sizes([one], parse_sizes(["batch=2,sequence=3"]))
    assert shapes(one) == {
        "x": [2, 3, 4],
        "cache": [2, "past", 4],
        "mask": [2, "past + sequence"],
        "plain": [None, 2],
        "inner": [2, 3, 4],
        "y": [2, "past + sequence", 4],
        "z": [2, "past + sequence"],
    }
    fix_sizes([one], parse_sizes(["past=5"]))
    assert shapes(one)["cache"] == [2, 5, 4]
    one = model()
    fix_sizes([one], parse_sizes(["past=5,sequence=3"]))
    assert shapes(one)["y"] == ["batch", 8, 4] and shapes(one)["mask"] == ["batch", 8]


def test_the_shape_of_an_input_fixes_its_names_and_what_has_none() -> None:
    one = model()
    fix_sizes([one], parse_sizes(["x:2x3x4,plain:7x2"]))
    assert shapes(one)["cache"] == [2, "past", 4] and shapes(one)["plain"] == [7, 2]
    assert list(open_axes(one)) == ["past", "past + sequence"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rows=1", "there is no axis rows to fix; open are batch, sequence, past, past . sequence"),
        ("y:1x2x3", "there is no input y; there is x, cache, mask, plain"),
        ("x:1x2", "the input x is of the shape .*, which cannot become 1x2"),
        ("x:1x2x5", "which cannot become 1x2x5"),
        ("x:1x2x4,batch=2", "the axis batch of the input x is given two sizes, 2 and 1"),
        ("x:1x2x4,cache:2x2x4", "the axis batch of the input cache is given two sizes, 1 and 2"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, problem: str) -> None:
    with pytest.raises(GraphError, match=problem):
        fix_sizes([model()], parse_sizes([text]))


def test_a_model_without_open_axes_says_so() -> None:
    one = model()
    fix_sizes([one], parse_sizes(["batch=1,sequence=1,past=1,plain:1x2"]))
    with pytest.raises(GraphError, match="no axis of an input is open"):
        fix_sizes([one], parse_sizes(["batch=1"]))


def test_files_of_one_bundle_share_their_names() -> None:
    other = ir.from_proto(tiny.model())
    fix_sizes([model(), other], parse_sizes(["past=1,sequence=6,batch=2"]))
    assert shapes(other)["x"] == [2, 6, tiny.WIDTH]


def test_as_onnxruntimes_own_tool_does(tmp_path: Path) -> None:
    """Oracle: `onnxruntime.tools.make_dynamic_shape_fixed`."""
    with as_library():
        from onnxruntime.tools import onnx_model_utils as tools

    theirs, ours = tiny.model(), ir.from_proto(tiny.model())
    tools.make_dim_param_fixed(theirs.graph, "batch", 3)
    tools.make_input_shape_fixed(theirs.graph, "x", [3, 5, tiny.WIDTH])
    tools.fix_output_shapes(theirs)
    fix_sizes([ours], parse_sizes(["batch=3", f"x:3x5x{tiny.WIDTH}"]))
    ir.save(ours, tmp_path / "ours.onnx")
    found = onnx.load(tmp_path / "ours.onnx").graph
    assert list(found.input) == list(theirs.graph.input)
    assert list(found.output) == list(theirs.graph.output)
