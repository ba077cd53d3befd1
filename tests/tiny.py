"""Small things for tests: architectures built by hand, and a residual model made of numpy weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphprune.architecture import Architecture, Block, BlockKind, Layer, Stack
from graphprune.macs import Macs

WIDTH = 8


def architecture(stacks: Sequence[tuple[str, Sequence[Sequence[BlockKind]]]]) -> Architecture:
    """Stacks of layers, for each layer the kinds of its blocks. A name given twice is a copy."""
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    return Architecture(model, tuple(stack(model.graph, name, layers) for name, layers in stacks))


def stack(graph: ir.Graph, name: str, layers: Sequence[Sequence[BlockKind]]) -> Stack:
    return Stack(
        name,
        "",
        graph,
        tuple(
            Layer(index, tuple(block(f"{name}.{index}.{kind}", kind) for kind in kinds))
            for index, kinds in enumerate(layers)
        ),
    )


def block(id: str, kind: BlockKind) -> Block:
    values = ir.val("in"), ir.val("branch")
    join = ir.Node("", "Add", values, name=f"{id}/add")
    return Block(
        id=id,
        kind=kind,
        join=join,
        sums=(join,),
        stream_in=values[0],
        stream_out=join.outputs[0],
        branches=(),
        norms=(),
        placement="pre",
        nodes=(join,),
        parameters=10,
        macs=Macs.of(3, "batch", "sequence"),
    )


def weights(layers: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of `model`, by name: attention wq, wk, wv, wo and FFN up, down of every layer."""
    random = np.random.default_rng(seed)
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH))
    shapes |= {"up": (WIDTH, 3 * WIDTH), "down": (3 * WIDTH, WIDTH)}
    return {
        f"{index}.{name}": random.normal(0, 0.3, shape).astype(np.float32)
        for index in range(layers)
        for name, shape in shapes.items()
    }


def model(layers: int = 3, seed: int = 0) -> onnx.ModelProto:
    """x [batch, sequence, 8] → y: layers of one-head attention and a ReLU FFN, residual, without norms."""
    nodes, stream = [], "x"
    for i in range(layers):

        def add(op: str, inputs: list[str], out: str, i: int = i, **attributes: object) -> str:
            nodes.append(helper.make_node(op, inputs, [f"{i}/{out}"], f"{i}/{out}_{op}", **attributes))
            return f"{i}/{out}"

        q, k, v = (add("MatMul", [stream, f"{i}.w{one}"], one) for one in "qkv")
        scores = add("MatMul", [q, add("Transpose", [k], "kt", perm=[0, 2, 1])], "scores")
        mixed = add("MatMul", [add("Softmax", [scores], "probs", axis=-1), v], "mixed")
        stream = add("Add", [stream, add("MatMul", [mixed, f"{i}.wo"], "o")], "after_attention")
        inner = add("Relu", [add("MatMul", [stream, f"{i}.up"], "up")], "act")
        stream = add("Add", [stream, add("MatMul", [inner, f"{i}.down"], "down")], "after_ffn")
    nodes.append(helper.make_node("Identity", [stream], ["y"], "out"))
    shape = ["batch", "sequence", WIDTH]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights(layers, seed).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(path: Path, layers: int = 3, seed: int = 0) -> Path:
    onnx.save(model(layers, seed), path)
    return path


def reference(
    x: np.ndarray,
    layers: int = 3,
    seed: int = 0,
    without: Mapping[int, str] | None = None,
    order: Sequence[int] | None = None,
) -> np.ndarray:
    """What `model` puts out, in numpy.

    `without` maps layers to the blocks left out (`attention ffn`), `order` lists the layers as they run.
    """
    w, without = weights(layers, seed), without or {}
    for i in range(layers) if order is None else order:
        if "attention" not in without.get(i, ""):
            q, k, v = (x @ w[f"{i}.w{one}"] for one in "qkv")
            scores = q @ k.swapaxes(1, 2)
            e = np.exp(scores - scores.max(axis=-1, keepdims=True))
            x = x + (e / e.sum(axis=-1, keepdims=True)) @ v @ w[f"{i}.wo"]
        if "ffn" not in without.get(i, ""):
            x = x + np.maximum(x @ w[f"{i}.up"], 0) @ w[f"{i}.down"]
    return x
