"""The oracle's own changes: each one is seen in the output, and dropping is what it says."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from tests.oracle import Oracle
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_feeds import Feeds, make_feeds
from tools.zoo_truth import Stack

SEEN = 1e-3
NORM_AFTER_LAYER = {"wav2vec2_conformer"}  # its layers end in a norm that belongs to no block
FAST = [pytest.param(entry, id=entry.family.name) for entry in entries(fast=True)]


def _given(entry: Entry, stack: Stack) -> tuple[str, Feeds]:
    """A file that holds the stack, and inputs for it."""
    try:
        file = next(file for file in entry.files() if file.stem in stack.files)
    except NotExportableError as refusal:
        pytest.skip(f"not exportable: {str(refusal)[:200]}")
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    past = 3 if any(value.name.startswith("past") for value in session.get_inputs()) else 0
    return file.stem, make_feeds(session, past=past)


def _output(oracle: Oracle, file: str, feeds: Feeds) -> np.ndarray:
    outputs = oracle.run(file, feeds)
    return next(outputs[n] for n in ("logits", "logits_per_image", "last_hidden_state") if n in outputs)


@pytest.mark.parametrize("entry", FAST)
def test_every_block_matters(entry: Entry) -> None:
    for stack in entry.family.stacks:
        file, feeds = _given(entry, stack)
        dense = _output(Oracle(entry), file, feeds)
        for number, layer in enumerate(stack.layers):
            for kind in {part.kind for block in layer.blocks if block.droppable for part in block.parts}:
                oracle = Oracle(entry)
                oracle.drop(stack.name, number, kind)
                change = np.abs(_output(oracle, file, feeds) - dense).max()
                assert change > SEEN, f"{stack.name}.{number}.{kind} moves the output by {change} only"


@pytest.mark.parametrize("entry", FAST)
def test_a_dropped_layer_is_a_layer_left_out(entry: Entry) -> None:
    """Two ways to the same model: every block's contribution zeroed, and the layer not run at all."""
    for stack in entry.family.stacks:
        paths = {layer.path for layer in stack.layers}
        if len(paths) < max(len(stack.layers), 2) or not all(
            b.droppable for layer in stack.layers for b in layer.blocks
        ):
            continue
        if _staged(stack) or entry.family.name in NORM_AFTER_LAYER:
            continue
        file, feeds = _given(entry, stack)
        feeds = {name: value for name, value in feeds.items() if not name.startswith("past")}
        feeds.pop("attention_mask", None)
        zeroed, shortened = Oracle(entry), Oracle(entry)
        last = len(stack.layers) - 1
        zeroed.drop_layer(stack.name, last)
        shortened.order(stack.name, range(last))
        np.testing.assert_allclose(
            _output(zeroed, file, feeds), _output(shortened, file, feeds), rtol=1e-5, atol=1e-5
        )


def _staged(stack: Stack) -> bool:
    """Whether the layers lie in more than one list of modules."""
    return len({layer.path.rpartition(".")[0] for layer in stack.layers}) > 1


CHANGES = {
    "layer": lambda oracle, stack: oracle.drop_layer(stack, 1),
    "norm": lambda oracle, stack: oracle.drop_norm(stack, 1, "ffn"),
    "activation": lambda oracle, stack: oracle.drop_activation(stack, 1),
    "residual": lambda oracle, stack: oracle.drop_residual(stack, 1, "ffn"),
    "order": lambda oracle, stack: oracle.order(stack, [0, 2, 1]),
    "repeat": lambda oracle, stack: oracle.order(stack, [0, 1, 1, 2]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "bart"])
def test_every_change_is_seen(name: str, change: str) -> None:
    (entry,) = entries(name, fast=True)
    stack = entry.family.stacks[0]
    file, feeds = _given(entry, stack)
    feeds = {key: value for key, value in feeds.items() if not key.startswith("past")}
    feeds.pop("attention_mask", None)
    dense = _output(Oracle(entry), file, feeds)
    oracle = Oracle(entry)
    CHANGES[change](oracle, stack.name)
    changed = _output(oracle, file, feeds)
    assert np.isfinite(changed).all()
    assert np.abs(changed - dense).max() > SEEN


@pytest.mark.parametrize(
    ("name", "role"), [("bert", "q"), ("bert", "v"), ("gpt2", "v"), ("gpt2", "down"), ("vit", "up")]
)
def test_a_dropped_bias_is_a_bias_of_zero(name: str, role: str) -> None:
    (entry,) = entries(name, fast=True)
    stack = entry.family.stacks[0]
    file, feeds = _given(entry, stack)
    hooked, zeroed = Oracle(entry), Oracle(entry)
    hooked.drop_bias(stack.name, 1, role)
    layer = stack.layers[1]
    paths = {r: path for block in layer.blocks for part in block.parts for r, path in part.roles.items()}
    bias = zeroed.model.get_submodule(f"{layer.path}.{paths.get(role) or paths['qkv']}").bias.data
    if role in paths:
        bias.zero_()
    else:
        bias.chunk(3)["qkv".index(role)].zero_()
    np.testing.assert_allclose(
        _output(hooked, file, feeds), _output(zeroed, file, feeds), rtol=1e-5, atol=1e-5
    )
