"""An oracle for files without a torch model: a block whose last linear maps to zero adds nothing.

The file is changed in its weights alone, so all of its nodes still run; its outputs are those of
a file from which the block is gone. Works for quantized and fused files too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

import graphprune as gp
from graphprune.architecture import Architecture, Block, Branch, Linear
from graphprune.constants import constant_shape
from graphprune.inputs import make_inputs
from tools.zoo import NotExportableError
from tools.zoo_feeds import Feeds, make_feeds
from tools.zoo_quantized import _graphs, convert

# Ops that take the scale of their weights as an input; zero makes them maps to zero.
SCALES = {
    "MatMulNBits": 2, "DynamicQuantizeMatMul": 2, "MatMulIntegerToFloat": 3, "QLinearConv": 4,
    "QLinearMatMul": 4, "QGemm": 4, "QAttention": 4,
}  # fmt: skip
ZERO_POINTS = {"MatMulInteger": 3, "ConvInteger": 3}
SHAPES = ((2, 6, 0), (1, 5, 3), (1, 1, 2))  # batch, sequence, past: one that the file can run


def droppable_steps(architecture: Architecture) -> Iterator[tuple[dict[str, object], list[str]]]:
    """A recipe's step for every block that can go alone, and every layer whose norms go with its branches.

    With each the ids of the blocks.
    """
    passes = {
        "ffn": ("drop_ffn", {}),
        "attention": ("drop_attention", {"which": "self"}),
        "cross_attention": ("drop_attention", {"which": "cross"}),
    }
    for id, kind, droppable in dict.fromkeys((b.id, b.kind, b.droppable) for b in architecture.blocks):
        if droppable and kind in passes:
            name, options = passes[kind]
            yield {name: {"blocks": id, **options}}, [id]
    for stack in architecture.stacks:
        for layer in stack.layers:
            alone = len(layer.blocks) == len([*stack.blocks])
            if not alone and all(b.droppable and b.placement != "post" for b in layer.blocks):
                yield {"drop_layers": f"{stack.name}.{layer.index}"}, [block.id for block in layer.blocks]


def zero(architecture: Architecture, ids: Sequence[str]) -> None:
    """Make all copies of these blocks add zero to the stream."""
    for block in architecture.blocks:
        if block.id in ids:
            for branch in block.branches:
                _zero_branch(branch, block)


def _zero_branch(branch: Branch, block: Block) -> None:
    ends = [linear for linear in branch.linears if linear.role in {"o", "down"}]
    for linear in ends or branch.linears[-1:]:
        _zero_linear(linear)
    for node, index in dict.fromkeys((bias.node, bias.index) for bias in branch.biases):
        _zero_input(node, index + 1 if node.op_type == "QLinearAdd" else index)  # its scale
    for norm in branch.norms:
        for node in norm.nodes if norm.role == "branch_post" else ():
            for index, value in enumerate(node.inputs):
                if value is not None and value is norm.bias:
                    _zero_input(node, index)


def _zero_linear(linear: Linear) -> None:
    node = linear.node
    if node.op_type in SCALES:
        _zero_input(node, SCALES[node.op_type])
        return
    if node.op_type in ZERO_POINTS and len(node.inputs) > ZERO_POINTS[node.op_type]:
        node.replace_input_with(ZERO_POINTS[node.op_type], None)
    for weight in linear.weights:
        _zero_input(node, next(i for i, value in enumerate(node.inputs) if value is weight))


def _zero_input(node: ir.Node, index: int) -> None:
    """Let a node read zeros of the same shape and type; who else reads the constant is not touched."""
    value = node.inputs[index]
    assert value is not None and isinstance(node.graph, ir.Graph)
    shape = constant_shape(value)
    tensor = ir.convenience.get_const_tensor(value)
    kind = value.dtype or (tensor.dtype if tensor is not None else _dequantized(value))
    assert shape is not None, f"{node.name}: the shape of input {index} is not known"
    name = f"{node.name}_{node.op_type}_{id(node)}_zeros_{index}"
    zeros = ir.Tensor(np.zeros(tuple(shape), kind.numpy()), name=name, dtype=kind)
    new = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(zeros.shape), const_value=zeros)
    node.graph.register_initializer(new)
    node.replace_input_with(index, new)


def _dequantized(value: ir.Value) -> ir.DataType:
    """The type of a constant that is computed from stored ones: that of its scale."""
    node = value.producer()
    while node is not None and node.op_type != "ConstantOfShape":
        source = node.inputs[1] if node.op_type in {"DequantizeLinear", "Mul"} else node.inputs[0]
        assert source is not None
        if source.dtype is not None:
            return source.dtype
        node = source.producer()
    return ir.DataType.FLOAT


def open_plain(path: Path) -> ort.InferenceSession:
    """A session that optimizes nothing: the same nodes, the same rounding.

    Bfloat16, for which a CPU has hardly any kernel, is computed in float32, and the least number of a
    mask, which the conversion to bfloat16 made −∞, is a number again: −∞ × 0 is none.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model: str | bytes = str(path)
    if "bf16" in str(path):
        proto = onnx.load(path)
        convert(proto, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT)
        _make_finite(proto)
        model = proto.SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _make_finite(model: onnx.ModelProto) -> None:
    for graph in _graphs(model.graph):
        attributes = (a for node in graph.node for a in node.attribute if a.HasField("t"))
        for tensor in (*graph.initializer, *(a.t for a in attributes)):
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and np.isinf(array).any():
                tensor.CopyFrom(numpy_helper.from_array(np.nan_to_num(array), tensor.name))


