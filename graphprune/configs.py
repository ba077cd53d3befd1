"""Keep `config.json` and `genai_config.json` in step with the layers that a bundle still has.

Loaders read the number of layers under many names, and some configs list something for every
layer (`layer_types`); transformers refuses a config whose lists have another length than it says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.architecture import Block, Stack

_ENCODER = ("encoder_layers", "num_encoder_layers", "n_encoder_layers")
_DECODER = ("decoder_layers", "num_decoder_layers", "n_decoder_layers")
_ANY = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_PER_LAYER = ("layer_types", "attention_layers", "mlp_layer_types", "no_rope_layers")


@dataclass(frozen=True)
class Kept:
    """What is left of a stack: the numbers of the layers, and of those that keep their cache."""

    name: str
    layers: int
    kept: tuple[int, ...]
    with_cache: tuple[int, ...]
    reads_another: bool


def what_is_kept(stack: Stack, removed: Collection[int]) -> Kept:
    """What is left of `stack` without the blocks whose `id()` are in `removed`."""

    def stays(block: Block) -> bool:
        return id(block) not in removed

    layers = stack.layers
    return Kept(
        stack.name,
        len(layers),
        tuple(i for i, layer in enumerate(layers) if not layer.blocks or any(map(stays, layer.blocks))),
        tuple(i for i, layer in enumerate(layers) if any(b.caches and stays(b) for b in layer.blocks)),
        any(block.kind == "cross_attention" for block in stack.blocks),
    )


def follow(config: Mapping[str, Any], stacks: Collection[Kept]) -> dict[str, Any]:
    """`config` with the numbers and lists of layers that `stacks` have now.

    Only what told the old number changes: a key that says something else is left as it is.
    """
    result = dict(config)
    for stack in stacks:
        keys = _keys(stack, alone=len(stacks) == 1)
        result |= dict(_changes(result, stack, keys))
        for name, part in _parts(result, stack, alone=len(stacks) == 1):
            result[name] = part | dict(_changes(part, stack, _ANY))
    return result


def follow_genai(config: Mapping[str, Any], stacks: Collection[Kept]) -> dict[str, Any]:
    """The same for onnxruntime-genai's config, whose `sliding_window.layers` number caches."""
    decoder = config.get("model", {}).get("decoder") if isinstance(config.get("model"), Mapping) else None
    if not isinstance(decoder, Mapping) or len(stacks) != 1:
        return dict(config)
    (stack,) = stacks
    changed = dict(decoder) | dict(_changes(decoder, stack, ("num_hidden_layers",)))
    window = decoder.get("sliding_window")
    if isinstance(window, Mapping) and isinstance(window.get("layers"), list):
        places = {layer: place for place, layer in enumerate(stack.with_cache)}
        changed["sliding_window"] = dict(window) | {
            "layers": [places[layer] for layer in window["layers"] if layer in places]
        }
    return dict(config) | {"model": dict(config["model"]) | {"decoder": changed}}


def _keys(stack: Kept, *, alone: bool) -> tuple[str, ...]:
    """Where a config says how many layers a stack has; an encoder also goes by the plain names."""
    if alone:
        return _ENCODER + _DECODER + _ANY
    return _DECODER if stack.reads_another else _ENCODER + _ANY


def _parts(config: Mapping[str, Any], stack: Kept, *, alone: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configs within the config (`vision_config`) that tell of `stack`: by its name, or as the only one."""
    parts = {
        key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)
    }
    for key, part in parts.items():
        if key.removesuffix("_config") in stack.name or (alone and len(parts) == 1):
            yield key, part


def _changes(config: Mapping[str, Any], stack: Kept, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    for key in keys:
        if config.get(key) == stack.layers:
            yield key, len(stack.kept)
    for key in _PER_LAYER:
        if isinstance(config.get(key), list) and len(config[key]) == stack.layers:
            yield key, [config[key][index] for index in stack.kept]
    types = _expanded(config.get("attention_types"))  # GPT-Neo: [[["global", "local"], 6]]
    if len(types) == stack.layers:
        yield "attention_types", [[[types[index] for index in stack.kept], 1]]


def _expanded(attention_types: Any) -> list[Any]:
    if not isinstance(attention_types, list):
        return []
    pairs = [one for one in attention_types if isinstance(one, list) and len(one) == 2]
    return [kind for kinds, times in pairs for _ in range(times) for kind in kinds]
