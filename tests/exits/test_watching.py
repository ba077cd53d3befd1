"""Streams between layers: what a model without its later layers puts out, pooled as numpy does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune as gp
from graphprune.errors import RunError, SelectionError
from graphprune.exits.watching import boundaries, open_watch, pooled
from graphprune.inputs import make_inputs
from graphprune.play import Source
from graphprune.session import open_sessions
from tools.zoo import Entry, families
from tools.zoo_trained import trained

ONE = gp.Settings(threads=1)
FAST = ("gpt2", "llama", "bert", "vit")
DECODERS = ("gpt2", "llama", "opt", "gptj", "gemma2", "bloom")
ENCODERS = ("bert", "distilbert", "albert", "mpnet", "vit", "deberta_v2")


def each(names: Sequence[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.matrix) for name in names]


def folder(name: str) -> Path:
    task = "text-generation-with-past" if name in DECODERS else "feature-extraction"
    return Entry(families()[name], "optimum", task).folder()


def source(path: Path, rows: int = 3, tokens: int = 7) -> Source:
    arrays = make_inputs(path / "model.onnx", batch=rows, sequence=tokens)
    arrays = {name: one for name, one in arrays.items() if not name.startswith(("past", "use_cache"))}
    if "attention_mask" in arrays and "position_ids" not in arrays:
        lengths = np.array([[tokens], [4], [5]])
        arrays["attention_mask"] = (np.arange(tokens) < lengths).astype(np.int64)
    return Source(arrays, rows, tokens)


@pytest.mark.parametrize("name", each(DECODERS))
def test_the_tail_on_the_last_stream_is_the_model_itself(name: str) -> None:
    watch = open_watch(folder(name), settings=ONE)
    seen = watch.see(source(folder(name)))
    assert seen.own is not None and tuple(seen.streams) == (*range(watch.layers), watch.layers)
    found = watch.scores(seen, seen.streams[watch.layers])
    np.testing.assert_allclose(found[seen.mask], seen.own[seen.mask], atol=1e-5)
    dense = open_sessions(folder(name), ONE)[0].run(seen.feeds)["logits"]
    np.testing.assert_allclose(seen.own[seen.mask], dense[seen.mask], atol=1e-4)


@pytest.mark.parametrize("name", each([*DECODERS, *ENCODERS]))
def test_a_stream_is_that_of_the_model_without_the_layers_behind(name: str, tmp_path: Path) -> None:
    watch = open_watch(folder(name), settings=ONE)
    given = source(folder(name))
    seen = watch.see(given)
    after = watch.layers - 1
    gp.prune(gp.load(folder(name)), drop_layers="last:1").save(tmp_path / "short")
    short = open_watch(tmp_path / "short", settings=ONE) if after > 1 else None
    if short is not None:
        found = short.see(given).streams[after]
        np.testing.assert_allclose(found[seen.mask], seen.streams[after][seen.mask], atol=1e-4)
    if seen.own is not None:
        other = open_sessions(tmp_path / "short", ONE)[0]
        feeds = {key: value for key, value in seen.feeds.items() if key in other.inputs}
        lens = watch.scores(seen, seen.streams[after])
        np.testing.assert_allclose(lens[seen.mask], other.run(feeds)["logits"][seen.mask], atol=1e-4)


def test_a_classifier_of_rows() -> None:
    watch = open_watch(trained("vit"), (2, 4), ONE)
    images = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    seen = watch.see(Source({"pixel_values": images}, 5))
    assert tuple(seen.streams) == (0, 2, 4, 6) and seen.own is not None and seen.own.shape == (5, 10)
    np.testing.assert_allclose(watch.scores(seen, seen.streams[6]), seen.own, atol=1e-5)


def test_pooling_leaves_padding_out() -> None:
    stream = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)
    assert pooled(stream, mask, "mean").tolist() == [
        stream[0, :2].mean(0).tolist(),
        stream[1, 1:].mean(0).tolist(),
    ]
    assert pooled(stream, mask, "first").tolist() == [[0, 1, 2], [15, 16, 17]]
    assert pooled(stream, mask, "last").tolist() == [[3, 4, 5], [21, 22, 23]]


def test_boundaries_that_there_are_not() -> None:
    assert boundaries((4, 2, 2), 6) == (2, 4) and boundaries((), 4) == (1, 2, 3)
    for wrong in (0, 6, -1):
        with pytest.raises(SelectionError, match=r"no exit after -?\d layers: the model has 6"):
            boundaries((2, wrong), 6)
    with pytest.raises(SelectionError, match="one layer"):
        boundaries((), 1)


def test_a_model_without_a_head_of_its_own() -> None:
    watch = open_watch(folder("bert"), settings=ONE)
    seen = watch.see(source(folder("bert")))
    with pytest.raises(RunError, match="no head of its own"):
        watch.scores(seen, seen.streams[1])
