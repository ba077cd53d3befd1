from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.workload import work


def node(
    op: str, *inputs: tuple[int, ...] | None, domain: str = "", **attributes: ir.Attr | int | str
) -> ir.Node:
    """A node; inputs with a shape are weights of that shape."""
    values = [
        ir.val(f"v{i}", const_value=ir.tensor(np.zeros(shape, np.float32))) if shape else ir.val(f"v{i}")
        for i, shape in enumerate(inputs)
    ]
    return ir.node(op, values, attributes, domain=domain)


@pytest.mark.parametrize(
    ("made", "inputs", "outputs", "macs"),
    [
        (node("MatMul", None, (6, 7)), [(2, 5, 6)], [(2, 5, 7)], 2 * 5 * 6 * 7),
        (node("MatMul", None, (6, 7)), [(2, 5, 6), (6, 7)], [(2, 5, 7)], 2 * 5 * 6 * 7),
        (node("MatMul", None, None), [(2, 5, 6), (2, 6, 5)], [(2, 5, 5)], 2 * 5 * 5 * 6),
        (node("Gemm", None, (6, 7), (7,), transA=1), [(6, 5), (7,)], [(5, 7)], 5 * 6 * 7),
        (node("Conv", None, (8, 3, 2, 2)), [(1, 3, 9, 9)], [(1, 8, 8, 8)], 8 * 64 * 12),
        (node("ConvTranspose", None, (3, 8, 2, 2)), [(1, 3, 4, 4)], [(1, 8, 8, 8)], 48 * 32),
        (node("Einsum", None, None, equation="bid,bjd->bij"), [(2, 3, 4), (2, 5, 4)], [(2, 3, 5)], 120),
        (node("Einsum", None, (4, 5), equation="...d,de->...e"), [(2, 3, 4)], [(2, 3, 5)], 120),
        (node("Attention", None, (8, 24), domain="com.microsoft"), [(2, 5, 8)], [(2, 5, 8)],
         2 * 5 * 8 * 24 + 2 * (2 * 5 * 8) * 5),
        (node("GroupQueryAttention", None, None, None, None, None, domain="com.microsoft"),
         [(1, 1, 8), (1, 1, 4), (1, 1, 4), (1, 2, 6, 2), (1, 2, 6, 2)],
         [(1, 1, 8), (1, 2, 7, 2), (1, 2, 7, 2)], 2 * 8 * 7),
        (node("Add", None, None), [(2, 5), (2, 5)], [(2, 5)], 0),
        (node("MatMul", None, None), [], [], 0),
    ],
)  # fmt: skip
def test_work(
    made: ir.Node, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]], macs: int
) -> None:
    assert work(made, inputs, outputs, 0).macs == macs


def test_bytes_are_activations_and_weights_but_not_whole_tables() -> None:
    assert work(node("MatMul", None, (6, 7)), [(5, 6)], [(5, 7)], 100).bytes == 100 + 4 * 42
    assert work(node("Gather", (1000, 7), None), [(1000, 7), (3,)], [(3, 7)], 100).bytes == 100
