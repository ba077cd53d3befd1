"""Keep the configs beside a model in step with the layers that it still has.

`config.json` and `generation_config.json` are what transformers and optimum read,
`genai_config.json` is onnxruntime-genai's. Loaders read the number of layers under many names,
and some configs list something for every layer (`perlayer`); transformers refuses a config whose
lists have another length than it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.perlayer import follow_layers, untold

if TYPE_CHECKING:
    from graphprune.architecture import Block, Stack

_ENCODER = ("encoder_layers", "num_encoder_layers", "n_encoder_layers", "encoder_num_hidden_layers")
_DECODER = (
    *("decoder_layers", "num_decoder_layers", "n_decoder_layers"),
    *("decoder_num_hidden_layers", "decoder_num_layers"),
)
_ANY = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("num_transformer_layers", "layers", "depth"),
)
# One number for each stage of a model that has several; other counts are counts of stages then.
_STAGES = ("depths", "depth", "block_sizes", "blocks_per_stage")

# Parts of a config that tell of one stack, by what such stacks are called.
_PARTS = {
    "text": ("text", "decoder"),
    "vision": ("vision", "visual"),
    "audio": ("audio", "speech"),
    "encoder": ("encoder", "vision", "text", "stage"),
    "decoder": ("decoder",),
    "language": ("text", "decoder"),
    "llm": ("text", "decoder"),
    "backbone": ("stage", "vision"),
}


@dataclass(frozen=True)
class Kept:
    """What runs of a stack of `layers` layers: `order` are their numbers, first to last.

    `cached` is how many of all had a KV cache, `caches` the numbers in the names of these caches,
    of those layers in `order` that still have one. `reads_another` says that the stack reads what
    an encoder put out, `convolutional` that it has no attention and no FFN; `files` are those
    that hold it.
    """

    name: str
    layers: int
    order: tuple[int, ...]
    cached: int = 0
    caches: tuple[int, ...] = ()
    reads_another: bool = False
    convolutional: bool = False
    files: tuple[str, ...] = ()


def what_is_kept(
    stack: Stack, removed: Set[int], order: Sequence[int] = (), files: Iterable[str] = ()
) -> Kept:
    """What is left of `stack` without the blocks whose `id()` are in `removed`.

    `order` says in which order its layers run, if not one after the other as they are. Caches
    count as they are when this is asked: after the edits, those that the graph still has.
    """
    layers = stack.layers
    empty = {
        layer.index
        for layer in layers
        if layer.blocks and all(id(block) in removed for block in layer.blocks)
    }
    running = tuple(i for i in (order or range(len(layers))) if i not in empty)
    numbers = {layer.index: _cache_number(layer.blocks, layer.index) for layer in layers}
    kinds = {block.kind for block in stack.blocks}
    return Kept(
        stack.name,
        len(layers),
        running,
        sum(any(block.caches for block in layer.blocks) for layer in layers),
        tuple(number for i in running if (number := numbers[i]) is not None),
        stack.reads_another,
        kinds == {"conv"},
        tuple(files),
    )


def _cache_number(blocks: Iterable[Block], index: int) -> int | None:
    """The number that a layer's caches were called by; None where it has none any more."""
    for cache in (cache for block in blocks for cache in block.caches):
        values = (*cache.inputs, *cache.outputs)
        if any(value.is_graph_input() or value.is_graph_output() for value in values):
            digits = re.findall(r"\d+", next(iter((*cache.input_names, *cache.output_names)), ""))
            return int(digits[0]) if digits else index
    return None


def follow(config: Mapping[str, Any], stacks: Sequence[Kept]) -> dict[str, Any]:
    """`config.json` with the numbers and lists of layers that `stacks` have now.

    Only what told the old number changes: a key that says something else is left as it is.
    """
    section = _Section(config, tuple(stacks))
    changed = dict(config) | dict(_depths(section)) | dict(_counts_and_lists(section))
    return changed | {key: follow(config[key], mine) for key, mine in _parts(section)}


def notes(config: Mapping[str, Any], stacks: Sequence[Kept]) -> tuple[str, ...]:
    """What `config.json` cannot say about the layers that are left, and where it is wrong already."""
    section = _Section(config, tuple(stacks))
    found: list[str] = []
    for stack, keys in _tellers(section):
        if any(config[key] == stack.layers for key in keys):
            found += untold(_own(section, stack), stack.layers, stack.order)
        elif keys:
            says = ", ".join(f"{key} {config[key]}" for key in keys)
            found.append(f"it says {says}, and {stack.name} has {stack.layers} layers: left as it is")
    found += _shifts(section)
    for key, mine in _parts(section):
        found += notes(config[key], mine)
    return tuple(dict.fromkeys(found))


