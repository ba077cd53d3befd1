"""Random but valid inputs for any model: what a check or a benchmark feeds it.

An input's name and axes are its interface, and are read as such (`attention_mask`,
`past_sequence_length + sequence_length`); the rest comes from the graph (`hints`).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.hints import Hint, read_hint, required_inputs
from graphprune.ortformat import SUFFIX, read_notes
from graphprune.reading import read_model

Array = NDArray[Any]

_IMAGE = 64  # pixels, where the graph does not say; divisible by what vision models shrink by
_EXTRA_TOKENS = (0, 1, 2)  # position tables hold these besides the patches: class, distillation
_NEW_TOKENS = 3  # that a search (GreedySearch, BeamSearch, Sampling) makes
_SMALL_LIMIT = 2  # ids where no table is found
_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class _Input:
    """One input: its axes are sizes, symbolic names, or None; `hint` is what the graph says."""

    name: str
    dtype: np.dtype[Any]
    axes: tuple[int | str | None, ...]
    hint: Hint

    @property
    def is_cache(self) -> bool:
        """A KV cache: past tokens on the last axis but one."""
        return self.dtype.kind == "f" and len(self.axes) >= 4 and self.hint.channels is None

    @property
    def is_tokens(self) -> bool:
        return self.dtype.kind in "iu" and len(self.axes) == 2 and "mask" not in self.name


def make_inputs(
    model: ir.Model | str | Path | Any, *, batch: int, sequence: int, past: int = 0, seed: int = 0
) -> dict[str, Array]:
    """Inputs by name, for a model in memory, an .onnx file, or an ONNX Runtime session of a file.

    `batch`, `sequence` and `past` (tokens in the KV caches) hold where the graph leaves the
    size open; an axis of the same name has the same size everywhere. Ids are within their
    tables, masks all ones and past + sequence long, positions count on from the past, images
    and audio have the size that the position tables ask for, `use_cache_branch` is true with
    a past. The same arguments give the same arrays.
    """
    inputs = _interface(model) if isinstance(model, ir.Model) else _file_interface(model)
    sizes = _Sizes.of(inputs, batch, sequence, past)
    rng = np.random.default_rng(seed)
    return {one.name: _values(one, sizes.shape(one), sizes, rng) for one in inputs}


def _file_interface(model: str | Path | Any) -> tuple[_Input, ...]:
    path = Path(model if isinstance(model, (str, Path)) else model._model_path)
    if path.suffix == SUFFIX and not isinstance(model, (str, Path)):
        return _packaged_interface(model)
    return _read_interface(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read_interface(path: Path, _changed: int) -> tuple[_Input, ...]:
    return _interface(read_model(path)[0])


def _interface(model: ir.Model) -> tuple[_Input, ...]:
    return tuple(_input(value) for value in required_inputs(model.graph).values())


def _packaged_interface(session: Any) -> tuple[_Input, ...]:
    """What a `.ort` file takes: all that it tells is what its session does, and the notes of who wrote it."""
    notes = read_notes(session.get_modelmeta().custom_metadata_map)
    return tuple(
        _Input(one.name, _dtype(one.type), tuple(one.shape), notes.get(one.name, Hint()))
        for one in session.get_inputs()
    )


def _dtype(kind: str) -> np.dtype[Any]:
    """Numpy's type for ONNX Runtime's `tensor(float)`; float32 for what is no tensor, or of no such type."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype({"float": "float32", "double": "float64", "string": "object"}.get(name, name))
    except TypeError:
        return np.dtype("float32")


