"""Seeded inputs for an exported model, by the names and shapes that its session asks for."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]
VOCABULARY = 99
SLOT = re.compile(r"^(past_key_values|present)\.(\d+)\.(.+)$")


def make_feeds(
    session: Any, *, batch: int = 2, sequence: int = 7, past: int = 0, source: int = 9, seed: int = 0
) -> Feeds:
    """Inputs of `batch` × `sequence` tokens after `past` cached ones, over `source` encoder states."""
    generator = np.random.default_rng(seed)
    sizes = {"batch": batch, "sequence": sequence, "past": past, "source": source}
    feeds: Feeds = {}
    for value in session.get_inputs():
        shape = [_size(dim, value.name, sizes) for dim in value.shape]
        feeds[value.name] = _fill(value, shape, past, generator)
    return feeds


def _size(dim: int | str, name: str, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if "batch" in dim or dim == "images":
        return sizes["batch"]
    if "samples" in dim or name == "input_values":
        return 400
    if name == "encoder_hidden_states" or name == "encoder_attention_mask" or ".encoder." in name:
        return sizes["source"]
    if name.startswith("past"):
        return sizes["past"] if "past" in dim or "sequence" in dim else _unknown(dim, name)
    if name == "attention_mask":
        return sizes["past"] + sizes["sequence"]
    if "channel" in dim:
        return 3
    if "height" in dim or "width" in dim:
        return 32
    return sizes["sequence"]


def _unknown(dim: str, name: str) -> int:
    raise ValueError(f"dimension {dim!r} of input {name!r} has no known size")


def _fill(value: Any, shape: list[int], past: int, generator: np.random.Generator) -> np.ndarray:
    name = value.name
    if name == "use_cache_branch":
        return np.array([past > 0])
    if name == "position_ids":
        return np.tile(np.arange(past, past + shape[1]), (shape[0], 1))
    if name.endswith("attention_mask"):
        return np.ones(shape, np.int64)
    if name == "token_type_ids":
        return generator.integers(0, 2, shape)
    if "int64" in value.type:
        return generator.integers(3, VOCABULARY, shape)
    numbers: np.ndarray = generator.standard_normal(shape)
    return numbers.astype(np.float16 if "float16" in value.type else np.float32)


def without_caches(feeds: Feeds, layers: Collection[int]) -> Feeds:
    """The feeds of a model that lost the caches of `layers`: the others are numbered anew without gaps."""
    kept: Feeds = {}
    for name, value in feeds.items():
        slot = SLOT.match(name)
        if slot is None:
            kept[name] = value
        elif int(slot[2]) not in layers:
            number = int(slot[2]) - sum(layer < int(slot[2]) for layer in layers)
            kept[f"{slot[1]}.{number}.{slot[3]}"] = value
    return kept
