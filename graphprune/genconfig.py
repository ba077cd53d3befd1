"""What the configs beside a model say about generating: where texts begin and end, what is never said.

Read are `generation_config.json`, `config.json` (transformers) and `genai_config.json`
(onnxruntime-genai), in this order: what the first one says counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.bundle import read_config
from graphprune.errors import LoadError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FILES = ("generation_config.json", "config.json", "genai_config.json")
# Names for how many positions a model has, and a key that only configs of relative positions have.
_CONTEXT = ("max_target_positions", "max_position_embeddings", "n_positions", "n_ctx", "context_length")
_RELATIVE = "relative_attention_num_buckets"


@dataclass(frozen=True)
class GenerationRules:
    """How a model's texts begin and end. Ids of tokens; None and empty where the configs say nothing.

    `start` is what an encoder-decoder model's text begins with, and `first` the token that it
    must go on with; `last` the one that a text ends with where it reaches its greatest length.
    `suppress` are never chosen, `begin_suppress` not as the first new token. `context` is how
    many tokens a text can have.
    """

    eos: frozenset[int] = frozenset()
    bos: int | None = None
    pad: int = 0
    start: tuple[int, ...] = ()
    first: int | None = None
    last: int | None = None
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    context: int | None = None

    def without_end(self) -> GenerationRules:
        """The same rules for texts that go on until they are long enough."""
        return replace(self, suppress=(*self.suppress, *sorted(self.eos)), eos=frozenset(), last=None)

    def apply(self, scores: NDArray[np.float32], *, begun: int, made: int, ends: bool) -> NDArray[np.float32]:
        """`scores` [rows, vocabulary] as the rules want them; a copy where they change.

        `begun` tokens were given, `made` are new; `ends` says that the next one is the last.
        """
        forced = self.first if begun + made == 1 else self.last if ends else None
        if forced is not None:
            return _only(scores, forced)
        begins = made == (1 if begun == 1 and self.first is not None else 0)
        taken = self.suppress + (self.begin_suppress if begins else ())
        return _without(scores, taken) if taken else scores


def read_rules(path: str | Path) -> GenerationRules:
    """The rules of the model at `path`: from configs in its folder, or beside a file, or one folder above.

    Raises `LoadError` where a config cannot be read.
    """
    found = dict(reversed(list(_entries(path))))

    def ids(name: str) -> tuple[int, ...]:
        return _ids(found[name], name, path) if name in found else ()

    def one(name: str) -> int | None:
        return next(iter(ids(name)), None)

    contexts = [size for name in _CONTEXT for size in ids(name) if size > 0 and _RELATIVE not in found]
    return GenerationRules(
        eos=frozenset(ids("eos_token_id")),
        bos=one("bos_token_id"),
        pad=next(iter(ids("pad_token_id") + ids("eos_token_id")), 0),
        start=_start(found, ids("decoder_start_token_id") or ids("bos_token_id")[:1], path),
        first=one("forced_bos_token_id"),
        last=one("forced_eos_token_id"),
        suppress=ids("suppress_tokens"),
        begin_suppress=ids("begin_suppress_tokens"),
        context=next(iter(contexts), None),
    )


def _start(found: Mapping[str, Any], start: tuple[int, ...], path: str | Path) -> tuple[int, ...]:
    """The start token, and Whisper's tokens for language, task and timestamps as far as they are fixed."""
    begun = list(start)
    forced = found.get("forced_decoder_ids")
    for entry in forced if isinstance(forced, list) else ():
        place, *token = _ids(entry, "forced_decoder_ids", path) or (None,)
        if place != len(begun) or not token:
            break
        begun += token
    plain = found.get("is_multilingual") is False and "no_timestamps_token_id" in found
    silent = _ids(found["no_timestamps_token_id"], "no_timestamps_token_id", path) if plain else ()
    return tuple(begun) if silent == tuple(begun[-1:]) else (*begun, *silent)


def _entries(path: str | Path) -> Iterator[tuple[str, Any]]:
    """What the configs say, in the order of precedence; nested configs of the text part come last."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    configs = []
    for name in _FILES:
        places = (folder / name, folder.absolute().parent / name)
        file = next((place for place in places if place.is_file()), None)
        configs += [read_config(file)] if file else []
    for config in configs:
        parts = [config, *(config.get(part) for part in ("text_config", "decoder", "model"))]
        for part in parts:
            entries = part.items() if isinstance(part, Mapping) else ()
            yield from ((name, value) for name, value in entries if value is not None)


def _ids(value: Any, name: str, path: str | Path) -> tuple[int, ...]:
    """An id or a list of them; None in a list is left out."""
    values = value if isinstance(value, list) else [value]
    values = [one for one in values if one is not None]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in values):
        raise LoadError(f"{path}: {name} in its configs is {value!r}, not a number or a list of numbers")
    return tuple(values)


def _only(scores: NDArray[np.float32], token: int) -> NDArray[np.float32]:
    import numpy as np

    result: NDArray[np.float32] = np.full_like(scores, -np.inf)
    result[:, token] = 0
    return result


def _without(scores: NDArray[np.float32], tokens: tuple[int, ...]) -> NDArray[np.float32]:
    import numpy as np

    result: NDArray[np.float32] = scores.copy()
    result[:, [token for token in tokens if 0 <= token < scores.shape[-1]]] = -np.inf
    return result