def _axis(dim: int | ir.SymbolicDim) -> int | str | None:
    """A size or a name; some exporters write -1 for an open size."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value


def _input(value: ir.Value) -> _Input:
    axes = tuple(_axis(dim) for dim in value.shape or ())
    dtype = value.dtype or ir.DataType.FLOAT
    plain = np.dtype(object if dtype == ir.DataType.STRING else dtype.numpy())
    return _Input(value.name or "", plain, axes, read_hint(value))


@dataclass(frozen=True)
class _Sizes:
    """How large every symbolic axis is."""

    batch: int
    sequence: int
    past: int
    limit: int
    named: Mapping[str, int]

    @staticmethod
    def of(inputs: tuple[_Input, ...], batch: int, sequence: int, past: int) -> _Sizes:
        """Sizes fixed by the graph come before the wanted ones; opaque names mean what their place does."""
        for one in inputs:
            fixed = [axis if isinstance(axis, int) else None for axis in one.axes]
            if one.is_tokens:
                batch, sequence = fixed[0] or batch, fixed[1] or sequence
            elif one.is_cache and fixed[-2] is not None:
                past = fixed[-2]
        limit = min((one.hint.limit for one in inputs if one.hint.limit), default=_SMALL_LIMIT)
        sizes = _Sizes(batch, sequence, past, limit, {})
        named: dict[str, int] = {}
        for one in sorted(inputs, key=lambda one: (one.is_cache, "mask" in one.name)):
            for place, axis in enumerate(one.axes):
                if isinstance(axis, str) and axis.isidentifier():
                    named.setdefault(axis, sizes._by_name(axis) or sizes._by_place(one, place))
        return _Sizes(batch, sequence, past, limit, named)

    def shape(self, one: _Input) -> tuple[int, ...]:
        """The shape to give an input."""
        if one.hint.channels is not None and one.dtype.kind == "f":
            return _signal_shape(one, self)
        return tuple(self._size(one, place, axis) for place, axis in enumerate(one.axes))

    def _size(self, one: _Input, place: int, axis: int | str | None) -> int:
        if isinstance(axis, int):
            return axis
        if axis is None or (one.hint.head is not None and place == len(one.axes) - 1):
            return self._by_place(one, place)
        try:
            return self._evaluate(ast.parse(axis, mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError):
            named = self._by_name(axis)
            return self._by_place(one, place) if named is None else named

    def _evaluate(self, node: ast.expr) -> int:
        """The value of an axis such as `past_sequence_length + sequence_length`."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](self._evaluate(node.left), self._evaluate(node.right))
        if isinstance(node, ast.Name):
            named = self.named.get(node.id, self._by_name(node.id))
            return self.sequence if named is None else named
        raise ValueError(ast.dump(node))

    def _by_name(self, name: str) -> int | None:
        """What the names mean that exporters give; None for an opaque one, such as `s0`."""
        meanings = (
            (("batch",), self.batch),
            (("vocab",), self.limit),
            (("total", "mask", "past_sequence_length_plus"), self.past + self.sequence),
            (("past",), self.past),
            (("encoder", "source"), self.sequence + 2 if "decoder" not in name else self.sequence),
        )
        told = name.lower().removesuffix("in_batch")  # as in max_seq_len_in_batch
        return next((size for words, size in meanings if any(word in told for word in words)), None)

    def _by_place(self, one: _Input, place: int) -> int:
        if one.hint.head is not None and place == len(one.axes) - 1:
            return one.hint.head
        if one.is_cache:
            return self.past if place == len(one.axes) - 2 else self.batch
        return self.batch if place == 0 and len(one.axes) > 1 else self.sequence


def _signal_shape(one: _Input, sizes: _Sizes) -> tuple[int, ...]:
    """The shape of an image (batch, channels, height, width) or of audio (batch[, features], time)."""
    hint, rank = one.hint, len(one.axes)
    wanted = [sizes.batch, hint.channels or 1, *[_side(hint)] * (rank - 2)]
    if rank <= 3:
        wanted[-1 if rank == 3 else 1] = hint.stride * (hint.positions or sizes.sequence + 8)
    return tuple(axis if isinstance(axis, int) else size for axis, size in zip(one.axes, wanted, strict=True))


def _side(hint: Hint) -> int:
    """Height and width of an image: its patches and the special tokens fill the position table."""
    for extra in _EXTRA_TOKENS if hint.positions else ():
        side = math.isqrt(cast(int, hint.positions) - extra)
        if side * side == cast(int, hint.positions) - extra:
            return side * hint.stride
    return _IMAGE


def _values(one: _Input, shape: tuple[int, ...], sizes: _Sizes, rng: np.random.Generator) -> Array:
    if one.dtype.kind == "O":
        return np.full(shape, "text", dtype=object)
    if one.dtype.kind == "b":
        return np.full(shape, "cache" not in one.name or sizes.past > 0)
    if one.hint.search not in (None, "ids"):
        return np.full(shape, _search_value(one.hint.search or "", sizes), dtype=one.dtype)
    if "mask" in one.name:
        return np.ones(shape, one.dtype)
    if one.dtype.kind in "iu":
        return _integers(one, shape, sizes, rng)
    return rng.standard_normal(shape, dtype=np.float32).astype(one.dtype)


def _search_value(meaning: str, sizes: _Sizes) -> int:
    return {"max": sizes.sequence + _NEW_TOKENS, "min": 1, "zero": 0}.get(meaning, 1)


def _integers(one: _Input, shape: tuple[int, ...], sizes: _Sizes, rng: np.random.Generator) -> Array:
    """Positions count on from the past; ids are random; what indexes nothing is a mask: ones."""
    if "position" in one.name and shape:
        positions = np.arange(sizes.past, sizes.past + shape[-1]) % (
            one.hint.limit or np.iinfo(one.dtype).max
        )
        return np.broadcast_to(positions, shape).astype(one.dtype)
    if one.hint.limit is not None:
        return rng.integers(0, max(one.hint.limit, 1), shape).astype(one.dtype)
    return np.ones(shape, one.dtype)
