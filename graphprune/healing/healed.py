"""What healing comes to: its steps, and the values and the recipe by which passes write it into a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.healing.choice import SHARES, Action
from graphprune.healing.mending import HealStep, Mended
from graphprune.healing.norming import PlainNorm
from graphprune.healing.pieces import Piece

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Healing:
    """A healed choice of blocks.

    `error` is what is wrong with the last stream, as in `HealStep`; `score` is what the judge says of the
    outputs, and `kept` that as a share of the dense model's quality.
    """

    choice: Mapping[str, Action]
    pieces: tuple[Piece, ...]
    mended: tuple[Mended | None, ...]
    error: float
    score: float
    kept: float

    @property
    def steps(self) -> tuple[HealStep, ...]:
        """What became of every block from the first one that is not the dense model's."""
        return tuple(one.step for one in self.mended if one is not None)

    def values(self) -> dict[str, NDArray[Any]]:
        """The fitted values by `<block id>/<key>`, as the passes read them: float32; numbers int64."""
        found: dict[str, NDArray[Any]] = {}
        for piece, one in zip(self.pieces, self.mended, strict=True):
            if one is not None:
                found |= {f"{piece.id}/{key}": array for key, array in _values(piece, one).items()}
                found |= {f"{one.norm_of}/{key}": array for key, array in _norm_values(one.norm).items()}
        return {key: _as_stored(array) for key, array in found.items()}

    def recipe(self, values: str) -> Recipe:
        """The passes that make the healed model of the dense one; the `.npz` `values` holds `values()`."""
        from graphprune.recipe import from_options

        options: dict[str, Any] = {}
        for actions in (("drop",), ("linear", "patch"), ("mean",), tuple(SHARES)):
            chosen = [piece for piece in self.pieces if self.choice.get(piece.id) in actions]
            options |= _passes(actions[0], chosen, values)
        if gone := tuple(self._without_norm()):
            options["drop_norm"] = {"blocks": gone, "which": "post"}
        if any(key.rpartition("/")[2] in _REFITTED for key in self.values()):
            options["refit"] = {"values": values}
        return from_options(options)

    def _without_norm(self) -> Iterator[str]:
        """The blocks whose norm goes: those that took over dropped ones, and these up to the last."""
        ids = [piece.id for piece in self.pieces]
        for number, one in enumerate(self.mended):
            if one is not None and one.norm_of:
                yield from ids[number : ids.index(one.norm_of)]


_REFITTED = ("scale", "shift", "bias", *(f"weight.{number}" for number in range(8)))


def _passes(action: str, pieces: Sequence[Piece], values: str) -> dict[str, Any]:
    """The passes that do one action to blocks."""
    if not pieces:
        return {}
    if action in SHARES:
        return {"narrow_ffn": {"values": values, "blocks": tuple(piece.id for piece in pieces)}}
    if action != "drop":
        return {f"replace_{action}": {"blocks": tuple(piece.id for piece in pieces), "values": values}}
    found: dict[str, Any] = {}
    attention = tuple(piece.id for piece in pieces if piece.block.kind != "ffn")
    ffn = tuple(piece.id for piece in pieces if piece.block.kind in ("ffn", "parallel"))
    if attention:
        kinds = {piece.block.kind for piece in pieces if piece.block.kind != "ffn"}
        which = "both" if "cross_attention" in kinds else "self"
        found["drop_attention"] = {"blocks": attention, "which": which}
    if ffn:
        found["drop_ffn"] = {"blocks": ffn}
    return found


def _values(piece: Piece, mended: Mended) -> dict[str, NDArray[Any]]:
    if mended.map is None:
        return {}
    if mended.step.action == "keep":
        assert piece.projections is not None
        if not len(mended.map.weight):
            return {"bias": mended.map.bias}
        ends = np.cumsum([len(part.weight) for part in piece.projections.parts])[:-1]
        parts = np.split(mended.map.weight, ends)
        return {f"weight.{n}": part for n, part in enumerate(parts)} | {"bias": mended.map.bias}
    if mended.neurons is not None:
        weight = mended.map.weight[mended.neurons]
        return {"neurons": mended.neurons, "neurons.weight": weight, "bias": mended.map.bias}
    if mended.step.action == "patch":
        return {"stream": mended.map.weight}
    found: dict[str, NDArray[Any]] = {"constant": mended.map.bias}
    if mended.step.action == "linear":
        factors = mended.factors
        found |= (
            {"linear": mended.map.weight}
            if factors is None
            else {"linear.a": factors[0], "linear.b": factors[1]}
        )
    return found


def _norm_values(norm: PlainNorm | None) -> dict[str, NDArray[Any]]:
    if norm is None:
        return {}
    return {"scale": norm.scale} | ({} if norm.shift is None else {"shift": norm.shift})


def _as_stored(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)
