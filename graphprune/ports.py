"""What the inputs and outputs of a file that makes text mean.

Their names are the models' interface, on which exporters and loaders agree (`input_ids`,
`attention_mask`, `past_key_values.0.key`); the rest is read off the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from graphprune.errors import RunError
from graphprune.hints import read_hint, required_inputs
from graphprune.slots import slot_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.bundle import ModelFile

Padding = Literal["left", "right", "none"]

_IDS = ("input_ids", "decoder_input_ids")
_MASKS = ("attention_mask", "decoder_attention_mask")
_POSITIONS = ("position_ids", "decoder_position_ids")
_ONE_BY_ONE = frozenset(("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Sub", "Add", "Mul"))


@dataclass(frozen=True)
class Ports:
    """What a decoder file takes and gives, by meaning; an empty name where it has no such input.

    `pasts` and `presents` map the slots of the cache (`0.key`) to inputs and outputs, `heads` to
    the size of a head where the input's shape leaves it open. `others`
    are inputs that are the same at every step: what the encoder gave, and what the user gives.
    `single` says that the file takes one token at a time.
    """

    ids: str
    logits: str
    mask: str = ""
    positions: str = ""
    place: str = ""
    branch: str = ""
    pasts: dict[str, str] = field(default_factory=dict)
    presents: dict[str, str] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    single: bool = False

    @property
    def reads_encoder(self) -> bool:
        """Whether the file reads what an encoder put out, by itself or in its cache."""
        slots = (part for slot in self.pasts for part in slot.split("."))
        return "encoder" in slots or any(name.startswith("encoder_") for name in self.others)

    @property
    def begins(self) -> bool:
        """Whether the file can read a prompt: what it takes from a cache, it makes itself."""
        crosses = any("encoder" in slot.split(".") for slot in self.pasts)
        return bool(self.branch) or not (self.pasts and (crosses or set(self.pasts) - set(self.presents)))


def read_ports(file: ModelFile) -> Ports:
    """What a decoder file's inputs and outputs mean. Raises `RunError` where it is no decoder of tokens."""
    values, names = required_inputs(file.model.graph), inputs_of(file)
    ids = _one_of(_IDS, names)
    if not ids:
        raise RunError(f"{file.name} makes no text: it takes no input_ids, but {', '.join(names)}")
    logits = _logits(file.model.graph, values[ids])
    if not logits:
        given = ", ".join(value.name or "" for value in file.model.graph.outputs)
        raise RunError(f"{file.name} makes no text: it gives no score for each token, but {given}")
    known = {
        "mask": _one_of(_MASKS, names),
        "positions": _one_of(_POSITIONS, names),
        "place": _one_of(("cache_position",), names),
        "branch": _one_of(("use_cache_branch",), names),
    }
    pasts = {slot: name for name, value in values.items() if (slot := slot_of(value, "past"))}
    heads = {slot: size for slot, name in pasts.items() if (size := read_hint(values[name]).head)}
    outputs = file.model.graph.outputs
    presents = {slot: value.name or "" for value in outputs if (slot := slot_of(value, "present"))}
    others = tuple(name for name in names if name not in (ids, *known.values(), *pasts.values()))
    single = _axis(values[ids], 1) == 1
    return Ports(
        ids, logits, **known, pasts=pasts, presents=presents, heads=heads, others=others, single=single
    )


def inputs_of(file: ModelFile) -> tuple[str, ...]:
    """The names of the inputs of a file that must be given."""
    return tuple(required_inputs(file.model.graph))


def read_padding(file: ModelFile, ports: Ports) -> Padding:
    """How prompts of different lengths may stand side by side in the file that reads them first.

    GroupQueryAttention counts a row's tokens from its mask, and wants them at the front. Others
    want the fill at the front, if the positions of tokens are told or counted from the mask.
    """
    graph = file.model.graph
    if not ports.mask or ports.single:
        return "none"
    if any(node.op_type == "GroupQueryAttention" for node in graph.all_nodes()):
        return "right"
    return "left" if ports.positions or _is_counted(required_inputs(graph)[ports.mask]) else "none"


def position_limits(file: ModelFile) -> Iterator[int]:
    """The rows of tables of positions: those that position ids index, and rotary ones of fused attention."""
    graph = file.model.graph
    for name, value in required_inputs(graph).items():
        if name in _POSITIONS and (limit := read_hint(value).limit):
            yield limit
    for node in graph.all_nodes():
        if node.op_type == "GroupQueryAttention" and len(node.inputs) > 7 and node.inputs[7] is not None:
            rows = _axis(node.inputs[7], 0)
            if rows:
                yield rows


def _one_of(known: tuple[str, ...], names: tuple[str, ...]) -> str:
    return next((name for name in known if name in names), "")


def _axis(value: ir.Value, place: int) -> int | None:
    """The size of an axis, where the graph says it."""
    dims = tuple(value.shape or ())
    size = dims[place] if len(dims) > place else None
    return size if isinstance(size, int) else None


def _logits(graph: ir.Graph, ids: ir.Value) -> str:
    """The output with a score for each token of the vocabulary; empty where there is none.

    Vocabularies are padded, in the table of embeddings or in the head, but not by half.
    """
    rows = read_hint(ids).limit or 0
    for value in sorted(graph.outputs, key=lambda value: value.name != "logits"):
        width = _axis(value, len(value.shape or ()) - 1) if len(value.shape or ()) in (2, 3) else None
        if width is None or not rows:
            if value.name == "logits":
                return "logits"
        elif 2 * width > rows and not slot_of(value, "present"):
            return value.name or ""
    return ""


def _is_counted(mask: ir.Value) -> bool:
    """Whether a running sum over the mask tells the positions."""
    queue, seen = [mask], {mask}
    for value in queue:
        for node, _ in value.uses():
            if node.op_type == "CumSum":
                return True
            fresh = [output for output in node.outputs if output not in seen]
            queue += fresh if node.op_type in _ONE_BY_ONE else []
            seen.update(fresh)
    return False
