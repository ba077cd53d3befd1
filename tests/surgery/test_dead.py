from __future__ import annotations

from graphprune.surgery import sweep
from tests.graphs import written
from tests.passes.written import text


def test_to_a_fixpoint() -> None:
    model = written("a = Relu (x) b = MatMul (a, w_8x8) c = Neg (b) y = Abs (x)")
    sweep(model)
    assert text(model) == text(written("y = Abs (x)"))
    assert not model.graph.initializers


def test_inputs_stay() -> None:
    model = written("y = Abs (x)", inputs="float[batch, sequence, 8] x, float[4] unread")
    sweep(model)
    assert [value.name for value in model.graph.inputs] == ["x", "unread"]


def test_opset_imports_that_nobody_uses() -> None:
    model = written("a = com.microsoft.QuickGelu (x) y = Abs (x)")
    sweep(model)
    assert dict(model.graph.opset_imports) == {"": 17}


IF = """
c = Constant <value = bool {{1}}> ()
w = Relu (x)
dead = Neg (x)
{0} = If (c) <
    then_branch = t () => (float[batch, sequence, 8] ty) {{ ta = Neg (w) tdead = Abs (dead) ty = Abs (ta) }},
    else_branch = e () => (float[batch, sequence, 8] ey) {{ edead = MatMul (x, m_8x8) ey = Abs (w) }}
>
"""


def test_in_subgraphs_and_what_only_their_dead_nodes_read() -> None:
    model = written(IF.format("y"), constants={"m_8x8": [[0.0]]})
    sweep(model)
    kinds = sorted(node.op_type for node in model.graph.all_nodes())
    assert kinds == ["Abs", "Abs", "Constant", "If", "Neg", "Relu"]
    assert not model.graph.initializers


def test_a_dead_node_with_subgraphs() -> None:
    model = written(IF.format("unread") + "y = Abs (x)", constants={"m_8x8": [[0.0]]})
    sweep(model)
    assert text(model) == text(written("y = Abs (x)"))


def test_a_node_of_which_one_output_is_read_stays() -> None:
    model = written("a, b = Split <axis = 2, num_outputs = 2> (x) y = Concat <axis = 2> (b, b)", opset=18)
    sweep(model)
    assert [node.op_type for node in model.graph] == ["Split", "Concat"]
