"""Prompts as a model takes them: ids of tokens, texts that can stand side by side, encoders' inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import RunError
from graphprune.lane import Lane

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.language import LanguageModel

    Arrays = Mapping[str, NDArray[Any]]

_STATES = "encoder_hidden_states"


@dataclass(frozen=True, eq=False)
class Group:
    """Texts that go through a model side by side: their numbers, and the ids that they begin with.

    `feeds` go to the encoder, `others` to the decoder, by the names of inputs.
    """

    rows: tuple[int, ...]
    begins: tuple[tuple[int, ...], ...]
    feeds: Arrays
    others: Arrays

    def open(self, model: LanguageModel) -> Lane:
        """Run the encoder, if there is one; a lane that is ready to begin."""
        return Lane(model, self.begins, {**_encoded(model, self.feeds), **self.others})

    def apart(self) -> Iterator[Group]:
        """The same texts, each in a group of its own."""
        rows = len(self.rows)
        for place, (row, begin) in enumerate(zip(self.rows, self.begins, strict=True)):
            parts = (_row(arrays, place, rows) for arrays in (self.feeds, self.others))
            yield Group((row,), (begin,), *parts)


def _row(arrays: Arrays, place: int, rows: int) -> Arrays:
    """One row of arrays; those that are not for each row stay as they are."""
    return {
        name: array[place : place + 1] if array.ndim and len(array) == rows else array
        for name, array in arrays.items()
    }


def read_prompts(
    model: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    start: Sequence[int] | None,
    inputs: Arrays,
) -> tuple[Group, ...]:
    """The prompts in groups, whose members are as long as each other unless the model pads.

    Raises `RunError` where the prompts and the model do not fit each other.
    """
    if model.first.ports.reads_encoder:
        return _with_encoder(model, _to_ids(model, prompts), start, inputs)
    if start is not None:
        raise RunError(
            f"{model.path} has no encoder: its texts begin with the prompts, not with start tokens"
        )
    ids = _to_ids(model, prompts)
    if not ids:
        raise RunError("no prompt was given")
    begins = [one or _beginning(model) for one in ids]
    _require_places(model, begins, model.first.session.name)
    return tuple(
        Group(rows, tuple(begins[row] for row in rows), {}, inputs)
        for rows in _side_by_side(begins, together=model.padding != "none")
    )


def _with_encoder(
    model: LanguageModel, ids: list[tuple[int, ...]], start: Sequence[int] | None, inputs: Arrays
) -> tuple[Group, ...]:
    begin = tuple(model.rules.start if start is None else start)
    if not begin:
        raise RunError(f"{model.path}: no config names decoder_start_token_id: give start tokens")
    if not ids:
        rows = _rows_of(model, inputs)
        return (Group(tuple(range(rows)), (begin,) * rows, inputs, inputs),)
    if not all(ids):
        raise RunError("a prompt has no tokens")
    takes = model.encoder.inputs if model.encoder else ()
    if "input_ids" not in takes:
        raise RunError(
            f"{model.path}: its encoder takes no tokens, but {', '.join(takes)}: give arrays for these"
            if takes
            else f"{model.first.session.name} reads what an encoder puts out, and there is none beside it"
        )
    _require_places(model, ids, model.encoder.name if model.encoder else "")
    masked = "attention_mask" in takes and "encoder_attention_mask" in model.first.ports.others
    return tuple(
        Group(
            rows,
            (begin,) * len(rows),
            {**inputs, **_filled([ids[row] for row in rows], model.rules.pad)},
            inputs,
        )
        for rows in _side_by_side(ids, together=masked)
    )


def _to_ids(model: LanguageModel, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    from graphprune.text import tokenize

    if isinstance(prompts, str) or any(isinstance(prompt, (int, np.integer)) for prompt in prompts):
        raise RunError("prompts are a list of texts, or of lists of ids: put the one into a list")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return [tuple(int(token) for token in prompt) for prompt in prompts]
    if len(texts) != len(prompts):
        raise RunError("prompts are texts or ids of tokens, not both")
    if model.tokenizer is None:
        raise RunError(f"{model.path}: no tokenizer.json here or one folder above: give ids of tokens")
    return tokenize(model.tokenizer, texts)


def _require_places(model: LanguageModel, ids: Sequence[Sequence[int]], name: str) -> None:
    """Raise `RunError` where a prompt is longer than the model's table of positions."""
    longest = max(map(len, ids))
    if model.context is not None and longest > model.context:
        raise RunError(f"a prompt has {longest} tokens, but {name} has {model.context} positions")


def _beginning(model: LanguageModel) -> tuple[int, ...]:
    if model.rules.bos is None:
        raise RunError("a prompt has no tokens, and no config of the model names bos_token_id to begin with")
    return (model.rules.bos,)


def _side_by_side(ids: Sequence[Sequence[int]], *, together: bool) -> list[tuple[int, ...]]:
    """The numbers of the texts that can stand side by side: all, or those of each length."""
    if together:
        return [tuple(range(len(ids)))]
    lengths = dict.fromkeys(len(one) for one in ids)
    return [tuple(row for row, one in enumerate(ids) if len(one) == length) for length in lengths]


def _filled(ids: Sequence[Sequence[int]], pad: int) -> dict[str, NDArray[np.int64]]:
    """`input_ids` and `attention_mask` [texts, longest], filled up at the end."""
    longest = max(map(len, ids))
    return {
        "input_ids": np.array([[*one, *[pad] * (longest - len(one))] for one in ids], np.int64),
        "attention_mask": np.array([[1] * len(one) + [0] * (longest - len(one)) for one in ids], np.int64),
    }


def _rows_of(model: LanguageModel, inputs: Arrays) -> int:
    """How many texts arrays are for: by the encoder's inputs, or by its output where they hold that."""
    names = model.encoder.inputs if model.encoder else (_STATES,)
    missing = [name for name in names if name not in inputs]
    if missing:
        raise RunError(f"{model.path}: give a prompt, or arrays for: {', '.join(missing)}")
    return len(inputs[names[0]])


def _encoded(model: LanguageModel, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """What the encoder gives to the decoders, and the mask that it was given."""
    if model.encoder is None or not feeds:
        return {}
    given = {name: model.encoder.cast(name, feeds[name]) for name in model.encoder.inputs if name in feeds}
    outputs = model.encoder.run(given)
    states = next((array for array in outputs.values() if array.ndim == 3), None)
    if states is None:
        raise RunError(f"{model.encoder.name} gives no states of an encoder, but {', '.join(outputs)}")
    mask = feeds.get("attention_mask")
    if mask is None or (mask.shape != states.shape[:2] and mask.all()):
        mask = np.ones(states.shape[:2], np.int64)
    return {_STATES: states, "encoder_attention_mask": mask}
