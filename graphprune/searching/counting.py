"""What can be counted of a model's cost without running it: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.searching.costs import Costs
from graphprune.searching.probes import Group, costs_of, groups_of, probes

if TYPE_CHECKING:
    from graphprune.bundle import Bundle
    from graphprune.healing.choice import Action
    from graphprune.play import Source
    from graphprune.sizes import Sizes

# A name that no size has.
OTHERS = ""


def count_costs(path: str | Path, sources: Sequence[Source]) -> dict[str, Costs]:
    """`parameters`, `macs` (those of the blocks, in one pass over the inputs) and `size` (bytes on the disk).

    Counted on the same pruned models that latency is measured on. Of weights that blocks share nothing is
    saved before all of these go. The multiply-accumulates are means over the sources. Raises `LoadError`,
    `RunError`.
    """
    from graphprune.bundle import load
    from graphprune.footprint import disk_bytes
    from graphprune.pipeline import sizes_of
    from graphprune.survey import inspect

    bundle = load(path)
    free = [_free_sizes(bundle, source) for source in sources]
    dense = sizes_of(bundle, inspect(bundle))
    counted = {group: _counted(bundle, group) for group in groups_of(bundle)}

    def costs(total: float, *counts: Callable[[Sizes], float]) -> Costs:
        """Of `counts` each is one cell; the cost is their mean."""
        shares = {
            group: {action: [_saved(count, dense, after) for count in counts] for action, after in by.items()}
            for group, by in counted.items()
            if by
        }
        return costs_of(total, shares)

    size = disk_bytes(path)
    macs = [partial(_macs, free=one) for one in free]
    return {
        "parameters": costs(dense.parameters, lambda sizes: sizes.parameters),
        "macs": costs(fmean(one(dense) for one in macs), *macs),
        "size": costs(size, lambda sizes: size - dense.bytes + sizes.bytes),
    }


def _counted(bundle: Bundle, group: Group) -> dict[Action, Sizes]:
    try:
        with TemporaryDirectory(prefix="graphprune.", ignore_cleanup_errors=True) as folder:
            return {action: one.after for action, one in probes(bundle, group, Path(folder)).items()}
    except OSError as error:
        raise RunError(
            f"cannot write temporary files to count what blocks cost: {error.strerror or error}"
        ) from error


def _macs(sizes: Sizes, free: Mapping[str, int]) -> float:
    return sizes.macs.at(**{name: free.get(name, free[OTHERS]) for name in sizes.macs.names})


def _saved(count: Callable[[Sizes], float], dense: Sizes, after: Sizes) -> float:
    """The share that is saved."""
    whole = count(dense)
    return 1 - count(after) / whole if whole else 0.0


def _free_sizes(bundle: Bundle, source: Source) -> dict[str, int]:
    """The sizes that the files leave open, by their names, for a source; `OTHERS` is that of all others."""
    from graphprune.inputs import make_inputs

    sizes = {OTHERS: source.sequence}
    for file in bundle.files:
        arrays = make_inputs(file.model, batch=source.batch, sequence=source.sequence, seed=source.seed)
        for value in file.model.graph.inputs:
            array = source.arrays.get(value.name or "", arrays.get(value.name or ""))
            if array is not None and value.shape is not None and value.shape.rank() == array.ndim:
                dims = zip(value.shape, array.shape, strict=True)
                sizes |= {
                    str(dim.value): size for dim, size in dims if not isinstance(dim, int) and dim.value
                }
    return sizes
