"""Run bundles: a file alone, a decoder with its own cache, an encoder with its decoders.

A run is a list of `Call`s. A file that takes a cache is first called with an empty one, then
once for every further step with the cache that it gave back, one token at a time; a decoder
file is fed with what the encoder file put out. Names of inputs and outputs are those that
exporters and loaders agree on (`input_ids`, `past_key_values.*` / `present.*`,
`encoder_hidden_states`): they are the models' interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import LoadError, RunError
from graphprune.slots import cache_slot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.session import Session
    from graphprune.settings import Settings

    Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Source:
    """Where inputs come from: `arrays` as given, the rest random but valid, by `seed`.

    The same source gives the same values to every model, whatever inputs the models have.
    """

    arrays: Arrays = field(default_factory=dict)
    batch: int = 1
    sequence: int = 16
    seed: int = 0

    @staticmethod
    def of_texts(path: str | Path, texts: Sequence[str]) -> Source:
        """Texts through the tokenizer of the bundle at `path`. Raises `LoadError`, `RunError`."""
        from graphprune.text import encode, load_tokenizer

        if not texts:
            raise RunError("no text was given")
        arrays = dict(encode(load_tokenizer(path), texts))
        arrays["decoder_input_ids"] = arrays["input_ids"]
        batch, sequence = arrays["input_ids"].shape
        return Source(arrays, int(batch), int(sequence))

    @staticmethod
    def of_npz(path: str | Path) -> Source:
        """Arrays of an `.npz` file by their names. Raises `LoadError`."""
        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except Exception as error:  # numpy lets zipfile's, zlib's and its own errors out
            raise LoadError(f"{path}: not an .npz file of arrays: {error}") from error
        if not arrays:
            raise LoadError(f"{path}: holds no arrays")
        shape: tuple[int, ...] = arrays.get("input_ids", next(iter(arrays.values()))).shape
        return Source(arrays, *(shape if len(shape) == 2 else shape[:1]))


@dataclass(frozen=True, eq=False)
class Call:
    """One run of one file: `step` 0 is the first, later ones continue with the cache."""

    session: Session
    step: int
    feeds: Arrays
    outputs: Arrays

    @property
    def phase(self) -> str:
        """`decode`: goes on from a cache; `prefill`: takes an empty one or gives one; else `run`."""
        caches = [name for name in self.session.inputs if is_cache(name)]
        if caches and all(self.feeds[name].size for name in caches):
            return "decode"
        return "prefill" if caches or any(map(is_cache, self.session.outputs)) else "run"


def run(
    path: str | Path, source: Source | None = None, *, steps: int = 0, settings: Settings | None = None
) -> list[Call]:
    """Load a bundle and run its files, those that take a cache for `steps` more tokens.

    `settings` say on what and how. Raises `LoadError`, `RunError`.
    """
    from graphprune.session import open_sessions

    return play(open_sessions(path, settings), source or Source(), steps=steps)


def play(sessions: Iterable[Session], source: Source, *, steps: int = 0) -> list[Call]:
    """Run all files of a bundle, those that take a cache for `steps` more tokens. Raises `RunError`."""
    calls: list[Call] = []
    for session in sessions:
        calls += _play_one(session, source, steps, calls)
    return calls


def first_feeds(session: Session, source: Source) -> dict[str, NDArray[Any]]:
    """What the first call of a file takes: what `source` gives, an empty cache, the rest at random."""
    return _feeds(session, source, 0, {})


def is_cache(name: str) -> bool:
    """Whether an input or output is a cache of keys and values."""
    return bool(cache_slot(name, "past") or cache_slot(name, "present"))


def _play_one(session: Session, source: Source, steps: int, earlier: Sequence[Call]) -> list[Call]:
    handed = _handed_on(session, earlier)
    cache = {name: array for name, array in handed.items() if is_cache(name)}
    if "use_cache_branch" in session.inputs or not _complete(session, cache):
        cache = {}
    before = next((call.feeds for call in earlier if call.step == 0 and call.session.reads_earlier), {})
    calls: list[Call] = []
    for step in range(1 + (steps if any(map(is_cache, session.inputs)) else 0)):
        _require_fit(session, cache)
        feeds = _feeds(session, source, step, cache) | _encoded(handed) | cache
        if cache:
            feeds |= _carried(session, before, feeds)
        outputs = session.run(feeds)
        calls.append(Call(session, step, feeds, outputs))
        cache |= _presents(session, outputs)
        before = feeds
    return calls


def _require_fit(session: Session, cache: Arrays) -> None:
    """Raise `RunError` where a cache has grown beyond the one length that the file takes."""
    for one in session.runtime.get_inputs():
        length = one.shape[-2] if one.name in cache and len(one.shape) >= 4 else None
        if isinstance(length, int) and length != cache[one.name].shape[-2]:
            raise RunError(
                f"{session.name}: the cache {one.name} always has {length} tokens: such a file takes no "
                "further steps"
            )


def _feeds(session: Session, source: Source, step: int, cache: Arrays) -> dict[str, NDArray[Any]]:
    """Given arrays where they fit (all in the first call), valid random ones for the rest."""
    import numpy as np

    from graphprune.inputs import make_inputs

    sequence = 1 if cache else source.sequence
    feeds: dict[str, NDArray[Any]] = make_inputs(
        session.runtime, batch=source.batch, sequence=sequence, past=_length(cache), seed=source.seed + step
    )
    given = {} if cache else source.arrays
    feeds |= {name: session.cast(name, given[name]) for name in session.inputs if name in given}
    feeds |= {name: source.arrays[name] for name in session.optional if name in source.arrays}
    if "use_cache_branch" in feeds:
        feeds["use_cache_branch"] = np.full_like(feeds["use_cache_branch"], bool(cache))
    return feeds


def _carried(session: Session, before: Arrays, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """What one more token takes over from the call before it: its encoder, its mask and one more.

    A mask that does not cover the tokens before, or has a fixed length, stays as it is.
    """
    import numpy as np

    carried: dict[str, NDArray[Any]] = {}
    for name in session.inputs:
        old, new = before.get(name), feeds[name]
        if old is None or is_cache(name):
            continue
        if name.startswith("encoder_"):
            carried[name] = old
        elif "mask" in name and old.ndim == new.ndim == 2 and not _is_fixed(session, name):
            carried[name] = np.concatenate([old, np.ones_like(old[:, :1])], axis=1)
        elif "position" in name and old.ndim == new.ndim == 2 and new.shape[1] == 1:
            carried[name] = old[:, -1:] + 1
    return carried


def _is_fixed(session: Session, name: str) -> bool:
    """Whether the last axis of an input has one size alone."""
    shape = next(one.shape for one in session.runtime.get_inputs() if one.name == name)
    return isinstance(shape[-1], int)


def _handed_on(session: Session, earlier: Sequence[Call]) -> dict[str, NDArray[Any]]:
    """What earlier files gave that this one takes: the encoder's states, its mask, caches."""
    handed: dict[str, NDArray[Any]] = {}
    for call in earlier:
        if not call.session.reads_earlier:
            states = next((array for array in call.outputs.values() if array.ndim == 3), None)
            mask = call.feeds.get("attention_mask")
            found = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            handed |= {name: array for name, array in found.items() if array is not None}
        if call.step == 0:
            handed |= _presents(session, call.outputs)
    return {name: array for name, array in handed.items() if name in session.inputs}


def _encoded(handed: Arrays) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in handed.items() if not is_cache(name)}


def _presents(session: Session, outputs: Arrays) -> dict[str, NDArray[Any]]:
    """The caches among `outputs`, by the names that `session` takes them back under; empty ones stay out."""
    given = {slot: array for name, array in outputs.items() if (slot := cache_slot(name, "present"))}
    taken = {name: given.get(slot) for name in session.inputs if (slot := cache_slot(name, "past"))}
    return {name: array for name, array in taken.items() if array is not None and array.size}


def _complete(session: Session, cache: Arrays) -> bool:
    return bool(cache) and all(name in cache for name in session.inputs if is_cache(name))


def _length(cache: Arrays) -> int:
    """How many tokens the caches hold: the self-attention's, which come first."""
    return int(next(iter(cache.values())).shape[-2]) if cache else 0
