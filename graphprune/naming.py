"""Names for stacks, from what they do: encoder, decoder, vision, text, stage0, stage1 and so on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphprune.constants import constant_shape
from graphprune.dataflow import CONVOLUTIONS, Class, Flow, Op, weight_indices
from graphprune.joins import is_mixing

COMPARISONS = {"Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
# How many ops are followed back from a stack's first value to what it embeds.
EMBEDDING_REACH = 60
MASK_REACH = 400
LARGEST_MASK = 1 << 24


def source_of(flow: Flow, number: int) -> str:
    """What a stream starts from: "image" (a 2-d convolution), "tokens" (a table), or ""."""
    work, seen = [number], {number}
    for _ in range(EMBEDDING_REACH):
        if not work:
            break
        producer = flow.producers[work.pop()]
        if producer is None:
            continue
        if producer.node.op_type in CONVOLUTIONS and _is_flat(producer.node):
            return "image"
        if producer.kind in {"Gather", "embed"} and producer.node.inputs[0] is not None:
            return "tokens"
        fresh = [n for n in producer.inputs if n not in seen]
        seen.update(fresh)
        work.extend(fresh)
    return ""


def _is_flat(convolution: ir.Node) -> bool:
    """Whether a convolution has two spatial axes."""
    shape = constant_shape(convolution.inputs[weight_indices(convolution)[0]])
    return shape is not None and len(shape) == 4


def is_causal(flow: Flow, ops: set[Op]) -> bool:
    """Whether an attention looks only back: by its op, or by the mask that is added to its scores."""
    for op in ops:
        if op.node.op_type in {"GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "PagedAttention"}:
            return True
        flags = (op.node.attributes.get(name) for name in ("unidirectional", "is_causal"))
        if any(flag is not None and flag.as_int() == 1 for flag in flags):
            return True
    return any(_masked_causally(flow, op, ops) for op in ops if is_mixing(flow, op))


def _masked_causally(flow: Flow, mixing: Op, ops: set[Op]) -> bool:
    """Look through what an attention reads and does not compute from the stream, for a triangle."""
    work: list[ir.Value | None] = [*mixing.node.inputs]
    inside = {op.node for op in ops}
    seen: set[ir.Value] = set()
    for _ in range(MASK_REACH):
        if not work:
            return False
        value = work.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if value.const_value is not None:
            if _is_triangle(value.const_value):
                return True
            continue
        node = value.producer()
        if node is None:
            continue
        if node.op_type == "Trilu" or _compares_positions(flow, node):
            return True
        if node not in inside or node.op_type not in {"Gemm", "Conv"}:
            work.extend(node.inputs)
    return False


def _compares_positions(flow: Flow, node: ir.Node) -> bool:
    """Whether a node compares two ranges of positions (T5's buckets compare one with constants)."""
    values = [v for v in node.inputs if v is not None]
    return node.op_type in COMPARISONS and all(flow.class_of(v) is Class.SHAPE for v in values)


def _is_triangle(tensor: ir.TensorProtocol) -> bool:
    shape = tensor.shape.numpy()
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2 or tensor.size > LARGEST_MASK:
        return False
    if any(dim != 1 for dim in shape[:-2]):
        return False
    corner = np.asarray(tensor.numpy()).reshape(shape[-2:])[:16, :16].astype(np.float32)
    upper, lower = corner[np.triu_indices_from(corner, 1)], corner[np.tril_indices_from(corner)]
    return bool((upper == upper[0]).all() and (lower == lower[0]).all() and upper[0] != lower[0])


def name_stacks(traits: Sequence[tuple[str, str]]) -> list[str]:
    """Unique names for the stacks of one graph, from (role, source) pairs.

    A role is "decoder", "encoder", "causal" (it looks only back, and has no caches) or "stage".
    A causal stack is a decoder, unless it is one tower of several (CLIP's text). Encoders side
    by side are told apart by what they read; what is still ambiguous is numbered.
    """
    towers = sum(role in {"encoder", "causal"} for role, _ in traits) > 1
    traits = [(("encoder" if towers else "decoder") if r == "causal" else r, s) for r, s in traits]
    roles = Counter(role for role, _ in traits)
    base: list[str] = []
    for role, source in traits:
        if role == "encoder" and source == "image":
            base.append("vision")
        elif role == "encoder" and source == "tokens" and roles["encoder"] > 1:
            base.append("text")
        else:
            base.append(role)
    return _numbered(base)


def _numbered(names: Sequence[str]) -> list[str]:
    totals, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        if name == "stage" or seen[name]:
            numbered.append(f"{name}{seen[name] + (name != 'stage')}")
        else:
            numbered.append(name)
        seen[name] += 1
    assert len(set(numbered)) == len(numbered), totals
    return numbered
