"""What a gate asks of a run besides its mask: the phase that it is in, and how little its block would do.

A score is one number for the whole batch, the more the less its block is needed:

- the cosine between the stream before the block before it and the stream before it, the mean over all
  positions: where attention hardly turned the stream, the FFN behind it is not missed (FFN-SkipLLM, Jaiswal
  et al., 2024, https://arxiv.org/abs/2404.03865);
- what a linear router makes of the mean of the stream before it (Mixture-of-Depths, Raposo et al., 2024,
  https://arxiv.org/abs/2404.02258, has one for each token).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.slots import cache_slot
from graphprune.surgery.values import constant

Phase = Literal["all", "decode", "prefill"]
_AXES_AS_INPUT_OPSET = 18
_TINY = 1e-12  # added to products of lengths: a stream of zeros has no direction


@dataclass(frozen=True, eq=False)
class Cosine:
    """The cosine between the streams before the block before and before this one."""


@dataclass(frozen=True, eq=False)
class Router:
    """`mean of the stream @ weight + bias`; `weight` [d]."""

    weight: npt.NDArray[np.float32]
    bias: float


Score: TypeAlias = Cosine | Router


def has_phase(graph: ir.Graph, phase: Phase) -> bool:
    """Whether a graph ever is in a phase: without a cache it never decodes, and prefills if it gives one."""
    takes = any(cache_slot(value.name or "", "past") for value in graph.inputs)
    gives = any(cache_slot(value.name or "", "present") for value in graph.outputs)
    if takes:
        return phase == "all" or any(map(_is_tokens, graph.inputs))
    return phase == "all" or (phase == "prefill" and gives)


def other_phase(graph: ir.Graph, phase: Phase, nodes: list[ir.Node]) -> ir.Value:
    """Whether a run of a decoder is not in `phase`: it decodes where it takes one token on top of a cache."""
    tokens = next((value for value in graph.inputs if _is_tokens(value)), None)
    if tokens is None or not any(cache_slot(value.name or "", "past") for value in graph.inputs):
        return constant(np.array(phase == "decode"), nodes)

    def add(op: str, *operands: ir.Value) -> ir.Value:
        nodes.append(ir.node(op, operands))
        return nodes[-1].outputs[0]

    length = add("Gather", add("Shape", tokens), constant(np.array(1, np.int64), nodes))
    prefills = add("Greater", length, constant(np.array(1, np.int64), nodes))
    return prefills if phase == "decode" else add("Not", prefills)


def _is_tokens(value: ir.Value) -> bool:
    """Ids of tokens [batch, sequence], or their embeddings: the interface's names tell these from masks."""
    named = (value.name or "") in {"input_ids", "decoder_input_ids", "inputs_embeds"}
    return named and value.shape is not None and len(value.shape) > 1


def score_value(
    score: Score, streams: tuple[ir.Value, ir.Value], nodes: list[ir.Node], opset: int
) -> ir.Value:
    """The score as a float [], of the streams [..., d] before the block before and before this one."""
    writer = _Writer(nodes, opset)
    if isinstance(score, Router):
        return writer.routed(streams[1], score)
    return writer.cosine(*streams)


@dataclass(frozen=True, eq=False)
class _Writer:
    """Appends nodes that compute in float32."""

    nodes: list[ir.Node]
    opset: int

    def add(self, op: str, *operands: ir.Value, **attributes: int | list[int]) -> ir.Value:
        self.nodes.append(ir.node(op, operands, attributes or None))
        return self.nodes[-1].outputs[0]

    def number(self, array: object, kind: type[np.generic]) -> ir.Value:
        return constant(np.array(array, kind), self.nodes)

    def rows(self, stream: ir.Value, width: int) -> ir.Value:
        """A stream as float32 [positions, d]."""
        flat = self.add("Reshape", stream, self.number([-1, width] if width else [0, -1], np.int64))
        return self.add("Cast", flat, to=int(ir.DataType.FLOAT))

    def mean(self, values: ir.Value) -> ir.Value:
        """The mean over the first axis."""
        if self.opset >= _AXES_AS_INPUT_OPSET:
            return self.add("ReduceMean", values, self.number([0], np.int64), keepdims=0)
        return self.add("ReduceMean", values, axes=[0], keepdims=0)

    def routed(self, stream: ir.Value, router: Router) -> ir.Value:
        pooled = self.mean(self.rows(stream, len(router.weight)))
        weight = self.number(router.weight, np.float32)
        return self.add("Add", self.add("MatMul", pooled, weight), self.number(router.bias, np.float32))

    def cosine(self, before: ir.Value, after: ir.Value) -> ir.Value:
        one, other = (self.add("Cast", value, to=int(ir.DataType.FLOAT)) for value in (before, after))
        dots, ones, others = (self.dots(a, b) for a, b in ((one, other), (one, one), (other, other)))
        lengths = self.add("Sqrt", self.add("Mul", ones, others))
        cosines = self.add("Div", dots, self.add("Add", lengths, self.number(_TINY, np.float32)))
        return self.mean(self.add("Reshape", cosines, self.number([-1], np.int64)))

    def dots(self, one: ir.Value, other: ir.Value) -> ir.Value:
        """The products of two streams at each position."""
        product = self.add("Mul", one, other)
        if self.opset >= 13:  # axes of ReduceSum are an input from here on
            return self.add("ReduceSum", product, self.number([-1], np.int64), keepdims=0)
        return self.add("ReduceSum", product, axes=[-1], keepdims=0)
