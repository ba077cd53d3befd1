"""Torch models that really lose layers, and what torch and optimum generate from the same padded batch."""

from __future__ import annotations

import copy
import random
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from tools import zoo_loaders
from tools.zoo_loaders import Layout, causal
from tools.zoo_truth import Family

NEW_TOKENS = 20
LONG, SHORT = 9, 5  # tokens of the two texts of a batch, both longer than an attention window
VOCABULARY, PAD = 99, 0
# Where a configuration says how many layers a stack has.
ONE_STACK = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
COUNTS = {
    "encoder": ("encoder_layers", *ONE_STACK),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
PER_LAYER = ("layer_types", "attention_layers", "no_rope_layers")


@dataclass(frozen=True)
class Cut:
    """The layers that go, by the name of their stack."""

    name: str
    gone: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def selection(self) -> str:
        """The same as graphprune reads it."""
        return ",".join(f"{stack}.{layer}" for stack, layers in self.gone for layer in layers)


@dataclass(frozen=True, eq=False)
class Continuation:
    """`tokens` [batch, text + new] that a model generated, and `logits` [batch, new, vocabulary]."""

    tokens: np.ndarray
    logits: np.ndarray

    def distance(self, other: Continuation) -> float:
        """The largest difference of the logits, relative to their size where that is above 1."""
        return float(np.abs(self.logits - other.logits).max() / max(1.0, np.abs(other.logits).max()))


def cuts(family: Family) -> list[Cut]:
    """First, last, some in the middle, half, all but one; of an encoder-decoder, the encoder's too."""
    draw = random.Random(zlib.crc32(family.name.encode()))
    depths = {stack: zoo_loaders.depth(family, stack) for stack in zoo_loaders.stack_paths(family)}
    some = {stack: _some(depth, draw) for stack, depth in depths.items()}
    if causal(family):
        return [Cut(name, (("decoder", gone),)) for name, gone in some["decoder"].items()]
    found = [Cut(f"{stack}-{name}", ((stack, gone),)) for stack in some for name, gone in some[stack].items()]
    return [*found, Cut("both-half", tuple((stack, some[stack]["half"]) for stack in some))]


def _some(count: int, draw: random.Random) -> dict[str, tuple[int, ...]]:
    kept = draw.randrange(count)
    return {
        "first": (0,),
        "last": (count - 1,),
        "middle": tuple(sorted(draw.sample(range(1, count - 1), 2))),
        "half": tuple(sorted(draw.sample(range(count), count // 2))),
        "all-but-one": tuple(layer for layer in range(count) if layer != kept),
    }


# -- torch -----------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def dense(family_name: str) -> Any:
    """The torch model that was exported."""
    family = zoo_loaders.generating()[family_name]
    model: Any = zoo_loaders.entry(family, "past").torch_model()
    if not causal(family):  # else transformers 4.57 makes T5 a cache of the encoder's depth
        model.generation_config.cache_implementation = "dynamic_full"
    return model


@lru_cache(maxsize=2)
def expected_dense(family_name: str) -> Continuation:
    """What the torch model generates as it was exported."""
    return generate(dense(family_name), batch(zoo_loaders.generating()[family_name]))


@lru_cache(maxsize=16)
def expected(family_name: str, cut: Cut) -> tuple[Any, Continuation]:
    """The torch model without the layers of `cut`, and what it generates."""
    family = zoo_loaders.generating()[family_name]
    model = without(dense(family_name), family, cut)
    return model, generate(model, batch(family))


def without(model: Any, family: Family, cut: Cut) -> Any:
    """A copy of `model` with those layers taken out of its lists; the configuration follows."""
    model = copy.deepcopy(model)
    for stack, gone in cut.gone:
        path = zoo_loaders.stack_paths(family)[stack]
        layers = model.get_submodule(path)
        kept = [number for number in range(len(layers)) if number not in gone]
        left = torch.nn.ModuleList(_renumbered(layers[old], new) for new, old in enumerate(kept))
        _lend_position_bias(layers, left)
        owner = model.get_submodule(path.rpartition(".")[0])
        setattr(owner, path.rpartition(".")[2], left)
        counts = ONE_STACK if causal(family) else COUNTS[stack]
        _recount(model.config, counts, kept)
        if owner.config is not model.config:  # T5 gives each stack a configuration of its own
            _recount(owner.config, ONE_STACK, kept)
    return model


def _renumbered(layer: torch.nn.Module, number: int) -> torch.nn.Module:
    """The layer, to use the cache of layer `number`."""
    for module in layer.modules():
        for name in ("layer_idx", "layer_id"):
            if hasattr(module, name):
                setattr(module, name, number)
    return layer


def _lend_position_bias(before: torch.nn.ModuleList, after: torch.nn.ModuleList) -> None:
    """T5's first block has the relative positions for all of them: the new first one takes them over."""
    old, new = (_self_attention(blocks[0]) for blocks in (before, after))
    if old is not None and new is not old:
        new.relative_attention_bias = old.relative_attention_bias
        new.has_relative_attention_bias = True


def _self_attention(block: torch.nn.Module) -> Any:
    """The self-attention of a block of T5, None of others."""
    parts = getattr(block, "layer", None)
    return getattr(parts[0], "SelfAttention", None) if isinstance(parts, torch.nn.ModuleList) else None


def _recount(config: Any, counts: Sequence[str], kept: Sequence[int]) -> None:
    depth = 1 + max(kept)
    for name in PER_LAYER:
        if isinstance(getattr(config, name, None), list) and len(getattr(config, name)) >= depth:
            setattr(config, name, [getattr(config, name)[layer] for layer in kept])
    for name in counts:
        if hasattr(config, name):
            setattr(config, name, len(kept))


# -- generating ------------------------------------------------------------------------------------


def batch(family: Family) -> dict[str, torch.Tensor]:
    """Two texts of different lengths, padded left for a decoder and right for an encoder; or two sounds."""
    generator = torch.Generator().manual_seed(7)
    if family.modality == "audio":
        return {"input_features": torch.randn(2, 12, 40, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (2, LONG), generator=generator)
    mask = torch.ones_like(ids)
    padding = slice(0, LONG - SHORT) if causal(family) else slice(SHORT, LONG)
    ids[1, padding], mask[1, padding] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> Continuation:
    """The most likely token 20 times, and never the end; of a model of torch or of optimum."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about its own defaults
        found = model.generate(
            **inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1,
            pad_token_id=PAD, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    assert len(found.logits) == NEW_TOKENS
    return Continuation(found.sequences.numpy(), torch.stack(found.logits, dim=1).numpy())


def in_optimum(folder: Path, family: Family, layout: Layout) -> Iterator[tuple[str, Any]]:
    """The bundle in optimum's model class: as it is, then optimized and with IO binding."""
    import optimum.onnxruntime as loaders
    from optimum.utils import logging as optimum_logging

    transformers_logging.set_verbosity_error()
    optimum_logging.set_verbosity_error()
    name = "ORTModelForCausalLM" if causal(family) else "ORTModelForSeq2SeqLM"
    kind = getattr(loaders, "ORTModelForSpeechSeq2Seq" if family.modality == "audio" else name)
    for binding in (False, True):
        loaded = kind.from_pretrained(
            folder, use_cache=layout != "plain", use_io_binding=binding, session_options=_options(binding)
        )
        if family.name.endswith(zoo_loaders.WIDE):
            _tell_cache_sizes(loaded)
        yield ("with IO binding" if binding else "without IO binding"), loaded


def _tell_cache_sizes(loaded: Any) -> None:
    """Set what optimum works out wrongly, as its users do: read off the files, not the configuration."""
    for part in (loaded, *getattr(loaded, "parts", ())):
        sizes = [shape for name, shape in getattr(part, "input_shapes", {}).items() if ".key" in name]
        outs = [shape for name, shape in getattr(part, "output_shapes", {}).items() if ".key" in name]
        for _, heads, _, width in (sizes or outs)[:1]:
            part.num_key_value_heads, part.embed_size_per_head = heads, width


def _options(optimized: bool) -> Any:
    """One thread; the graph as it was written, or `optimized` by the runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def layer_counts(config: Any) -> dict[str, Any]:
    """All that a configuration says of its layers."""
    names = (*COUNTS["encoder"], *COUNTS["decoder"], *PER_LAYER)
    return {name: getattr(config, name) for name in names if hasattr(config, name)}
