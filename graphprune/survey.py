"""Recover every file of a bundle, and see which stacks of different files are one and the same.

The files of a bundle often hold one stack several times: a decoder without and with past, or
with both in a merged file. These copies carry one name, count once in selections, and are
changed together. Stacks that merely share a name (the text and the vision tower of CLIP) get
the file's name before their own: `text_model/encoder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.architecture import Architecture, Block, Layer, Stack
    from graphprune.bundle import Bundle

_PROBE = 1024  # elements that are compared of a weight: enough to tell trained towers apart


@dataclass(frozen=True, eq=False)
class SurveyedFile:
    """One file of a bundle, by its name in the folder, and what was recovered from it."""

    name: str
    architecture: Architecture


def inspect(bundle: Bundle) -> tuple[SurveyedFile, ...]:
    """Recover all files of `bundle`; in each architecture, `numbering` has the stacks of them all.

    Stacks with cross-attention count after those without: an encoder before its decoder,
    whatever the files are called.
    """
    from graphprune.recover import recover

    files = [SurveyedFile(file.name, recover(file.model)) for file in bundle.files]
    if len(files) == 1:
        return tuple(files)
    clashing = _clashing([stack for file in files for stack in file.architecture.stacks])
    files = [_renamed(file, clashing) for file in files]
    stacks = sorted((stack for file in files for stack in file.architecture.stacks), key=_reads_another)
    return tuple(
        replace(file, architecture=replace(file.architecture, numbering=tuple(stacks))) for file in files
    )


def distinct_stacks(files: Iterable[SurveyedFile]) -> tuple[Stack, ...]:
    """The stacks of a bundle, of copies the first."""
    stacks: dict[str, Stack] = {}
    for file in files:
        for stack in file.architecture.stacks:
            stacks.setdefault(stack.name, stack)
    return tuple(stacks.values())


def _reads_another(stack: Stack) -> bool:
    return any(block.kind == "cross_attention" for block in stack.blocks)


def _clashing(stacks: Iterable[Stack]) -> set[str]:
    """Names that stand for stacks which are not copies of each other."""
    firsts: dict[str, Stack] = {}
    clashing = set()
    for stack in stacks:
        if not same_stack(firsts.setdefault(stack.name, stack), stack):
            clashing.add(stack.name)
    return clashing


def same_stack(one: Stack, other: Stack) -> bool:
    """Whether two stacks are copies: the same layers of the same blocks, and no weight that differs.

    Only the first weights of the FFNs are looked at, and of these the first elements; weights
    stored in different types (a quantized file beside the original) do not tell stacks apart.
    """
    if one is other:
        return True
    kinds = [[[block.kind for block in layer.blocks] for layer in stack.layers] for stack in (one, other)]
    if kinds[0] != kinds[1]:
        return False
    pairs = zip(one.blocks, other.blocks, strict=True)
    return not any(_differ(_first_weight(a), _first_weight(b)) for a, b in pairs if a.kind == "ffn")


def _first_weight(block: Block) -> ir.TensorProtocol | None:
    weights = [value for branch in block.branches for linear in branch.linears for value in linear.weights]
    return weights[0].const_value if weights else None


def _differ(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    import numpy as np

    if one is None or other is None or one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    if tuple(one.shape) != tuple(other.shape):
        return True
    first, second = (np.asarray(tensor.numpy()).reshape(-1)[:_PROBE] for tensor in (one, other))
    return first.tobytes() != second.tobytes()


def _renamed(file: SurveyedFile, clashing: set[str]) -> SurveyedFile:
    if not clashing & {stack.name for stack in file.architecture.stacks}:
        return file
    prefix = PurePath(file.name).with_suffix("").as_posix()
    stacks = tuple(
        _with_name(stack, f"{prefix}/{stack.name}") if stack.name in clashing else stack
        for stack in file.architecture.stacks
    )
    return replace(file, architecture=replace(file.architecture, stacks=stacks))


def _with_name(stack: Stack, name: str) -> Stack:
    return replace(stack, name=name, layers=_renamed_layers(stack.layers, stack.name, name))


def _renamed_layers(layers: Sequence[Layer], old: str, new: str) -> tuple[Layer, ...]:
    return tuple(
        replace(
            layer,
            blocks=tuple(replace(block, id=new + block.id.removeprefix(old)) for block in layer.blocks),
        )
        for layer in layers
    )
