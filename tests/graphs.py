"""Graphs written as ONNX text, and what recovery finds in them, in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from numpy.typing import ArrayLike
from onnx import numpy_helper

from graphprune.architecture import Architecture, Block
from graphprune.recover import recover

STREAM = "float[batch, sequence, 8]"
CONSTANTS: dict[str, ArrayLike] = {
    "two": np.float32(2), "half": np.float32(0.5), "tiny": np.float32(1e-5), "one": np.float32(1),
    "root2": np.float32(2**0.5), "minus_half": np.float32(-0.5), "last": np.int64([-1]),
}  # fmt: skip


def proto(
    body: str, *, inputs: str = f"{STREAM} x", outputs: str = f"{STREAM} y", opset: int = 17,
    constants: Mapping[str, ArrayLike] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """A model of these nodes.

    A name that ends in its shape (`up_8x24`, `gamma_8`) and that nobody defines is a random weight;
    names in `CONSTANTS` and `constants` are constants.
    """
    domains = f'["" : {opset}, "com.microsoft" : 1]'
    text = f"<ir_version: 9, opset_import: {domains}> written ({inputs}) => ({outputs}) {{\n{body}\n}}"
    model = onnx.parser.parse_model(text)
    known = dict(CONSTANTS) | dict(constants or {})
    defined = {v.name for v in model.graph.input} | {o for n in model.graph.node for o in n.output}
    random = np.random.default_rng(0)
    for name in dict.fromkeys(i for node in model.graph.node for i in node.input):
        if name and name not in defined:
            value = known[name] if name in known else random.normal(0, 0.3, _shape(name)).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def _shape(name: str) -> tuple[int, ...]:
    found = re.search(r"_(\d+(?:x\d+)*)$", name)
    assert found, f"'{name}' is neither defined nor named after a shape"
    return tuple(int(size) for size in found[1].split("x"))


def written(body: str, **options: object) -> ir.Model:
    """The same in memory."""
    return ir.from_proto(proto(body, **options))  # type: ignore[arg-type]


def attention(stream: str, out: str) -> str:
    """One-head self-attention, its names after `out`."""
    return f"""
    {out}_q = MatMul ({stream}, {out}_q_8x8)
    {out}_k = MatMul ({stream}, {out}_k_8x8)
    {out}_v = MatMul ({stream}, {out}_v_8x8)
    {out}_t = Transpose <perm = [0, 2, 1]> ({out}_k)
    {out}_scores = MatMul ({out}_q, {out}_t)
    {out}_p = Softmax <axis = -1> ({out}_scores)
    {out}_c = MatMul ({out}_p, {out}_v)
    {out} = MatMul ({out}_c, {out}_o_8x8)
    """


def ffn(stream: str, out: str) -> str:
    """Two linears and a ReLU."""
    return f"""
    {out}_up = MatMul ({stream}, {out}_up_8x24)
    {out}_act = Relu ({out}_up)
    {out} = MatMul ({out}_act, {out}_down_24x8)
    """


def norm(stream: str, out: str) -> str:
    """A LayerNormalization op."""
    return f"{out} = LayerNormalization ({stream}, {out}_gamma_8, {out}_beta_8)\n"


def summary(model: ir.Model) -> str:
    """`attention:pre ffn:pre | conv:none!`: the blocks of every stack, "!" where not droppable."""
    return in_words(recover(model))


def in_words(architecture: Architecture) -> str:
    return " | ".join(
        " ".join(f"{b.kind}:{b.placement}{'' if b.droppable else '!'}" for b in stack.blocks)
        for stack in architecture.stacks
    )


def only_block(model: ir.Model) -> Block:
    (block,) = recover(model).blocks
    return block
