"""What passes make of a model in ONNX text, told as text again, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike

from graphprune.adapter import IrPass
from graphprune.prunepass import Edit, PrunePass
from graphprune.recover import recover
from tests.graphs import STREAM, written


def pruned(
    body: str, *passes: PrunePass, constants: Mapping[str, ArrayLike] | None = None,
    inputs: str = f"{STREAM} x", outputs: str = f"{STREAM} y", opset: int = 17,
) -> ir.Model:  # fmt: skip
    """The model after the passes, a valid one."""
    model = written(body, constants=constants, inputs=inputs, outputs=outputs, opset=opset)
    IrPass(*passes)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def text(model: ir.Model) -> list[str]:
    """The nodes in order, one a line; values between them are numbered, nodes have no names."""
    outputs = {value: value.name or "" for value in model.graph.outputs}
    names: dict[ir.Value | None, str] = {None: ""}
    lines = []
    for node in model.graph:
        for value in node.outputs:
            names[value] = outputs.get(value, f"%{len(names)}")
        given = ", ".join(names.get(value) or (value.name or "" if value else "") for value in node.inputs)
        attributes = sorted(f"{name}={_plain(attribute)}" for name, attribute in node.attributes.items())
        made = ", ".join(names[value] for value in node.outputs)
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        lines.append(f"{made} = {kind} <{', '.join(attributes)}> ({given})")
    return lines


def _plain(attribute: ir.Attr) -> object:
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return value.numpy().tolist()
    return round(value, 9) if isinstance(value, float) else value


def answers(body: str, one: PrunePass, **options: object) -> dict[str, str]:
    """Per target what would happen, or in brackets why nothing does."""
    found = {}
    for answer in one.plan(recover(written(body, **options))):
        found[answer.target] = answer.summary if isinstance(answer, Edit) else f"({answer.reason})"
    return found
