"""Sizes of values as names and numbers, where the graph knows them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphprune.dataflow import Flow

if TYPE_CHECKING:
    import onnx

Dims = tuple[str | int, ...]
log = logging.getLogger(__name__)

TRACE_REACH = 200
# Weights larger than this stay out of the copy that shape inference works on.
SMALL_TENSOR_BYTES = 1024
# Inference cannot divide names. Heights and widths that are free get a number of their own instead, in
# which the strides of an image model can be read off: a power of two times an odd number.
IMAGE_RANK = 4
STAND_IN_FACTORS = (3, 5, 7, 11)
STAND_IN_SCALE = 2048


class Shapes:
    """Shapes of a model's values. Inference runs once, and only if a shape is asked for that is not there.

    `traced` remembers the token dims of streams.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self.traced: dict[tuple[Flow, int], Dims] = {}

    def of(self, value: ir.Value | None) -> Dims | None:
        """The dims of a value: numbers and names; None where nobody knows."""
        if value is None:
            return None
        dims = as_dims(value)
        return dims if dims is not None else self._inferred.get(value.name or "")

    @cached_property
    def _inferred(self) -> dict[str, Dims]:
        """Shapes by `onnx.shape_inference`, on a copy without weights."""
        import onnx

        try:
            proto = _weightless(self._model, self._stand_ins)
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except Exception as error:  # inference is a service here: without it, sizes go by other means
            log.debug("shape inference failed: %s", error)
            return {}
        found: dict[str, Dims] = {}
        for info in proto.graph.value_info:
            shape = info.type.tensor_type.shape
            dims = tuple(d.dim_param or d.dim_value for d in shape.dim)
            if dims and all(d not in {"", 0} for d in dims):
                found[info.name] = self._readable(dims)
        return found

    def _readable(self, dims: Dims) -> Dims:
        """Inference calls what it cannot name `unk__7`; the first dim of all is the batch."""
        first = next((as_dims(v) or ("batch",) for v in self._model.graph.inputs), ("batch",))[0]
        known = (first if i == 0 and _unnamed(dim) else dim for i, dim in enumerate(dims))
        sized = (self._parts.get(dim, dim) for dim in known)
        return tuple(f"dim{str(d).removeprefix('unk__')}" if _unnamed(d) else d for d in sized)

    @cached_property
    def _stand_ins(self) -> dict[str, int]:
        """Numbers for the free heights and widths of images."""
        images = (v for v in self._model.graph.inputs if v.shape is not None and v.shape.rank() == IMAGE_RANK)
        floats = (v for v in images if v.dtype is not None and v.dtype.is_floating_point())
        names = dict.fromkeys(d for v in floats for d in (as_dims(v) or ())[2:] if isinstance(d, str))
        return {n: f * STAND_IN_SCALE for n, f in zip(names, STAND_IN_FACTORS, strict=False)}

    @cached_property
    def _parts(self) -> dict[str | int, str]:
        """What these numbers are called, and their halves and quarters: `height`, `height/2`, `height/4`."""
        parts: dict[str | int, str] = {}
        for name, size in self._stand_ins.items():
            strides = (2**power for power in range(STAND_IN_SCALE.bit_length()))
            parts.update((size // s, f"{name}/{s}" if s > 1 else name) for s in strides)
        return parts


def _weightless(model: ir.Model, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The model as a protobuf message in which large weights are inputs, and these dims have a size."""
    import onnx

    proto = onnx.ModelProto()
    graph = model.graph
    proto.ir_version = model.ir_version
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items())
    proto.graph.name = "shapes"
    for value in [*graph.inputs, *graph.initializers.values()]:
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= SMALL_TENSOR_BYTES:
            ir.serde.serialize_tensor_into(proto.graph.initializer.add(), tensor)
        elif tensor is not None:
            shape = list(tensor.shape.numpy())
            info = onnx.helper.make_tensor_value_info(value.name or "", tensor.dtype.value, shape)
            proto.graph.input.append(info)
        else:
            ir.serde.serialize_value_into(proto.graph.input.add(), value)
    for dim in (d for info in proto.graph.input for d in info.type.tensor_type.shape.dim):
        if dim.dim_param in sizes:
            dim.dim_value = sizes[dim.dim_param]
    for node in graph:
        ir.serde.serialize_node_into(proto.graph.node.add(), node)
    return proto


def as_dims(value: ir.Value) -> Dims | None:
    """The dims that a value itself states, all of them or None."""
    if value.shape is None:
        return None
    dims = tuple(dim if isinstance(dim, int) else dim.value or "" for dim in value.shape)
    return None if any(map(_unnamed, dims)) else dims


def _unnamed(dim: str | int) -> bool:
    """Whether a dim says nothing: inference's own names, Paddle's −1 and `?`."""
    return dim < 0 if isinstance(dim, int) else dim in {"", "?"} or dim.startswith("unk__")


def token_dims(flow: Flow, number: int, shapes: Shapes) -> Dims:
    """The dims that number the tokens of a stream (batch and sequence, or what they are called).

    They are those of the graph input that the stream is computed from: ids [batch, sequence],
    or states [batch, sequence, width]. A stream of image patches has its own shape.
    """
    value = flow.values[number]
    stated = as_dims(value) if value is not None else None
    if stated is not None and len(stated) > 1:
        return stated[:-1]
    traced = _traced_dims(flow, number, shapes.traced)
    if traced is None:
        inferred = shapes.of(value)
        traced = inferred[:-1] if inferred is not None and len(inferred) > 1 else ("batch", "sequence")
    shapes.traced[flow, number] = traced
    return traced


def _traced_dims(flow: Flow, number: int, known: dict[tuple[Flow, int], Dims]) -> Dims | None:
    """Go back to a stream whose dims are known, or to the input."""
    work, seen = [number], {number}
    for current in work:
        producer = flow.producers[current]
        value = flow.values[current]
        if (flow, current) in known:
            return known[flow, current]
        if producer is not None:
            fresh = [n for n in dict.fromkeys(producer.inputs) if n not in seen]
            seen.update(fresh)
            work.extend(fresh)
        elif value is not None and value.shape is not None and value.shape.rank() in {2, 3}:
            dims = as_dims(value) or ()
            if 2 <= len(dims) <= 3:
                return dims[:2]
        if len(seen) > TRACE_REACH:
            break
    return None
