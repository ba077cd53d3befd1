"""Whether the files of a folder belong together: none of a set is missing, and no two disagree.

What a file takes and gives tells what it needs from another one: the states of an encoder,
caches that only the first pass makes. Only what surely cannot work is refused: several models that
have nothing to do with each other may lie in one folder, and a file that is named by itself is
taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from graphprune.configs_genai import broken_names
from graphprune.errors import LoadError
from graphprune.hints import required_inputs
from graphprune.slots import slot_of
from graphprune.vocabulary import strangers

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.bundle import Bundle, ModelFile
    from graphprune.survey import SurveyedFile

_STATES = "encoder_hidden_states"
_HINT = "put back the files that were written together, or name one .onnx file to take it by itself"
# Models that are the encoder of an encoder-decoder one and no more, by the ends of transformers' class names.
_ENCODERS = ("EncoderModel", "ForAudioClassification", "ForSequenceClassification", "ForTokenClassification")


def require_set(bundle: Bundle, files: Sequence[SurveyedFile] | None = None) -> None:
    """Raise `LoadError` where a folder's files cannot be one set; `files` is what was recovered from them.

    Looks at names and shapes of inputs and outputs, at the configs, at the tables of tokens, and (where
    one stack is in several files) at the blocks and the first weights of the stacks.
    """
    if bundle.folder is None:
        return
    signatures = [_Signature(file) for file in bundle.files]
    decoders = [one for one in signatures if one.is_part_of(signatures)]
    config, genai = (bundle.configs.get(name, {}) for name in ("config.json", "genai_config.json"))
    problems = chain(
        broken_names(genai, _names(bundle)),
        _without_encoder(signatures),
        _without_decoder(signatures, config),
        _caches_from_nowhere(signatures),
        _caches_for_nobody(signatures, config),
        _misshaped(signatures),
        _strangers(signatures, config),
        _unlike(bundle, decoders, files),
    )
    for problem in problems:
        raise LoadError(f"{bundle.folder}: {problem}: {_HINT}")


@dataclass(frozen=True, eq=False)
class _Signature:
    """What one file takes and gives; `pasts` and `presents` are caches by their slots."""

    file: ModelFile

    @property
    def name(self) -> str:
        return self.file.name

    @cached_property
    def inputs(self) -> dict[str, ir.Value]:
        return required_inputs(self.file.model.graph)

    @cached_property
    def outputs(self) -> dict[str, ir.Value]:
        return {value.name or "": value for value in self.file.model.graph.outputs}

    @cached_property
    def pasts(self) -> dict[str, ir.Value]:
        return {slot: value for value in self.inputs.values() if (slot := slot_of(value, "past"))}

    @cached_property
    def presents(self) -> dict[str, ir.Value]:
        return {slot: value for value in self.outputs.values() if (slot := slot_of(value, "present"))}

    @property
    def is_decoder(self) -> bool:
        """Whether it makes text of what an encoder puts out."""
        ids = {"input_ids", "decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds"} & set(self.inputs)
        return bool(ids) and _STATES in self.inputs and ("logits" in self.outputs or bool(self.presents))

    @cached_property
    def states(self) -> list[ir.Value]:
        """What of its outputs may be an encoder's states."""
        if _STATES in self.inputs or self.pasts:
            return []
        return [value for value in self.outputs.values() if value.shape is None or len(value.shape) == 3]

    def begins(self) -> bool:
        """Whether it makes caches out of nothing."""
        return bool(self.presents) and not self.pasts

    def is_part_of(self, others: Sequence[_Signature]) -> bool:
        """Whether it holds a decoder that other files may hold too."""
        if self.is_decoder or set(self.pasts) - set(self.presents):
            return True
        mine = set(self.pasts) | set(self.presents)
        return any(
            one is not self
            and mine & (set(one.pasts) | set(one.presents))
            and (self.begins() or one.begins())
            for one in others
        )


def _names(bundle: Bundle) -> dict[str, tuple[list[str], list[str]]]:
    """The inputs and outputs of every file."""
    return {
        file.name: (
            [value.name or "" for value in file.model.graph.inputs],
            [value.name or "" for value in file.model.graph.outputs],
        )
        for file in bundle.files
    }


