"""Configs of pruned exports; the oracle is the torch model that transformers builds from them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

import graphprune as gp
from graphprune.bundle import Bundle, load
from graphprune.configs import Kept
from graphprune.pipeline import Pruned
from graphprune.survey import distinct_stacks, inspect
from tools import zoo
from tools.zoo_truth import Stack

FAST = ("bert", "distilbert", "gpt_neo", "gemma2", "qwen2", "t5", "whisper", "clip", "convnext", "modernbert")
FAMILIES = [name if name in FAST else pytest.param(name, marks=pytest.mark.matrix) for name in zoo.families()]
# What a layer of torch knows of its place, and what the first of a stack alone has (T5).
PLACES = {"layer_idx", "layer_id", "layer_index", "has_relative_attention_bias", "training", "drop_prob"}


def exported(family: str) -> tuple[zoo.Entry, Bundle]:
    entry = next(iter(zoo.entries(family, fast=True)))
    try:
        return entry, load(entry.folder())
    except zoo.NotExportableError as error:
        pytest.skip(f"not exportable: {error}")


def orders(pruned: Pruned) -> dict[str, Kept]:
    """What runs of each stack afterwards."""
    from graphprune.pipeline import _what_is_kept

    return {kept.name: kept for kept in _what_is_kept(pruned.plan.files, pruned.plan.outcomes)}


def dropped_at_random(bundle: Bundle, rng: random.Random) -> Pruned:
    """The bundle without some of the layers of every stack."""
    chosen = []
    for stack in distinct_stacks(inspect(bundle)):
        spare = [layer.index for layer in stack.layers if all(block.droppable for block in layer.blocks)]
        count = rng.randrange(min(1, len(stack.layers) - 1), len(stack.layers))
        chosen += [f"{stack.name}.{i}" for i in rng.sample(spare, min(count, len(spare)))]
    return gp.prune(bundle, drop_layers=",".join(chosen))


def built(pruned: Pruned, model: str, folder: Path) -> Any:
    """The torch model that transformers makes of the configs that are written."""
    for name, config in pruned.bundle.configs.items():
        (folder / name).write_text(json.dumps(config))
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, model)(config)


def module_lists(model: Any, stack: Stack) -> Iterator[list[Any]]:
    """The lists of modules that hold a stack's layers; none where all layers are one module."""
    parents = dict.fromkeys(layer.path.rpartition(".")[0] for layer in stack.layers)
    if len({layer.path for layer in stack.layers}) > 1:
        yield from (list(model.get_submodule(parent)) for parent in parents)


def traits(layer: Any) -> dict[str, Any]:
    """What sets a layer apart from its neighbours, weights aside: windows, kinds of attention, sizes."""
    return {
        f"{path}.{name}": value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if name not in PLACES and isinstance(value, (bool, int, float, str, type(None)))
    }


def kept_of(stack: Stack, kept: dict[str, Kept], others: set[str]) -> list[int]:
    """The layers of a stack that run: recovery may have cut it into stages."""
    if stack.name in kept and kept[stack.name].layers == len(stack.layers):
        return list(kept[stack.name].order)
    result: list[int] = []
    start = 0
    for part in (part for name, part in kept.items() if name not in others):
        result += [start + i for i in part.order]
        start += part.layers
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_builds_the_layers_that_are_left(family: str, tmp_path: Path) -> None:
    entry, bundle = exported(family)
    pruned = dropped_at_random(bundle, random.Random(family))
    before, after = entry.torch_model(), built(pruned, entry.family.model, tmp_path)
    kept = orders(pruned)
    for stack in entry.family.stacks:
        others = {other.name for other in entry.family.stacks} - {stack.name}
        order = kept_of(stack, kept, others)
        olds = [layer for part in module_lists(before, stack) for layer in part]
        news = [layer for part in module_lists(after, stack) for layer in part]
        if not olds:  # all layers are one module, or one layer is all
            assert len(stack.layers) == 1 or after.config.num_hidden_layers == len(order)
            continue
        assert len(news) == len(order)
        if not pruned.plan.notes:
            assert [traits(one) for one in news] == [traits(olds[i]) for i in order]


@pytest.mark.parametrize("family", ["gemma2", "gpt_neo"])
def test_lists_follow_the_running_order(family: str, tmp_path: Path) -> None:
    entry, bundle = exported(family)
    pruned = gp.prune(bundle, reorder_layers={"order": "1,0,3,2"}, drop_layers="3")
    before, after = entry.torch_model(), built(pruned, entry.family.model, tmp_path)
    (stack,) = entry.family.stacks
    (olds,), (news,) = module_lists(before, stack), module_lists(after, stack)
    assert [traits(one) for one in news] == [traits(olds[i]) for i in (1, 0, 2)]


def test_a_layer_that_runs_twice_counts_twice() -> None:
    _, bundle = exported("bert")
    config = gp.prune(bundle, repeat_layers={"layers": "1-2", "times": 3}).bundle.configs["config.json"]
    assert config["num_hidden_layers"] == 8


def test_alignment_heads_follow_the_decoder() -> None:
    _, bundle = exported("whisper")
    bundle.configs["generation_config.json"]["alignment_heads"] = [[0, 1], [1, 0], [2, 2]]
    pruned = gp.prune(bundle, drop_layers="decoder.1,encoder.0").bundle.configs
    assert pruned["generation_config.json"]["alignment_heads"] == [[0, 1], [1, 2]]
    assert pruned["config.json"]["decoder_layers"] == pruned["config.json"]["encoder_layers"] == 2


@pytest.mark.parametrize("family", ["t5", "whisper"])
def test_a_shallow_decoder(family: str) -> None:
    _, bundle = exported(family)
    pruned = gp.prune(bundle, drop_layers={"stack": "decoder", "keep": 1})
    assert {name: kept.order for name, kept in orders(pruned).items()} == {
        "encoder": (0, 1, 2),
        "decoder": (0,),
    }


def test_what_a_config_cannot_say_is_noted() -> None:
    _, bundle = exported("modernbert")
    assert gp.prune(bundle, drop_layers=3).plan.notes == ()
    (note,) = gp.prune(bundle, drop_layers=0).plan.notes
    assert note.startswith("config.json: global_attn_every_n_layers 2 tells")