def follow_generation(config: Mapping[str, Any], stacks: Sequence[Kept]) -> dict[str, Any]:
    """`generation_config.json`: Whisper's `alignment_heads` are pairs of a decoder layer and a head."""
    decoders = [stack for stack in stacks if stack.reads_another]
    pairs = config.get("alignment_heads")
    if len(decoders) != 1 or not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        return dict(config)
    order = decoders[0].order
    left = [[new, head] for old, head in pairs for new, layer in enumerate(order) if layer == old]
    kept = {key: value for key, value in config.items() if key != "alignment_heads"}
    return kept | ({"alignment_heads": sorted(left)} if left else {})


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int for one in value)


@dataclass(frozen=True)
class _Section:
    """A config, or a config within one, and the stacks that it may tell of."""

    told: Mapping[str, Any]
    stacks: tuple[Kept, ...]

    @property
    def staged(self) -> tuple[str, tuple[Kept, ...]]:
        """The key of the numbers of layers by stage, and the stages; empty where there are none."""
        keys = [key for key in _STAGES if isinstance(self.told.get(key), list)]
        choices = (
            self.stacks,
            tuple(s for s in self.stacks if s.convolutional),
            tuple(s for s in self.stacks if not s.reads_another),
        )
        for key in keys:
            for stages in choices:
                counts = [stage.layers for stage in stages]
                if counts and (self.told[key] == counts or _total(self.told[key]) == counts):
                    return key, stages
        return (keys[0], ()) if keys else ("", ())


def _parts(section: _Section) -> Iterator[tuple[str, tuple[Kept, ...]]]:
    """The keys of the configs within a config, and of which stacks they tell."""
    parts = [key for key, value in section.told.items() if isinstance(value, dict) and _is_part(key, value)]
    for key in parts:
        mine = tuple(stack for stack in section.stacks if _tells_of(key, stack))
        if mine or (len(parts) == len(section.stacks) == 1):
            yield key, mine or section.stacks


def _is_part(key: str, value: Mapping[str, Any]) -> bool:
    return key.endswith("_config") or key in _PARTS or "model_type" in value


def _tells_of(key: str, stack: Kept) -> bool:
    name = key.removesuffix("_config")
    if name in stack.name:
        return True
    words = next((words for word, words in _PARTS.items() if word in name), (name,))
    reader = {"encoder": False, "decoder": True}.get(name)
    if reader is not None and stack.reads_another != reader:
        return False
    return any(word in stack.name for word in words)


def _tellers(section: _Section) -> Iterator[tuple[Kept, list[str]]]:
    """Each stack with the keys of the section that may say how many layers it has."""
    key, stages = section.staged
    for stack in section.stacks:
        if stack in stages or stack.convolutional:
            continue
        if len(section.stacks) == 1:
            names = (*_ENCODER, *_DECODER, *(() if key else _ANY))
        else:
            names = _DECODER if stack.reads_another else _ENCODER + (() if key else _ANY)
        yield stack, [name for name in names if type(section.told.get(name)) is int]


def _counts_and_lists(section: _Section) -> Iterator[tuple[str, Any]]:
    for stack, keys in _tellers(section):
        told = [key for key in keys if section.told[key] == stack.layers]
        yield from ((key, len(stack.order)) for key in told)
        if told or not keys:
            yield from follow_layers(_own(section, stack), stack.layers, stack.order).items()


def _own(section: _Section, stack: Kept) -> Mapping[str, Any]:
    """What a section says of this stack: in an encoder-decoder's, the decoder's keys are called so."""
    if len(section.stacks) == 1:
        return section.told
    if stack.reads_another:
        return {key: value for key, value in section.told.items() if key.startswith("decoder_")}
    return {key: value for key, value in section.told.items() if not key.startswith("decoder_")}


def _depths(section: _Section) -> Iterator[tuple[str, Any]]:
    key, stages = section.staged
    if not stages:
        return
    if len(stages) == len(section.told[key]):
        yield key, [len(stage.order) for stage in stages]
        return
    ends = [sum(section.told[key][: i + 1]) for i in range(len(section.told[key]))]
    starts = [0, *ends[:-1]]
    (stack,) = stages
    yield key, [sum(a <= old < b for old in stack.order) for a, b in zip(starts, ends, strict=True)]


def _shifts(section: _Section) -> Iterator[str]:
    """Swin shifts the windows of every second layer of a stage; no config says of which."""
    key, stages = section.staged
    shifted = "swin" in str(section.told.get("model_type"))
    for stack in stages if shifted and len(stages) == len(section.told[key]) else ():
        if any(old % 2 != new % 2 for new, old in enumerate(stack.order)):
            yield f"every second layer of a stage has its windows shifted, and in {stack.name} others have"


def _total(depths: Sequence[Any]) -> list[int] | None:
    return [sum(depths)] if all(type(one) is int and one >= 0 for one in depths) else None
