"""Which layers and blocks a selection such as `3,5`, `2-4`, `decoder.-1` or `encoder.3.ffn` means.

A selection is a text of items with commas between, or an iterable of items:

==================  ==========================================================================
`3`, `-1`           a layer, counted through the model from 0 (from the end: from -1)
`2-4`               a range of layers, both ends included
`first:2`           a policy: `first:n`, `last:n`, `early:n` (the n after the first layer),
                    `middle:n`, `every:n` (layers n-1, 2n-1, …), `even:n` (n at even distances,
                    the first and the last among them), `random:n` or `random:n:seed`
`all`               every layer
`decoder.3`         any of these within one stack: `decoder.2-4`, `decoder.-1`, `decoder.last:2`
`decoder`           every layer of one stack
`encoder.3.ffn`     one block
`all-but:0,5`       every layer but those that the rest selects (first in the text only)
==================  ==========================================================================

Bare numbers count the layers of all stacks, first stack first; copies of one stack (both
branches of a merged decoder, a decoder with and without past) count once and are selected
together. Where nothing but cross-attention is asked for, they count the layers of the stacks that
have any, so not those of an encoder. Everything here is pure.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from graphprune.errors import SelectionError

if TYPE_CHECKING:
    from graphprune.architecture import Architecture, Block, BlockKind, Layer, Stack

Selection: TypeAlias = "str | int | Iterable[int | str]"
_Place: TypeAlias = "tuple[str, int]"  # a stack's name, and the position of a layer in it

_ALL_BUT = "all-but:"
_NUMBER = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")
_POLICY = re.compile(r"(first|last|early|middle|every|even|random):(\d{1,9})(?::(\d{1,9}))?")


def select_layers(architecture: Architecture, selection: Selection) -> tuple[tuple[Stack, Layer], ...]:
    """The layers of `architecture` that `selection` names, copies included, in the order of the stream.

    Raises `SelectionError` where it names what the model does not have, or names a block.
    """
    numbering = _Numbering(_stacks(architecture))
    places: set[_Place] = set()
    for choice in _choices(numbering, selection):
        if choice.block:
            raise SelectionError(f"{choice.item!r} is a block, and layers are asked for: {_layer_of(choice)}")
        places.update(choice.places)
    if not places:
        raise SelectionError(f"{selection!r} selects no layer: the model has {numbering}")
    return tuple(
        (stack, layer)
        for stack in architecture.stacks
        for position, layer in enumerate(stack.layers)
        if (stack.name, position) in places
    )


def select_stack(architecture: Architecture, name: str) -> tuple[Stack, ...]:
    """The copies in `architecture` of the stack of that name; "" is the only stack that there is.

    Raises `SelectionError` where the model has no such stack, or several and none is named.
    """
    names = list(dict.fromkeys(stack.name for stack in _stacks(architecture)))
    wanted = names[0] if not name and len(names) == 1 else name
    if wanted not in names:
        asked = f"no stack is called {name!r}" if name else "a stack has to be named"
        raise SelectionError(f"{asked}: the model has {', '.join(names) or 'none'}")
    return tuple(stack for stack in architecture.stacks if stack.name == wanted)


def select_blocks(
    architecture: Architecture, selection: Selection, kinds: Collection[BlockKind]
) -> tuple[Block, ...]:
    """The blocks of one of `kinds` that `selection` names, copies included, in the order of the stream.

    A single layer must have such a block; a range, a policy or `all` takes those that are there,
    and must find one at least. Raises `SelectionError` otherwise.
    """
    numbering = _Numbering(_stacks(architecture), readers_only=set(kinds) == {"cross_attention"})
    ids: set[str] = set()
    for choice in _choices(numbering, selection):
        blocks = [block for place in choice.places for block in numbering.layer(place).blocks]
        wanted = {b.id for b in blocks if b.kind in kinds and choice.block in ("", b.id)}
        if not wanted:
            raise SelectionError(_no_such_kind(choice, blocks, kinds))
        ids |= wanted
    return tuple(block for block in architecture.blocks if block.id in ids)


def policy_layers(count: int, policy: str, number: int, seed: int = 0) -> tuple[int, ...]:
    """The positions, of `count` layers, that a policy takes: `number` of them, or every `number`-th.

    `first`, `last`, `middle` and every second are the bottom, top, symmetric and alternate
    dropping of Sajjad et al., "On the Effect of Dropping Layers of Pre-trained Transformer
    Models" (2020); `early` keeps the first layer and takes those after it. `even` are those that
    Shleifer and Rush keep (2020, https://arxiv.org/abs/2010.13002). Raises `SelectionError` where
    there are too few layers.
    """
    if number < 1 or number > count - (policy == "early"):
        spare = " after the first" if policy == "early" else ""
        raise SelectionError(f"{policy}:{number} does not fit: there are {count - bool(spare)} layers{spare}")
    start = {"first": 0, "last": count - number, "early": 1, "middle": (count - number) // 2}
    if policy in start:
        return tuple(range(start[policy], start[policy] + number))
    if policy == "every":
        return tuple(range(number - 1, count, number))
    if policy == "even":
        return tuple(round(i * (count - 1) / max(number - 1, 1)) for i in range(number))
    if policy == "random":
        return tuple(sorted(random.Random(seed).sample(range(count), number)))
    raise SelectionError(f"no policy is called {policy!r}: first, last, early, middle, every, even, random")


@dataclass(frozen=True)
class _Choice:
    """What one item of a selection means: the layers, and the one block if it names one."""

    item: str
    places: tuple[_Place, ...]
    block: str = ""


class _Numbering:
    """The layers of a model as selections count them: copies of a stack once.

    With `readers_only` bare numbers count the stacks alone that read another one, if there are any.
    """

    def __init__(self, stacks: Iterable[Stack], *, readers_only: bool = False) -> None:
        self.stacks: dict[str, Stack] = {}
        for stack in stacks:
            self.stacks.setdefault(stack.name, stack)
        readers = [name for name, stack in self.stacks.items() if readers_only and stack.reads_another]
        self.counted = readers or [*self.stacks]
        self.places = tuple(place for name in self.counted for place in self.within(name))
        self.blocks = {
            block.id: place
            for name in self.stacks
            for place in self.within(name)
            for block in self.layer(place).blocks
        }

    def layer(self, place: _Place) -> Layer:
        return self.stacks[place[0]].layers[place[1]]

    def within(self, name: str) -> tuple[_Place, ...]:
        return tuple((name, position) for position in range(len(self.stacks[name].layers)))

    def __str__(self) -> str:
        if not self.stacks:
            return "no layers"
        start, parts = 0, []
        for name in self.counted:
            last = start + len(self.stacks[name].layers) - 1
            parts.append(f"layer{'s' if last > start else ''} {_span(start, last)} ({name})")
            start = last + 1
        others = (name for name in self.stacks if name not in self.counted)
        parts += [f"{name}.{_span(0, len(self.stacks[name].layers) - 1)}" for name in others]
        return ", ".join(parts)


def _stacks(architecture: Architecture) -> tuple[Stack, ...]:
    return architecture.numbering or architecture.stacks


def _choices(numbering: _Numbering, selection: Selection) -> list[_Choice]:
    items = _items(selection)
    if not items:
        raise SelectionError(f"the selection is empty: the model has {numbering}")
    if not items[0].startswith(_ALL_BUT):
        return [_choice(numbering, item) for item in items]
    left_out: set[_Place] = set()
    for choice in _choices(numbering, [items[0].removeprefix(_ALL_BUT), *items[1:]]):
        if choice.block:
            raise SelectionError(f"{_ALL_BUT} takes layers: {_layer_of(choice)}, not {choice.item}")
        left_out.update(choice.places)
    return [_Choice(",".join(items), tuple(place for place in numbering.places if place not in left_out))]


def _items(selection: Selection) -> list[str]:
    """The items of a selection as texts; blanks around them do not count."""
    if isinstance(selection, (str, int)):
        selection = [selection]
    items: list[str] = []
    for item in selection:
        if isinstance(item, bool) or not isinstance(item, (str, int)):
            raise SelectionError(f"{item!r} is neither a layer's number nor the name of a layer or block")
        items += [part.strip() for part in str(item).split(",")]
    return [item for item in items if item]


def _choice(numbering: _Numbering, item: str) -> _Choice:
    if item in numbering.blocks:
        return _Choice(item, (numbering.blocks[item],), block=item)
    if item in numbering.stacks:
        return _Choice(item, numbering.within(item))
    for name in sorted(numbering.stacks, key=len, reverse=True):
        if item.startswith(f"{name}."):
            places = _positions(numbering.within(name), item.removeprefix(f"{name}."), item, numbering)
            return _Choice(item, places)
    return _Choice(item, _positions(numbering.places, item, item, numbering))


def _positions(places: Sequence[_Place], text: str, item: str, numbering: _Numbering) -> tuple[_Place, ...]:
    """The `places` that `text` (a number, range, policy or `all`, without a stack's name) takes."""
    if text == "all":
        return tuple(places)
    if match := _POLICY.fullmatch(text):
        policy, number, seed = match.groups()
        return tuple(places[i] for i in policy_layers(len(places), policy, int(number), int(seed or 0)))
    if match := _NUMBER.fullmatch(text):
        first, last = (int(end) for end in (match[1], match[2] or match[1]))
        return _range(places, first, last, _missing(item, numbering))
    raise SelectionError(_unknown(item, numbering))


def _range(
    places: Sequence[_Place], first: int, last: int, missing: Callable[[int], SelectionError]
) -> tuple[_Place, ...]:
    ends = []
    for end in (first, last):
        if not -len(places) <= end < len(places):
            raise missing(end)
        ends.append(end % len(places))
    if ends[0] > ends[1]:
        raise SelectionError(f"the range {first}-{last} runs backwards: write {last}-{first}")
    return tuple(places[ends[0] : ends[1] + 1])


def _missing(item: str, numbering: _Numbering) -> Callable[[int], SelectionError]:
    def error(end: int) -> SelectionError:
        asked = "" if item == str(end) else f" (asked for by {item!r})"
        return SelectionError(f"layer {end}{asked} does not exist: the model has {numbering}")

    return error


def _unknown(item: str, numbering: _Numbering) -> str:
    prefix = item.rpartition(".")[0]
    near = [block for block, place in numbering.blocks.items() if prefix == f"{place[0]}.{place[1]}"]
    if near:
        return f"{item!r} does not exist: the layer has the blocks {', '.join(near)}"
    return f"{item!r} is no layer or block: the model has {numbering}"


def _layer_of(choice: _Choice) -> str:
    return ".".join(map(str, choice.places[0]))


def _no_such_kind(choice: _Choice, blocks: Sequence[Block], kinds: Collection[BlockKind]) -> str:
    wanted = " or ".join(sorted(kinds))
    if choice.block:
        kind = next(block.kind for block in blocks if block.id == choice.block)
        return f"{choice.block!r} is of kind {kind}, and {wanted} is asked for"
    there = ", ".join(dict.fromkeys(block.id for block in blocks[:4])) + (", …" if len(blocks) > 4 else "")
    return f"{choice.item!r} has no block of kind {wanted}: there are {there or 'no layers'}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
