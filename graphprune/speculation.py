"""Drafts of a model by itself, with some of its blocks passed by; the whole of it verifies them.

Zhang et al. 2023, Draft & Verify (https://arxiv.org/abs/2309.08168); Xia et al. 2024, SWIFT
(https://arxiv.org/abs/2410.06916); Elhoushi et al. 2024, LayerSkip (https://arxiv.org/abs/2404.16710).
One session does both: weights are loaded once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphprune.errors import EditError, RunError
from graphprune.gates import MASK, mask_without, read_gates, require_gates

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from graphprune.bundle import ModelFile
    from graphprune.session import Session
    from graphprune.settings import Settings

_RANGE = re.compile(r"(.*\.)?(\d{1,9})-(\d{1,9})")


@dataclass(frozen=True)
class Drafting:
    """How a model drafts its own text: without the layers and blocks that `skip` selects.

    Before each verification it drafts `tokens` at most; one whose probability in the draft is less than
    `confidence` is the last. Raises `RunError` where a number is out of its range.
    """

    skip: str
    tokens: int = 6
    confidence: float = 0.4

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise RunError(f"a draft of {self.tokens} tokens is none: give 1 or more")
        if not 0 <= self.confidence <= 1:
            raise RunError(f"a draft's confidence {self.confidence} is not from 0 to 1")


@dataclass(eq=False)
class Shortcut:
    """What a loaded file is given so that it passes by `blocks`: values of optional inputs.

    `empty` are the names of the caches that it does not write then. `proved` says that it was seen to
    score several tokens at once as one by one, so that it can verify.
    """

    blocks: tuple[str, ...]
    inputs: Mapping[str, NDArray[np.bool_]]
    empty: frozenset[str] = frozenset()
    proved: bool = False


@dataclass(frozen=True)
class Drafts:
    """What became of drafts: tokens drafted, those of them that were kept, and runs that verified them."""

    drafted: int
    accepted: int
    verifications: int

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that were kept."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_verification(self) -> float:
        """Tokens that a verification yields: those kept of the draft, and the one after them."""
        return 1 + self.accepted / self.verifications if self.verifications else 0.0


def open_with_shortcut(file: ModelFile, skip: str, settings: Settings | None) -> tuple[Session, Shortcut]:
    """Load a file so that the blocks that `skip` selects can be passed by.

    A model that has gates is used as it is; another one gets a shortcut in memory. Raises `RunError`
    where blocks cannot be passed by, `SelectionError`, `LoadError`.
    """
    from graphprune.session import open_session

    gates = read_gates(file.model.metadata_props)
    if gates:
        session = open_session(file.path, file.name, settings)
        return session, _by_gates(session, gates, skip)
    return _by_shortcut(file, skip, settings)


def _by_gates(session: Session, gates: tuple[str, ...], skip: str) -> Shortcut:
    import numpy as np

    items = [one for item in skip.split(",") if item.strip() for one in _spread(item.strip())]
    require_gates(gates, items, session.name)
    mask = np.array(mask_without(gates, items))
    blocks = tuple(id for id, runs in zip(gates, mask, strict=True) if not runs)
    return Shortcut(blocks, {MASK: mask & session.given.get(MASK, True)})


def _spread(item: str) -> Iterable[str]:
    """The layers of a range such as `decoder.4-7`, each for itself; anything else as it is."""
    match = _RANGE.fullmatch(item)
    if match is None:
        return (item,)
    stack, first, last = match[1] or "", int(match[2]), int(match[3])
    return [f"{stack}{number}" for number in range(first, last + 1)]


def _by_shortcut(file: ModelFile, skip: str, settings: Settings | None) -> tuple[Session, Shortcut]:
    import numpy as np

    from graphprune.changed import open_changed
    from graphprune.surgery.shortening import WHOLE

    try:
        model, blocks, empty = shorten(file, skip)
    except EditError as error:
        raise RunError(f"{file.name}: no draft without {skip}: {error}") from error
    shortcut = Shortcut(blocks, {WHOLE: np.array(False)}, empty)
    return open_changed(file, model, settings), shortcut


def shorten(file: ModelFile, skip: str) -> tuple[ir.Model, tuple[str, ...], frozenset[str]]:
    """A copy of a model with a shortcut, the blocks that this passes by, and the caches that it leaves empty.

    Raises `EditError` where there can be none, `SelectionError`.
    """
    try:
        return _shortened(_shared(file.model.clone()), skip)
    except EditError:  # what is computed once for several blocks may be in the way
        return _shortened(file.model.clone(), skip)


def _shortened(model: ir.Model, skip: str) -> tuple[ir.Model, tuple[str, ...], frozenset[str]]:
    from graphprune.architecture import ALL_KINDS
    from graphprune.recover import recover
    from graphprune.selection import select_blocks
    from graphprune.surgery import sweep
    from graphprune.surgery.shortening import add_shortcut

    architecture = recover(model)
    blocks = tuple(dict.fromkeys(one.id for one in select_blocks(architecture, skip, ALL_KINDS)))
    empty = add_shortcut(architecture, blocks)
    sweep(model)
    return model, blocks, frozenset(empty)


def _shared(model: ir.Model) -> ir.Model:
    """A model that computes nothing twice: ONNX Runtime sees that outside of an If, but not inside."""
    from onnx_ir.passes import Sequential
    from onnx_ir.passes.common import (
        CommonSubexpressionEliminationPass,
        DeduplicateInitializersPass,
        LiftConstantsToInitializersPass,
    )

    lift = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    return Sequential(lift, DeduplicateInitializersPass(), CommonSubexpressionEliminationPass())(model).model
