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
    return _feeds(session, source, 0, 0, first=True)


def is_cache(name: str) -> bool:
    """Whether an input or output is a cache of keys and values."""
    return bool(cache_slot(name, "past") or cache_slot(name, "present"))


def _play_one(session: Session, source: Source, steps: int, earlier: Sequence[Call]) -> list[Call]:
    handed = _handed_on(session, earlier)
    cache = {name: array for name, array in handed.items() if is_cache(name)}
    if "use_cache_branch" in session.inputs or not _complete(session, cache):
        cache = {}
    past = _length(cache)
    calls: list[Call] = []
    for step in range(1 + (steps if any(map(is_cache, session.inputs)) else 0)):
        feeds = _feeds(session, source, step, past, first=not cache) | _encoded(handed) | cache
        outputs = session.run(feeds)
        calls.append(Call(session, step, feeds, outputs))
        cache |= _presents(session, outputs)
        past = _length(cache)
    return calls


def _feeds(session: Session, source: Source, step: int, past: int, *, first: bool) -> dict[str, NDArray[Any]]:
    """Given arrays where they fit (all in the first call), valid random ones for the rest."""
    import numpy as np

    from graphprune.inputs import make_inputs

    sequence = source.sequence if first else 1
    feeds: dict[str, NDArray[Any]] = make_inputs(
        session.runtime, batch=source.batch, sequence=sequence, past=past, seed=source.seed + step
    )
    given = source.arrays if first else {}
    feeds |= {name: session.cast(name, given[name]) for name in session.inputs if name in given}
    if "use_cache_branch" in feeds:
        feeds["use_cache_branch"] = np.full_like(feeds["use_cache_branch"], not first)
    return feeds


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
