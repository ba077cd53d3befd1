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

    from graphprune.architecture import Architecture, Block, Layer, Loader, Stack
    from graphprune.bundle import Bundle

_PROBE = 1024  # elements that are compared of a weight: enough to tell trained towers apart
_CORNER = 32  # and rows and columns, where one is the other transposed


@dataclass(frozen=True, eq=False)
class SurveyedFile:
    """One file of a bundle, by its name in the folder, and what was recovered from it."""

    name: str
    architecture: Architecture


def loader_of(bundle: Bundle) -> Loader:
    """Which program a bundle seems made for, by the configs that lie in its folder."""
    if "genai_config.json" in bundle.configs:
        return "genai"
    return "optimum" if "config.json" in bundle.configs else "plain"


def inspect(bundle: Bundle, loader: Loader | None = None) -> tuple[SurveyedFile, ...]:
    """Recover all files of `bundle`; in each architecture, `numbering` has the stacks of them all.

    Stacks with cross-attention count after those without: an encoder before its decoder,
    whatever the files are called. `loader` is who will load what is made of the bundle, told
    from its configs if it is not given.
    """
    from graphprune.recover import recover

    loader = loader or loader_of(bundle)
    files = [SurveyedFile(f.name, replace(recover(f.model), loader=loader)) for f in bundle.files]
    if len(files) == 1:
        return tuple(files)
    clashing = _clashing([stack for file in files for stack in file.architecture.stacks])
    files = [_renamed(file, clashing) for file in files]
    stacks = sorted(
        (stack for file in files for stack in file.architecture.stacks), key=lambda s: s.reads_another
    )
    return tuple(
        replace(file, architecture=replace(file.architecture, numbering=tuple(stacks))) for file in files
    )


def ungated(bundle: Bundle) -> Bundle:
    """The bundle as it was before its models had gates; itself where none has any."""
    from graphprune.gates import read_gates
    from graphprune.surgery import remove_gates, sweep

    if not any(read_gates(file.model.metadata_props) for file in bundle.files):
        return bundle
    copy = bundle.clone()
    for file in copy.files:
        remove_gates(file.model)
        sweep(file.model)
    return copy


def distinct_stacks(files: Iterable[SurveyedFile]) -> tuple[Stack, ...]:
    """The stacks of a bundle, of copies the first."""
    stacks: dict[str, Stack] = {}
    for file in files:
        for stack in file.architecture.stacks:
            stacks.setdefault(stack.name, stack)
    return tuple(stacks.values())


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

    Weights stored in different types (a quantized file beside the original) do not tell stacks
    apart; of FFNs the first is looked at, and of it the first elements.
    """
    if one is other:
        return True
    kinds = [[[block.kind for block in layer.blocks] for layer in stack.layers] for stack in (one, other)]
    return kinds[0] == kinds[1] and same_weights(one, other)


def same_weights(one: Stack, other: Stack, *, floats: bool = False) -> bool:
    """Whether nothing sets the weights of two stacks with the same blocks apart; only `floats` if asked."""
    ffns = [(a, b) for a, b in zip(one.blocks, other.blocks, strict=True) if a.kind == "ffn"]
    pairs = [(_first_weight(a), _first_weight(b)) for a, b in ffns]
    return not any(_differ(a, b) for a, b in pairs if not floats or (a and a.dtype.is_floating_point()))


def _first_weight(block: Block) -> ir.TensorProtocol | None:
    weights = [value for branch in block.branches for linear in branch.linears for value in linear.weights]
    return weights[0].const_value if weights else None


def _differ(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    import numpy as np

    if one is None or other is None or one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    a, b = np.asarray(one.numpy()), np.asarray(other.numpy())
    if a.shape != b.shape and a.shape == b.T.shape:  # a Gemm may hold a MatMul's weight turned
        return bool(np.any(a[:_CORNER, :_CORNER] != b[:_CORNER, :_CORNER].T))
    return a.shape != b.shape or a.reshape(-1)[:_PROBE].tobytes() != b.reshape(-1)[:_PROBE].tobytes()


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
