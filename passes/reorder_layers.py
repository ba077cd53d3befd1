"""Run layers in another order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from graphprune.architecture import Architecture, Stack
from graphprune.errors import SelectionError
from graphprune.prunepass import Edit, Skipped, select_stack
from graphprune.surgery import arrange_layers


@dataclass(frozen=True)
class ReorderLayers:
    """Run the layers of one stack in another order: `order` lists all of them, as `0,2,1,3`.

    The numbers count from 0 within the stack; `stack` names it where the model has several.
    KV caches go along, and are numbered as the layers run.
    """

    name: ClassVar[str] = "reorder_layers"
    order: str | tuple[int | str, ...]
    stack: str = ""

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to the stack, and to every copy of it."""
        items = self.order.split(",") if isinstance(self.order, str) else self.order
        for stack in select_stack(architecture, self.stack):
            order = _permutation(stack, [str(item).strip() for item in items])
            fixed = next((block for block in stack.blocks if not block.droppable), None)
            if order == sorted(order):
                yield Skipped(stack.name, "its layers are in this order already")
            elif fixed is not None:
                yield Skipped(stack.name, f"{fixed.id} has to stay where it is: {fixed.reason}")
            else:
                text = ", ".join(map(str, order))
                apply = partial(arrange_layers, stack, architecture, order)
                yield Edit(stack.name, f"run its layers in the order {text}", apply, order=tuple(order))


def _permutation(stack: Stack, items: list[str]) -> list[int]:
    count = len(stack.layers)
    if sorted(items) != sorted(map(str, range(count))):
        given = ",".join(items)
        raise SelectionError(
            f"reorder_layers: '{given}' is no order of the layers of '{stack.name}': "
            f"name each of 0 to {count - 1} once"
        )
    return [int(item) for item in items]
