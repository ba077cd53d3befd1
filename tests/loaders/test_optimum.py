"""Pruned bundles in optimum's model classes say what the smaller torch model says, token for token.

And logit for logit: tokens of tiny random models agree too easily. The fast suite takes some
families; `-m matrix` takes every family, layout and cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import graphprune as gp
from tests.loaders.generating import (
    Cut,
    batch,
    cuts,
    expected,
    expected_dense,
    generate,
    in_optimum,
    layer_counts,
)
from tools import zoo_loaders
from tools.zoo import NotExportableError
from tools.zoo_loaders import LAYOUTS, WINDOWS, Layout
from tools.zoo_truth import Family

TOLERANCE = 1e-4
MATTERS = 1e-2  # how far a cut, or a window, must move the logits for a test of it to mean anything
FAST: dict[str, tuple[str, ...]] = {  # cut and layout
    "gpt2": ("first-past", "half-past", "first-merged", "last-plain"),
    "llama": ("first-past", "all-but-one-past"),
    "gptj": ("middle-past",),
    "gemma2-window": ("first-past", "half-past"),
    "t5": ("decoder-first-merged", "both-half-merged"),
    "bart": ("decoder-first-past", "decoder-all-but-one-past", "encoder-first-past"),
    "whisper": ("decoder-middle-merged", "encoder-last-past"),
}


def cases() -> Iterator[object]:
    """Families, layouts, cuts."""
    for family in zoo_loaders.generating().values():
        for layout in LAYOUTS:
            for cut in cuts(family):
                name = f"{cut.name}-{layout}"
                marks = () if name in FAST.get(family.name, ()) else (pytest.mark.matrix,)
                yield pytest.param(family, layout, cut, id=f"{family.name}-{name}", marks=marks)


def laid_out(family: Family, layout: Layout, folder: Path) -> Path:
    """The bundle, or a skip where optimum does not export it."""
    try:
        return zoo_loaders.lay_out(family, layout, folder)
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Layout], gp.Bundle]:
    """Load a family's bundle, the last one again without reading it."""

    @lru_cache(maxsize=1)
    def bundle(name: str, layout: Layout) -> gp.Bundle:
        folder = tmp_path_factory.mktemp("dense") / layout
        return gp.load(laid_out(zoo_loaders.generating()[name], layout, folder))

    return bundle


@pytest.mark.parametrize(("family", "layout", "cut"), list(cases()))
def test_it_generates_what_torch_does(
    family: Family, layout: Layout, cut: Cut, load: Callable[[str, Layout], gp.Bundle], tmp_path: Path
) -> None:
    pruned = gp.prune(load(family.name, layout), drop_layers=cut.selection).bundle
    folder = pruned.save(tmp_path / "pruned")  # unchecked: running it is what this test does
    model, wanted = expected(family.name, cut)
    assert wanted.distance(expected_dense(family.name)) > MATTERS
    for how, loaded in in_optimum(folder, family, layout):
        assert layer_counts(loaded.config) == layer_counts(model.config)
        found = generate(loaded, batch(family))
        assert found.distance(wanted) <= TOLERANCE, how
        assert np.array_equal(found.tokens, wanted.tokens), how


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_felt(name: str) -> None:
    """Else a test of windows would say nothing."""
    assert expected_dense(f"{name}-window").distance(expected_dense(name)) > MATTERS
