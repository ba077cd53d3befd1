"""Quantized and half-precision forms of an exported file, one function a form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# What is left in fp32 of a graph of mixed precision: the norms and softmaxes.
ISLANDS = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt", "Div")
BLOCK = 16
HUGE = 1e6


def dynamic(source: Path, target: Path) -> None:
    """Int8 weights, activations quantized as they come: DynamicQuantizeLinear and MatMulInteger."""
    from onnxruntime.quantization import quantize_dynamic

    # Fused operators have no shapes to infer types from.
    quantize_dynamic(onnx.load(source), target, extra_options={"DefaultTensorType": TensorProto.FLOAT})


def blocks(source: Path, target: Path, *, symmetric: bool, tables: bool = False, qdq: bool = False) -> None:
    """Int4 weights in blocks: MatMulNBits, with `tables` GatherBlockQuantized too, or DequantizeLinear."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config: Any = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK,
        is_symmetric=symmetric,
        quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator,
        op_types_to_quantize=("MatMul", "Gather") if tables else ("MatMul",),
    )
    quantizer: Any = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    onnx.save(quantizer.model.model, target)


def static(source: Path, target: Path, *, qdq: bool) -> None:
    """Int8 activations calibrated on one random batch: Q/DQ pairs, or QLinear operators.

    Nodes that read or put out huge numbers (those that stand for "masked") stay as they are.
    """
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    from tools.zoo_feeds import Feeds, make_feeds

    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    past = 3 if any(value.name.startswith("past") for value in session.get_inputs()) else 0
    feeds = make_feeds(session, past=past)
    batches = [feeds]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One random batch."""

        def get_next(self) -> Feeds | None:
            return batches.pop() if batches else None

    form = QuantFormat.QDQ if qdq else QuantFormat.QOperator
    masking = _masking(source, feeds)
    quantize_static(onnx.load(source), target, Reader(), quant_format=form, nodes_to_exclude=masking)


def _masking(source: Path, feeds: dict[str, np.ndarray]) -> list[str]:
    """The nodes of a main graph that read or put out huge numbers."""
    import onnxruntime as ort

    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in model.graph.value_info if value.name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    values = zip(names, session.run(None, feeds), strict=True)
    large = {n for n, v in values if v.dtype == np.float32 and v.size and not np.abs(v).max() < HUGE}
    return [node.name for node in model.graph.node if large & {*node.input, *node.output}]


def weights(source: Path, target: Path, *, dequantize: bool) -> None:
    """Int8 weights of MatMul and Gemm, a scale a channel: back by Cast and Mul, or by DequantizeLinear."""
    model = onnx.load(source)
    for graph in _graphs(model.graph):
        stored = {tensor.name: tensor for tensor in graph.initializer}
        for index, node in reversed([*enumerate(graph.node)]):
            tensor = stored.get(node.input[1]) if node.op_type in {"MatMul", "Gemm"} else None
            if tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT:
                turned = any(a.name == "transB" and a.i for a in node.attribute)
                tensors, made = _small(tensor, f"{node.output[0]}_weight", 1 - turned, dequantize=dequantize)
                graph.initializer.extend(tensors)
                node.input[1] = made[-1].output[0]
                for one in reversed(made):
                    graph.node.insert(index, one)
        _drop_unread(model.graph, graph)
    onnx.save(model, target)


def _small(
    tensor: onnx.TensorProto, name: str, axis: int, *, dequantize: bool
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """A matrix in int8 with its scales along `axis`, and the nodes that bring it back as the value `name`."""
    array = numpy_helper.to_array(tensor)
    scale = np.maximum(np.abs(array).max(1 - axis, keepdims=True), 1e-6).astype(np.float32) / 127
    small = np.round(array / scale).astype(np.int8)
    shaped = scale.reshape(-1) if dequantize else scale
    names = [f"{name}_int8", f"{name}_scale"]
    tensors = [numpy_helper.from_array(a, n) for a, n in zip((small, shaped), names, strict=True)]
    if dequantize:
        return tensors, [helper.make_node("DequantizeLinear", names, [name], name=f"{name}_node", axis=axis)]
    cast = helper.make_node("Cast", names[:1], [f"{name}_cast"], name=f"{name}_cast", to=TensorProto.FLOAT)
    scaled = helper.make_node("Mul", [f"{name}_cast", names[1]], [name], name=f"{name}_mul")
    return tensors, [cast, scaled]


def _drop_unread(model: onnx.GraphProto, graph: onnx.GraphProto) -> None:
    read = {name for one in _graphs(model) for node in one.node for name in node.input}
    read |= {value.name for one in _graphs(model) for value in one.output}
    for tensor in [*graph.initializer]:
        if tensor.name not in read:
            graph.initializer.remove(tensor)


def half(source: Path, target: Path, *, keep_io: bool, islands: bool = False) -> None:
    """Float16 by ONNX Runtime's converter; with `islands`, norms and softmaxes stay in fp32 between Casts."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, *(ISLANDS if islands else ())]
    model: Any = convert_float_to_float16(
        onnx.load(source), keep_io_types=keep_io, op_block_list=blocked, disable_shape_infer=False
    )
    for graph in _graphs(model.graph):
        seen: set[str] = set()
        for node in [*graph.node]:  # the converter casts a value twice for a node that reads it twice
            if node.output[0] in seen:
                graph.node.remove(node)
            seen.add(node.output[0])
    onnx.save(model, target)