def sizes_for(path: Path) -> dict[str, int]:
    """Sizes for `make_feeds` that a file of the zoo runs with, and puts out numbers.

    Some fused ops have no kernel for a CPU, some take one sequence at a time only. Raises
    `NotExportableError` where there are none.
    """
    problem = "what it puts out is no number"
    for batch in (2, 1):
        try:
            session = open_plain(path)
            past = 3 if any(value.name.startswith("past") for value in session.get_inputs()) else 0
            sizes = {"batch": batch, "past": past}
            outputs = run(session, make_feeds(session, **sizes)).values()
        except Exception as error:  # the runtime's own exceptions share no public base
            problem = str(error)
        else:
            if not any(np.isnan(value.astype(np.float32)).any() for value in outputs):
                return sizes
    raise NotExportableError(f"it does not run: {problem}")


def feeds_for(path: Path) -> Feeds:
    """Random inputs that the file runs on."""
    session = open_plain(path)
    problem = ""
    for batch, sequence, past in SHAPES:
        feeds = make_inputs(path, batch=batch, sequence=sequence, past=past)
        try:
            session.run(None, feeds)
        except Exception as error:  # the runtime's own exceptions share no public base
            problem = str(error)
        else:
            return feeds
    raise AssertionError(f"{path.name} runs on no inputs: {problem}")


def distance(source: Path, step: dict[str, object], ids: Sequence[str], folder: Path, feeds: Feeds) -> float:
    """How far the pruned file is from the zeroed one, over max(1, the largest value), of all outputs."""
    twin = gp.load(source)
    architecture = gp.inspect(twin)[0].architecture
    zero(architecture, ids)
    expected = run(open_plain(twin.save(folder / "zeroed.onnx", overwrite=True)), feeds)
    bundle = gp.load(source)
    pruned = open_plain(gp.prune(bundle, **step).save(folder / "pruned.onnx", run=False, overwrite=True))
    caches = [cache for block in architecture.blocks if block.id in ids for cache in block.caches]
    read = {name for cache in caches for name in cache.input_names}
    written = {name for cache in caches for name in cache.output_names}
    inputs = _kept([*feeds], read, len(pruned.get_inputs()))
    given = {value.name: feeds[name] for value, name in zip(pruned.get_inputs(), inputs, strict=True)}
    got = list(run(pruned, given).values())
    outputs = _kept([*expected], written, len(got))
    return max(apart(value, expected[name]) for value, name in zip(got, outputs, strict=True))


def _kept(names: list[str], gone: set[str], count: int) -> list[str]:
    """The names that are left, in order; inputs that others read as well stay."""
    return names if len(names) == count else [name for name in names if name not in gone]


def run(session: ort.InferenceSession, feeds: Feeds) -> Feeds:
    """The outputs by name."""
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def apart(value: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, over max(1, the largest value)."""
    assert value.shape == expected.shape
    if not value.size:
        return 0.0
    left, right = value.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(left - right).max() / max(1.0, np.abs(right).max()))