def _without_encoder(signatures: Sequence[_Signature]) -> Iterator[str]:
    """A decoder that no file gives what it reads, or something of another width."""
    states = [value for one in signatures for value in one.states]
    for decoder in (one for one in signatures if one.is_decoder):
        if not states:
            yield f"{decoder.name} takes {_STATES}, and no file gives them: the encoder's file is missing"
        widths = {_size(value, -1) for value in states}
        wanted = _size(decoder.inputs[_STATES], -1)
        if len(states) == 1 and wanted and None not in widths and wanted not in widths:
            (width,) = widths
            yield (
                f"{decoder.name} takes {_STATES} of width {wanted}, and {states[0].name} of the encoder "
                f"has width {width}: they are of different models"
            )


def _without_decoder(signatures: Sequence[_Signature], config: Mapping[str, Any]) -> Iterator[str]:
    """An encoder alone, called as one half of a pair; one that was exported by itself is called otherwise."""
    given = config.get("architectures")
    models = [str(name) for name in given] if isinstance(given, list) else []
    if config.get("is_encoder_decoder") is not True or any(name.endswith(_ENCODERS) for name in models):
        return
    halves = [one.name for one in signatures if one.name.rpartition("/")[2].startswith("encoder_model")]
    if halves and len(halves) == len(signatures):
        yield f"config.json says is_encoder_decoder, and {halves[0]} has no decoder's file beside it"


def _caches_from_nowhere(signatures: Sequence[_Signature]) -> Iterator[str]:
    """A file that goes on from caches which no file makes."""
    made = {slot for one in signatures for slot in one.presents}
    for one in signatures:
        missing = [value.name for slot, value in one.pasts.items() if slot not in made]
        if missing and one.presents:
            makers = [other.name for other in signatures if other is not one and other.presents]
            why = f"{makers[0]} has other caches" if makers else "the file for the first pass is missing"
            yield f"{one.name} takes {_listed(missing)}, and no file gives that: {why}"


def _caches_for_nobody(signatures: Sequence[_Signature], config: Mapping[str, Any]) -> Iterator[str]:
    """A file that makes caches which no file goes on from, or not all of them."""
    for one in (one for one in signatures if one.begins()):
        takers = [other for other in signatures if set(other.pasts) & set(one.presents)]
        for taker in takers:
            over = [value.name for slot, value in one.presents.items() if slot not in taker.pasts]
            if over:
                yield f"{one.name} gives {_listed(over)}, and {taker.name} does not take that"
        if one.is_decoder and not takers and config.get("use_cache", False):
            yield (
                f"{one.name} gives {_listed([v.name for v in one.presents.values()])}, and no file takes "
                "that: the decoder's file with past (or the merged one) is missing"
            )


def _misshaped(signatures: Sequence[_Signature]) -> Iterator[str]:
    """Caches of one slot with other numbers of heads, or heads of another size."""
    for giver in signatures:
        for taker in signatures:
            for slot in giver.presents.keys() & taker.pasts.keys():
                given, taken = giver.presents[slot], taker.pasts[slot]
                sizes = [(_size(given, axis), _size(taken, axis)) for axis in (1, -1)]
                if any(a and b and a != b for a, b in sizes) and _rank(given) == _rank(taken):
                    yield (
                        f"{giver.name} gives {given.name} of shape {given.shape}, and {taker.name} takes "
                        f"{taken.name} of shape {taken.shape}"
                    )


def _strangers(signatures: Sequence[_Signature], config: Mapping[str, Any]) -> Iterator[str]:
    """An encoder that reads other tokens than the decoder."""
    encoders = [one for one in signatures if one.states]
    for decoder in (one for one in signatures if one.is_decoder and len(encoders) == 1):
        why = strangers(encoders[0].inputs, decoder.inputs, config)
        if why:
            yield f"{encoders[0].name} {why} ({decoder.name}): they are of different models"


def _unlike(
    bundle: Bundle, decoders: Sequence[_Signature], files: Sequence[SurveyedFile] | None
) -> Iterator[str]:
    """What sets the decoder stacks in several files, or in the branches of one, apart."""
    merged = any("use_cache_branch" in one.inputs for one in decoders)
    if len(decoders) < 2 and not merged:
        return
    from graphprune.copies import differences
    from graphprune.survey import inspect, ungated

    names = {one.name for one in decoders}
    surveyed = [file for file in files or inspect(ungated(bundle)) if file.name in names]
    yield from differences(surveyed)


def _size(value: ir.Value, axis: int) -> int | None:
    """The size of an axis where the graph says it."""
    dims = tuple(value.shape or ())
    size = dims[axis] if len(dims) > 2 else None
    return size if isinstance(size, int) else None


def _rank(value: ir.Value) -> int:
    return len(value.shape or ())


def _listed(names: Sequence[str | None]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