def brain(source: Path, target: Path) -> None:
    """Bfloat16 throughout, inputs and outputs too, as an exporter writes a model that is held in it.

    Operators that do not take it at the model's opset stay in fp32 between Casts.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    floats = {name for graph in _graphs(model.graph) for name in _floats(graph)}
    for graph in _graphs(model.graph):
        for index, node in reversed([*enumerate(graph.node)]):
            if not _takes_brain(node, opsets.get(node.domain, 1), floats):
                _between_casts(graph, index, floats)
    convert(model, TensorProto.FLOAT, TensorProto.BFLOAT16)
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.doc_string == _ISLAND:
                node.attribute[0].i = TensorProto.FLOAT
    onnx.save(model, target)


_ISLAND = "into an island"


def _floats(graph: onnx.GraphProto) -> Iterator[str]:
    values = (*graph.input, *graph.output, *graph.value_info)
    yield from (v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT)
    yield from (t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT)


def _takes_brain(node: onnx.NodeProto, opset: int, floats: set[str]) -> bool:
    if not onnx.defs.has(node.op_type, node.domain) or not floats & {*node.input}:
        return True
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    formal = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.input))]
    return all("tensor(bfloat16)" in f.types for f, n in zip(formal, node.input, strict=True) if n in floats)


def _between_casts(graph: onnx.GraphProto, index: int, floats: set[str]) -> None:
    """Give a node fp32 copies of what it reads and puts out; the first kind of Cast is marked."""
    node = graph.node[index]
    for place, name in enumerate(node.output):
        if name in floats:
            node.output[place] = f"{name}_fp32"
            back = helper.make_node("Cast", [f"{name}_fp32"], [name], f"{name}_back", to=TensorProto.BFLOAT16)
            graph.node.insert(index + 1, back)
    for place, name in enumerate(node.input):
        if name in floats:
            node.input[place] = f"{node.output[0]}_{place}_fp32"
            into = helper.make_node("Cast", [name], [node.input[place]], f"{node.name}_into_{place}", to=1)
            into.doc_string = _ISLAND
            graph.node.insert(index, into)


def convert(model: onnx.ModelProto, before: int, after: int) -> None:
    """Make every float type `before` of a model `after`: weights, casts, inputs and outputs."""
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            _convert(tensor, before, after)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == before:
                value.type.tensor_type.elem_type = after
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.HasField("t"):
                _convert(attribute.t, before, after)
            if attribute.name in {"to", "dtype"} and attribute.i == before:
                attribute.i = after


def _convert(tensor: onnx.TensorProto, before: int, after: int) -> None:
    if tensor.data_type == before:
        kind = helper.tensor_dtype_to_np_dtype(after)
        array = numpy_helper.to_array(tensor).astype(np.float32).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those in its nodes."""
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.HasField("g"):
            yield from _graphs(attribute.g)
