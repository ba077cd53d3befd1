from __future__ import annotations

import pytest

from graphprune.errors import EditError
from graphprune.recover import recover
from graphprune.surgery import arrange_layers
from tests.graphs import STREAM, ffn, written
from tests.passes.written import text
from tests.surgery.test_values import valid

BODY = f"{ffn('x', 'f')} h = Add (x, f) {ffn('h', 'g')} y = Add (h, g)"


def arranged(body: str, order: list[int], **options: object) -> list[str]:
    """The nodes of a model whose layers run in another order."""
    model = written(body, **options)
    found = recover(model)
    arrange_layers(found.stacks[0], found, order)
    return text(valid(model))


def test_the_order_that_there_is() -> None:
    assert arranged(BODY, [0, 1]) == text(written(BODY))


def test_layers_left_out_are_passed_by() -> None:
    assert arranged(BODY, [1]) == text(written(f"{ffn('x', 'g')} y = Add (x, g)"))


def test_an_output_in_the_middle_stays_where_it_was() -> None:
    outputs = f"{STREAM} h, {STREAM} y"
    model = written(BODY, outputs=outputs)
    found = recover(model)
    arrange_layers(found.stacks[0], found, [1, 0])
    assert {value.name for value in valid(model).graph.outputs} == {"h", "y"}
    assert sum(node.op_type == "Relu" for node in model.graph) == 2


def test_a_shape_read_in_the_middle_is_read_at_the_start() -> None:
    read = "s = Shape (h) r = Reshape (d, s) y = Add (h, r)"
    body = f"{ffn('x', 'f')} h = Add (x, f) {ffn('h', 'd')} {read}"
    nodes = arranged(body, [1, 0])
    assert next(line for line in nodes if "Shape <" in line).endswith("(x)")


def with_a_choice(read: str) -> str:
    """Two FFNs; in the first one, an If chooses what is done to `read`."""
    return f"""
    c = Constant <value = bool {{1}}> ()
    u = MatMul (x, up_8x24)
    g = If (c) <then_branch = t () => (float[batch, sequence, size] a) {{ a = Relu ({read}) }},
                else_branch = e () => (float[batch, sequence, size] b) {{ b = Abs ({read}) }}>
    s = ReduceSum <keepdims = 1> (g, last) v = Mul (u, s)
    m = MatMul (v, down_24x8) h = Add (x, m) {ffn("h", "k")} y = Add (h, k)
    """


@pytest.mark.parametrize(
    ("read", "order", "problem"),
    [
        ("u", [0, 0, 1], "holds a subgraph and cannot run twice"),
        ("x", [1, 0], "reads the stream: it cannot move"),
    ],
)
def test_subgraphs_that_cannot_go_along(read: str, order: list[int], problem: str) -> None:
    found = recover(written(with_a_choice(read)))
    stack = found.stacks[0]
    assert len(stack.layers) == 2
    with pytest.raises(EditError, match=problem):
        arrange_layers(stack, found, order)


def test_a_subgraph_that_reads_inside_its_layer_goes_along() -> None:
    nodes = arranged(with_a_choice("u"), [1, 0])
    kinds = [line.partition(" = ")[2].partition(" ")[0] for line in nodes]
    assert kinds.index("If") > kinds.index("Relu")
