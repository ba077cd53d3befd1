"""Give open axes of a model a size: what a phone's accelerator needs, and what lets shape arithmetic fold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphprune.errors import GraphError
from graphprune.hints import required_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

_AXIS = re.compile(r"(.*\S.*)=\s*([1-9][0-9]{0,8})")
_SHAPE = re.compile(r"(.*\S.*):\s*([1-9][0-9]{0,8}(?:x[1-9][0-9]{0,8})*)")


@dataclass(frozen=True)
class FixedSizes:
    """Sizes by the names of axes (`batch_size`), and whole shapes by the names of inputs."""

    axes: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.axes or self.shapes)


def parse_sizes(texts: Iterable[str]) -> FixedSizes:
    """Items with commas between: `batch_size=1,sequence_length=128`, `pixel_values:1x3x224x224`.

    Raises `GraphError` for what cannot be read so, and for one name with two sizes.
    """
    axes: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for item in (part.strip() for text in texts for part in text.split(",")):
        if found := _AXIS.fullmatch(item):
            same = axes.setdefault(found[1].strip(), int(found[2])) == int(found[2])
        elif found := _SHAPE.fullmatch(item):
            shape = tuple(map(int, found[2].split("x")))
            same = shapes.setdefault(found[1].strip(), shape) == shape
        else:
            raise GraphError(
                f"{item!r} fixes no size: name an axis (batch_size=1) or the whole shape of an input "
                "(pixel_values:1x3x224x224), in whole numbers from 1 on"
            )
        if not same:
            raise GraphError(f"{item}: {found[1].strip()} has another size before that: give it one")
    return FixedSizes(axes, shapes)


def fix_sizes(models: Sequence[ir.Model], sizes: FixedSizes) -> None:
    """Fix these sizes in all `models`, which belong together, in place.

    An axis is fixed wherever its name stands, alone or in an expression such as `past + sequence` of which
    every name is known. A shape given for an input fixes the names of its axes, too. Raises `GraphError`
    where a name is in none of the models, or a shape does not fit.
    """
    _require_known(models, sizes)
    axes = dict(sizes.axes)
    for model in models:
        for name, shape in sizes.shapes.items():
            for axis, size in _fix_input(required_inputs(model.graph).get(name), shape):
                if axes.setdefault(axis, size) != size:
                    raise GraphError(
                        f"the axis {axis} of the input {name} is given two sizes, {axes[axis]} and {size}"
                    )
    for model in models:
        for value in _values(model):
            if value.shape is not None and any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
                value.shape = ir.Shape([_fixed(dim, axes) for dim in value.shape])


def open_axes(model: ir.Model) -> dict[str, None]:
    """The names of the axes of a model's inputs that have no size yet, in the order of the graph."""
    dims = (dim for value in required_inputs(model.graph).values() for dim in value.shape or ())
    return {str(dim.value): None for dim in dims if isinstance(dim, ir.SymbolicDim) and dim.value}


def _fix_input(value: ir.Value | None, shape: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Give an input this shape; the names that its axes had, with their sizes now."""
    if value is None:
        return
    before = tuple(value.shape) if value.shape is not None else (None,) * len(shape)
    wrong = [had for had, size in zip(before, shape, strict=False) if isinstance(had, int) and had != size]
    if len(before) != len(shape) or wrong:
        raise GraphError(
            f"the input {value.name} is of the shape {value.shape}, which cannot become "
            + "x".join(map(str, shape))
        )
    value.shape = ir.Shape(shape)
    for dim, size in zip(before, shape, strict=True):
        if isinstance(dim, ir.SymbolicDim) and dim.value:
            yield dim.value, size


def _require_known(models: Sequence[ir.Model], sizes: FixedSizes) -> None:
    inputs = dict.fromkeys(name for model in models for name in required_inputs(model.graph))
    for name in sizes.shapes:
        if name not in inputs:
            raise GraphError(f"there is no input {name}; there is {', '.join(inputs)}")
    known = dict.fromkeys(name for model in models for name in _symbols(model))
    for name in sizes.axes:
        if name not in known:
            there = f"open are {', '.join(known)}" if known else "no axis of an input is open"
            raise GraphError(f"there is no axis {name} to fix; {there}")


def _symbols(model: ir.Model) -> Iterator[str]:
    """The names of a model's open axes, and the names within them."""
    for name in open_axes(model):
        yield name
        try:
            yield from sorted(ir.SymbolicDim(name).free_symbols())
        except ValueError:  # no expression, such as `batch size`
            continue


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _fixed(dim: int | ir.SymbolicDim, axes: Mapping[str, int]) -> int | str | None:
    """The size of an axis where it is known now."""
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value in axes:
        return axes[dim.value]
    try:
        found = dim.evaluate(axes)
    except ValueError:
        return dim.value
    return found if isinstance(found, int) else dim.value
