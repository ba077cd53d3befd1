from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from graphprune.errors import EditError
from graphprune.surgery import replace_value, sweep
from graphprune.surgery.values import current, note_moved, place_of, sort
from tests.graphs import STREAM, written
from tests.passes.written import text


def value(model: ir.Model, name: str) -> ir.Value:
    """The value of that name."""
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return next(v for v in values if v.name == name)


def valid(model: ir.Model) -> ir.Model:
    """The model, swept and checked."""
    sweep(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def test_all_readers_read_the_new_value() -> None:
    model = written("a = Relu (x) b = Neg (a) c = Abs (a) y = Add (b, c)")
    replace_value(value(model, "a"), value(model, "x"))
    assert text(valid(model)) == text(written("b = Neg (x) c = Abs (x) y = Add (b, c)"))


def test_an_output_keeps_name_type_and_shape() -> None:
    model = written("a = Neg (x) y = Relu (a)")
    kept = ir.serde.serialize_value(value(model, "y"))
    replace_value(value(model, "y"), value(model, "a"))
    (output,) = valid(model).graph.outputs
    assert ir.serde.serialize_value(output) == kept
    assert text(model) == text(written("y = Neg (x)"))


def test_an_output_that_would_be_an_input_is_copied() -> None:
    model = written("y = Relu (x)")
    replace_value(value(model, "y"), value(model, "x"))
    assert text(valid(model)) == text(written("y = Identity (x)"))


def test_an_output_that_would_be_another_output_is_copied() -> None:
    outputs = f"{STREAM} y, {STREAM} z"
    model = written("z = Neg (x) y = Relu (z)", outputs=outputs)
    replace_value(value(model, "y"), value(model, "z"))
    assert [v.name for v in valid(model).graph.outputs] == ["y", "z"]
    assert text(model) == text(written("z = Neg (x) y = Identity (z)", outputs=outputs))


def test_an_output_that_is_read_too() -> None:
    outputs = f"{STREAM} y, {STREAM} z"
    model = written("a = Neg (x) y = Relu (a) z = Abs (y)", outputs=outputs)
    replace_value(value(model, "y"), value(model, "a"))
    assert text(valid(model)) == text(written("y = Neg (x) z = Abs (y)", outputs=outputs))


def test_replaced_twice() -> None:
    model = written("a = Neg (x) b = Relu (a) y = Abs (b)")
    a, b, x = (value(model, name) for name in "abx")
    replace_value(b, a)
    replace_value(a, x)
    replace_value(a, a)
    assert current(b) is x and current(a) is x
    assert text(valid(model)) == text(written("y = Abs (x)"))


def test_operands_of_a_node_taken_apart_are_found() -> None:
    model = written("y = Add (x, b_8)")
    node = model.graph.node(0)
    bias = node.inputs[1]
    assert bias is not None
    assert place_of(bias, node, 1) == (node, 1)
    new = ir.node("Add", [bias, value(model, "x")])
    model.graph.insert_after(node, new)
    replace_value(node.outputs[0], new.outputs[0])
    model.graph.remove(node, safe=True)
    assert place_of(bias, node, 1) is None
    note_moved(new, [])
    assert place_of(bias, new, 0) == (new, 0)


def test_a_circle_cannot_be_sorted() -> None:
    model = written("a = Neg (x) b = Relu (a) y = Abs (b)")
    nodes = list(model.graph)
    nodes[0].replace_input_with(0, nodes[1].outputs[0])
    with pytest.raises(EditError, match="read what is computed from it"):
        sort(model.graph)
