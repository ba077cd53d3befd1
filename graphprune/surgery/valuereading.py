"""Fitted values of one block, in the shapes that its weights have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphprune.architecture import Block
from graphprune.errors import RecipeError
from graphprune.surgery.fitted import Floats, PostNorm, Projections
from graphprune.surgery.neurons import Neurons
from graphprune.surgery.valuefile import FittedValues


def read_linear(
    values: FittedValues, block: Block, width: int, rank: int = 0
) -> tuple[tuple[Floats, ...], Floats | None]:
    """The factors of a linear [width, width] (one or two), and the constant [width] where there is one.

    With `rank` a whole map is cut into two factors where these are smaller. Raises `RecipeError`.
    """
    keys = values.of(block.id)
    constant = values.read(block.id, "constant", [width]) if "constant" in keys else None
    key = next((one for one in ("linear", "stream") if one in keys), None)
    if key is not None:
        whole = values.read(block.id, key, [width, width])
        return (_factors(whole, rank) if 0 < 2 * rank < width else (whole,)), constant
    first = values.read(block.id, "linear.a", [width, None])
    second = values.read(block.id, "linear.b", [first.shape[1], width])
    if not first.shape[1]:
        raise RecipeError(f"{values.path}: '{block.id}/linear.a' has no columns")
    return (_factors(first @ second, rank) if 0 < rank < first.shape[1] else (first, second)), constant


def _factors(whole: Floats, rank: int) -> tuple[Floats, Floats]:
    """Two factors of the nearest matrix of this rank (Eckart and Young, 1936)."""
    u, s, v = np.linalg.svd(whole.astype(np.float64), full_matrices=False)
    root = np.sqrt(s[:rank])
    return (u[:, :rank] * root).astype(np.float32), (root[:, None] * v[:rank]).astype(np.float32)


def read_norm(values: FittedValues, block: Block, found: PostNorm) -> tuple[Floats | None, Floats | None]:
    """γ and β [width] for a norm, None where the file has none. Raises `RecipeError`."""
    keys, width = values.of(block.id), found.gamma.shape[-1]
    read = (values.read(block.id, key, [width]) if key in keys else None for key in ("scale", "shift"))
    scale, shift = read
    return scale, shift


def read_neurons(
    values: FittedValues, block: Block, found: Neurons
) -> tuple[npt.NDArray[np.int64], Floats | None]:
    """The numbers of the neurons that stay, and the weight [neurons, width] of their last linear, if given.

    Raises `RecipeError`.
    """
    kept = values.read_numbers(block.id, "neurons", found.count)
    if "neurons.weight" not in values.of(block.id):
        return kept, None
    return kept, values.read(block.id, "neurons.weight", [len(kept), found.down.width])


def read_projections(
    values: FittedValues, block: Block, found: Projections
) -> tuple[dict[int, Floats], Floats | None]:
    """The weights [k, width] by branch, and the bias [width]; None where the file has none.

    Raises `RecipeError`, also where the file has a weight of a branch that there is not.
    """
    keys = values.of(block.id)
    names = {f"weight.{number}": number for number in range(len(found.parts))}
    unknown = sorted(key for key in keys if key.startswith("weight.") and key not in names)
    if unknown:
        count = len(found.parts)
        raise RecipeError(
            f"{values.path}: '{block.id}/{unknown[0]}' is for a branch that the block has not: it has {count}"
        )
    weights = {
        number: values.read(block.id, name, [found.parts[number].inputs, found.width])
        for name, number in names.items()
        if name in keys
    }
    return weights, values.read(block.id, "bias", [found.width]) if "bias" in keys else None
