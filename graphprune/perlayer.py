"""What a config says layer by layer, and how that follows when other layers run.

Configs of transformers speak of single layers in five ways: a list with an entry for each one
(`layer_types`), lists of their numbers (`mlp_only_layers`), numbers of places that are read
off behind a layer (`out_indices`), how many at the start or at the end are special
(`first_k_dense_replace`), and patterns (`global_attn_every_n_layers`). The keys here are those of
the `configuration_*.py` of transformers 4.57.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

Config: TypeAlias = "Mapping[str, Any]"
Order: TypeAlias = "Sequence[int]"
"""The layers that run, first to last, by the numbers that they had: `(0, 2, 3)` where 1 is gone."""

_LISTS = (
    *("layer_types", "attention_layers", "mlp_layer_types", "no_rope_layers", "layers_block_type"),
    *("attn_layers", "attention_window", "activation_sparsity_pattern", "intermediate_size"),
    *("block_configs", "num_query_heads", "num_kv_heads", "ffn_multipliers", "hybrid_override_pattern"),
)
_NUMBERS = (
    *("mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers", "moe_layers"),
    *("hybrid_layer_ids", "global_attn_indexes", "fullatt_block_indexes", "window_block_indices"),
    *("residual_block_indices", "pruned_heads"),
)
_PLACES = (
    *("intermediate_layers_indices", "intermediate_hidden_state_indices", "extract_layers"),
    *("deepstack_visual_indexes", "backbone_out_indices"),
)
_AT_START = ("max_window_layers", "first_k_dense_replace", "moe_layer_start_index")
_AT_END = ("num_kv_shared_layers",)

# Which layers attend to all tokens where an older config gives no `layer_types`: every n-th, counted
# from the first or to the last of n; the others are of the second kind.
_TYPES: dict[str, tuple[str, int, bool, str, str]] = {
    "gemma2": ("", 2, False, "full_attention", "sliding_attention"),
    "gpt_oss": ("", 2, False, "full_attention", "sliding_attention"),
    "vaultgemma": ("", 2, False, "full_attention", "sliding_attention"),
    "t5_gemma_module": ("", 2, False, "full_attention", "sliding_attention"),
    "olmo3": ("", 4, False, "full_attention", "sliding_attention"),
    "gemma3n_text": ("", 5, False, "full_attention", "sliding_attention"),
    "gemma3_text": ("sliding_window_pattern", 6, False, "full_attention", "sliding_attention"),
    "cohere2": ("sliding_window_pattern", 4, False, "full_attention", "sliding_attention"),
    "exaone4": ("sliding_window_pattern", 4, False, "full_attention", "sliding_attention"),
    "minimax": ("", 2, False, "linear_attention", "full_attention"),
    "qwen3_next": ("full_attention_interval", 4, False, "full_attention", "linear_attention"),
    "modernbert-decoder": ("global_attn_every_n_layers", 3, True, "full_attention", "sliding_attention"),
}
# Which layers have no rotary positions: every n-th.
_NO_ROPE = {"llama4_text": 4, "smollm3": 4}


@dataclass(frozen=True)
class _Period:
    """A pattern: layers with `number % period == place`.

    `offset` is the key of the place; without one it is the last of the period, or the first.
    `told_by` is a list that says the same, and counts where it is there.
    """

    key: str
    offset: str = ""
    last: bool = False
    told_by: str = ""

    def place(self, config: Config) -> int:
        offset = config.get(self.offset)
        if type(offset) is int:
            return offset
        return int(config[self.key]) - 1 if self.last else 0


_PERIODS = (
    _Period("global_attn_every_n_layers", told_by="layer_types"),
    _Period("sliding_window_pattern", last=True, told_by="layer_types"),
    _Period("_sliding_window_pattern", last=True, told_by="layer_types"),
    _Period("no_rope_layer_interval", last=True, told_by="no_rope_layers"),
    _Period("interleave_moe_layer_step", last=True, told_by="moe_layers"),
    _Period("decoder_sparse_step", last=True),
    _Period("encoder_sparse_step", last=True),
    _Period("moe_layer_interval", last=True),
    _Period("attn_layer_period", "attn_layer_offset", told_by="layers_block_type"),
    _Period("expert_layer_period", "expert_layer_offset"),
)


def follow_layers(config: Config, layers: int, order: Order) -> dict[str, Any]:
    """What changes in `config`, which tells of `layers` layers, when they run in `order`."""
    if list(order) == list(range(layers)):
        return {}
    told = dict(_made_explicit(config, layers))
    changed: dict[str, Any] = {}
    for key, value in (dict(config) | told).items():
        follow = _followers().get(key)
        new = follow(value, layers, order) if follow else None
        if new is not None:
            changed[key] = new
    changed |= {key: value for key, value in told.items() if key not in changed}
    return changed | dict(_outputs(config, layers, order)) | dict(_patterns(config, layers, order))


def untold(config: Config, layers: int, order: Order) -> tuple[str, ...]:
    """What `config` has no way to say about layers in `order`: keys that stay as they are, and why."""
    known = dict(config) | dict(_made_explicit(config, layers))
    keys = [
        period.key
        for period in _PERIODS
        if _is_count(config.get(period.key)) and not known.get(period.told_by)
        if _found(period, known, order) is None
    ]
    keys += [key for key in _AT_START if _is_parted(known, key, layers, order)]
    said = "tells which layers are special, and no number is right for those that are left"
    return (*(f"{key} {config[key]} {said}" for key in keys), *_told_by_place(config, layers, order))


def _told_by_place(config: Config, layers: int, order: Order) -> Iterator[str]:
    """What follows from a layer's number alone: GPT-2's scale of the scores, ALBERT's groups of weights."""
    if config.get("scale_attn_by_inverse_layer_idx") is True and list(order) != list(range(len(order))):
        yield "scale_attn_by_inverse_layer_idx scales by a layer's number, and some have another one now"
    groups = config.get("num_hidden_groups")
    if _is_count(groups) and groups <= layers:
        before = [old * groups // layers for old in order]
        if before != [new * groups // len(order) for new in range(len(order))]:
            yield f"num_hidden_groups {groups} gives other layers the same weights than those that have them"


def _is_parted(config: Config, key: str, layers: int, order: Order) -> bool:
    """Whether those that were at the start are no longer all before the others."""
    value = config.get(key)
    if not _is_count(value) or value >= layers or (key == "max_window_layers" and config.get("layer_types")):
        return False
    special = [old < value for old in order]
    return special != sorted(special, reverse=True)


_Follow: TypeAlias = "Callable[[Any, int, Order], Any]"


def _followers() -> dict[str, _Follow]:
    """How the value of each key follows; None where it is not of the form that tells of layers."""
    groups: tuple[tuple[Sequence[str], _Follow], ...] = (
        (_LISTS, _entries), (_NUMBERS, _numbers), (_PLACES, _places),
        (_AT_START, _at_start), (_AT_END, _at_end), (("moe_layer_end_index",), _end),
        (("attention_types",), _attention_types), (("block_types",), _cycled),
    )  # fmt: skip
    return {key: follow for keys, follow in groups for key in keys}


def _entries(value: Any, layers: int, order: Order) -> Any:
    if isinstance(value, str) and len(value) == layers:
        return "".join(value[i] for i in order)
    return [value[i] for i in order] if isinstance(value, list) and len(value) == layers else None


def _numbers(value: Any, layers: int, order: Order) -> Any:
    if isinstance(value, dict):  # heads that are pruned, by layer
        return {str(new): value[str(old)] for new, old in enumerate(order) if str(old) in value}
    if _are_numbers(value, layers):
        return [new for new, old in enumerate(order) if old in value]
    return None


def _places(value: Any, layers: int, order: Order) -> Any:
    if not _are_numbers(value, layers):
        return None
    found = (place_after(one, order) for one in value)
    return [place for place in found if place >= 0]


def place_after(number: int, order: Order) -> int:
    """The place in `order` behind which the stream is what layer `number` put out; -1 before the first.

    Where that layer is gone, it is the last of those before it.
    """
    last = max((old for old in order if old <= number), default=-1)
    return max((new for new, old in enumerate(order) if old == last), default=-1)


def _at_start(value: Any, layers: int, order: Order) -> Any:
    if not _is_count(value) or value >= layers:
        return None
    return sum(old < value for old in order)


def _at_end(value: Any, layers: int, order: Order) -> Any:
    return sum(old >= layers - value for old in order) if _is_count(value) and value <= layers else None


def _end(value: Any, layers: int, order: Order) -> Any:
    return sum(old <= value for old in order) - 1 if _is_count(value) and value < layers else None


def _attention_types(value: Any, layers: int, order: Order) -> Any:
    """GPT-Neo: `[[["global", "local"], 6]]`."""
    types: list[Any] = []
    for pair in value if isinstance(value, list) else []:
        match pair:
            case [list() as kinds, int() as times] if 0 < times <= layers:
                types += kinds * times
            case _:
                return None
    return [[[types[i] for i in order], 1]] if len(types) == layers else None


def _cycled(value: Any, layers: int, order: Order) -> Any:
    """RecurrentGemma: a list that begins anew until there are enough."""
    if not isinstance(value, list) or not value:
        return None
    return [value[i % len(value)] for i in order]


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_numbers(value: Any, layers: int) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < layers for one in value)


def _made_explicit(config: Config, layers: int) -> Iterator[tuple[str, Any]]:
    """Lists that a config leaves to be counted out, where its family can also read them."""
    found = _TYPES.get(str(config.get("model_type")))
    if found and not config.get("layer_types"):
        key, default, first, special, other = found
        period = config.get(key) or config.get(f"_{key}") or default
        if _is_count(period):
            at = 0 if first else period - 1
            yield "layer_types", [special if i % period == at else other for i in range(layers)]
    interval = config.get("no_rope_layer_interval") or _NO_ROPE.get(str(config.get("model_type")))
    if _is_count(interval) and not config.get("no_rope_layers"):
        yield "no_rope_layers", [int((i + 1) % interval != 0) for i in range(layers)]
    step = config.get("decoder_sparse_step")
    dense = config.get("mlp_only_layers", False)
    if _is_count(step) and (dense is None or _are_numbers(dense, layers)):
        dense = dense or []
        yield "mlp_only_layers", [i for i in range(layers) if i in dense or (i + 1) % step]
        yield "decoder_sparse_step", 1


def _outputs(config: Config, layers: int, order: Order) -> Iterator[tuple[str, Any]]:
    """A backbone's outputs, where each layer is a stage of its own: numbered from 1, 0 is the stem."""
    names = config.get("stage_names")
    if names != _stages(layers):
        return
    yield "stage_names", _stages(len(order))
    given = config.get("out_indices")
    if isinstance(given, list) and all(type(one) is int and 0 <= one <= layers for one in given):
        places = sorted({place_after(one - 1, order) + 1 if one else 0 for one in given})
        yield "out_indices", places
        if "out_features" in config:
            yield "out_features", [_stages(len(order))[place] for place in places]


def _stages(layers: int) -> list[str]:
    return ["stem", *(f"stage{number}" for number in range(1, layers + 1))]


def _patterns(config: Config, layers: int, order: Order) -> Iterator[tuple[str, int]]:
    """Periods (and their offsets) that are right for the layers that are left, where there are such."""
    known = dict(config) | dict(_made_explicit(config, layers))
    for period in _PERIODS:
        if not _is_count(known.get(period.key)):
            continue
        found = _found(period, known, order)
        if found is not None:
            yield period.key, found[0]
            if period.offset in config:
                yield period.offset, found[1]


def _wanted(period: _Period, config: Config, order: Order) -> list[bool] | None:
    every = config.get(period.key)
    if not _is_count(every):
        return None
    at = period.place(config)
    return [old % int(config[period.key]) == at for old in order]


def _found(period: _Period, config: Config, order: Order) -> tuple[int, int] | None:
    """The period and the place in it that mark the right ones of the layers in `order`; None if none does."""
    wanted = _wanted(period, config, order)
    if wanted is None:
        return None
    every = int(config[period.key])
    for length in (every, *range(1, len(order) + 2)):
        places = range(length) if period.offset else (length - 1 if period.last else 0,)
        for place in sorted(places, key=lambda one: one != period.place(config)):
            if [i % length == place for i in range(len(order))] == wanted:
                return length, place
    return None
