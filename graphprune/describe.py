"""What was recovered from a bundle, as the object that `graphprune inspect --json` prints.

Format 1: scripts outside this repository read it, so keys may be added, never changed or taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from graphprune.architecture import Architecture, Block, Cache, Declined, Layer, Stack
    from graphprune.survey import SurveyedFile

FORMAT = 1


def to_json(architecture: Architecture) -> dict[str, Any]:
    """One model: `{"format": 1, "stacks": […], "declined": […]}`; MACs are formulas in the symbolic dims."""
    return {
        "format": FORMAT,
        "stacks": [_stack(stack) for stack in architecture.stacks],
        "declined": [_declined(region) for region in architecture.declined],
    }


def survey_to_json(files: Sequence[SurveyedFile]) -> dict[str, Any]:
    """A bundle: the same object for all its files; where there are several, each entry says its `file`."""
    whole: dict[str, Any] = {"format": FORMAT, "stacks": [], "declined": []}
    for file in files:
        one = to_json(file.architecture)
        label = {"file": file.name} if len(files) > 1 else {}
        for key in ("stacks", "declined"):
            whole[key] += [entry | label for entry in one[key]]
    return whole


def node_name(node: ir.Node) -> str:
    """A node's name, or the name of its first output where it has none."""
    return node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type


def _stack(stack: Stack) -> dict[str, Any]:
    return {"name": stack.name, "graph": stack.path, "layers": [_layer(layer) for layer in stack.layers]}


def _layer(layer: Layer) -> dict[str, Any]:
    return {"index": layer.index, "blocks": [_block(block) for block in layer.blocks]}


def _block(block: Block) -> dict[str, Any]:
    return {
        "id": block.id,
        "kind": block.kind,
        "branches": [branch.kind for branch in block.branches],
        "join": node_name(block.join),
        "norm": block.placement,
        "parameters": block.parameters,
        "macs": str(block.macs),
        "droppable": block.droppable,
        "reason": block.reason,
        "nodes": len(block.nodes),
        "caches": [_cache(cache) for cache in block.caches],
    }


def _cache(cache: Cache) -> dict[str, Any]:
    return {"kind": cache.kind, "inputs": list(cache.input_names), "outputs": list(cache.output_names)}


def _declined(region: Declined) -> dict[str, Any]:
    return {"nodes": [node_name(node) for node in region.nodes], "reason": region.reason}
