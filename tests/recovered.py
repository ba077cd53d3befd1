"""What recovery found, and what the zoo says is true, in one comparable form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphprune.architecture import Architecture
    from graphprune.architecture import Stack as FoundStack
    from tools.zoo import Entry
    from tools.zoo_truth import Stack

STAGED = {"resnet", "convnext", "convnextv2", "swin", "segformer"}  # several stages make one model
Blocks = tuple[tuple[str, str | None, bool], ...]


@dataclass(frozen=True)
class Shape:
    """One graph's stacks: for each the layers, for each layer (kind, norm placement, droppable)."""

    stacks: tuple[tuple[Blocks, ...], ...]

    @property
    def flat(self) -> Blocks:
        """All blocks in order, layers and stacks forgotten."""
        return tuple(block for stack in self.stacks for layer in stack for block in layer)

    def __str__(self) -> str:
        return " | ".join(
            _runs(",".join(_block(b) for b in layer) for layer in stack) for stack in self.stacks
        )


def _block(block: tuple[str, str | None, bool]) -> str:
    kind, placement, droppable = block
    return f"{kind}:{placement}" + ("" if droppable else "!")


def _runs(layers: Iterable[str]) -> str:
    """Equal layers next to each other, counted."""
    runs: list[tuple[str, int]] = []
    for layer in layers:
        if runs and runs[-1][0] == layer:
            runs[-1] = (layer, runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return " ".join(f"{count}×[{layer}]" for layer, count in runs)


def expected(entry: Entry, file: str) -> Shape:
    """The truth about the file of this stem."""
    return Shape(tuple(_truth(stack) for stack in entry.stacks(file)))


def _truth(stack: Stack) -> tuple[Blocks, ...]:
    return tuple(tuple((b.kind, b.placement, b.droppable) for b in layer.blocks) for layer in stack.layers)


def found(architecture: Architecture) -> dict[str, Shape]:
    """What recovery found, by the path of the graph that holds it."""
    shapes: dict[str, list[tuple[Blocks, ...]]] = {}
    for stack in architecture.stacks:
        shapes.setdefault(stack.path, []).append(_found(stack))
    return {path: Shape(tuple(stacks)) for path, stacks in shapes.items()}


def _found(stack: FoundStack) -> tuple[Blocks, ...]:
    return tuple(tuple((b.kind, b.placement, b.droppable) for b in layer.blocks) for layer in stack.layers)


def difference(truth: Shape, got: Shape, *, flat: bool) -> str:
    """What is wrong in `got`, "" where nothing is.

    `flat` compares blocks only: how a convolutional net's blocks make layers and stacks is a
    matter of taste. Placements that the truth leaves open are not compared.
    """
    if flat:
        same = len(truth.flat) == len(got.flat) and all(map(_agree, truth.flat, got.flat))
    else:
        wanted, given = _ordered(truth), _ordered(got)
        same = len(wanted) == len(given) and all(map(_same_stack, wanted, given))
    return "" if same else f"expected {truth}, found {got}"


def _ordered(shape: Shape) -> list[tuple[Blocks, ...]]:
    return sorted(shape.stacks, key=lambda stack: (len(stack), [b[0] for layer in stack for b in layer]))


def _same_stack(truth: tuple[Blocks, ...], got: tuple[Blocks, ...]) -> bool:
    return len(truth) == len(got) and all(
        len(t) == len(g) and all(map(_agree, t, g)) for t, g in zip(truth, got, strict=True)
    )


def _agree(truth: tuple[str, str | None, bool], got: tuple[str, str | None, bool]) -> bool:
    return truth[0] == got[0] and truth[1] in {None, got[1]} and truth[2] == got[2]
