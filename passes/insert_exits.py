"""Let samples leave before the last layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from graphprune.architecture import Architecture, Stack
from graphprune.errors import SelectionError
from graphprune.prunepass import Edit, Skipped, select_stack
from graphprune.surgery import (
    BATCH_MODES,
    CRITERIA,
    BatchMode,
    Criterion,
    FittedValues,
    add_exits,
    fingerprint,
    read_heads,
    why_no_exits,
)


@dataclass(frozen=True)
class InsertExits:
    """Let samples leave between layers: when an exit is sure enough of one, no further layer runs for it.

    `at` are the numbers of layers that have run before an exit, as `2,4`. `heads` is the .npz file with what
    was fitted: thresholds `<k>/threshold`, and classifiers `<k>/weight` [width, classes] and `<k>/bias`, or
    maps to the last layer's stream `<k>/translator` and `<k>/translator_bias`; without either, the model's
    own final norm and head read the stream as it is. `criterion` is how sure an exit is: `confidence` (the
    largest probability), `margin`, `entropy`, `saturation` (the cosine of the pooled stream with that at the
    exit before), `patience` (how many exits in a row say the same), `rule` (`<k>/rule` [4]). `batch_mode`:
    `per-sample`, each leaves by itself, or `all`, they leave together. `stack` names the stack where there
    are several. The input `exit_thresholds` changes the thresholds at run time; the output `exit_layer` says
    after how many layers each sample left.
    Teerapittayanon et al., 2016 (BranchyNet), https://arxiv.org/abs/1709.01686; Zhou et al., 2020 (patience),
    https://arxiv.org/abs/2006.04152; Din et al., 2023 (maps to the last layer),
    https://arxiv.org/abs/2303.09435.
    """

    name: ClassVar[str] = "insert_exits"
    at: str | tuple[int | str, ...]
    heads: str
    criterion: Criterion = "confidence"
    batch_mode: BatchMode = "per-sample"
    stack: str = ""
    sha256: str = ""

    def pinned(self) -> InsertExits:
        """The same, bound to the file as it is now."""
        return replace(self, sha256=self.sha256 or fingerprint(self.heads))

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say where exits would be. Raises `SelectionError`, `RecipeError` where the heads do not fit."""
        values = FittedValues.open(self.heads, self.sha256)
        for option, given, known in (
            ("criterion", self.criterion, CRITERIA), ("batch_mode", self.batch_mode, BATCH_MODES),
        ):  # fmt: skip
            if given not in known:
                raise SelectionError(f"insert_exits: {option} '{given}' is none of {', '.join(known)}")
        for stack in select_stack(architecture, self.stack):
            at = self._places(stack)
            heads = read_heads(values, at, len(stack.layers), self.criterion, self.batch_mode)
            reason = why_no_exits(architecture, stack, by_rows=self.batch_mode == "per-sample")
            if reason:
                yield Skipped(stack.name, reason)
                continue
            text = ", ".join(map(str, at))
            apply = partial(add_exits, architecture, stack, heads)
            summary = f"let samples leave after {text} of {len(stack.layers)} layers by {self.criterion}"
            yield Edit(stack.name, summary, apply, last=True)

    def _places(self, stack: Stack) -> tuple[int, ...]:
        """After how many layers the exits are, in running order."""
        items = self.at.split(",") if isinstance(self.at, str) else self.at
        layers = len(stack.layers)
        found: set[int] = set()
        for item in (str(item).strip() for item in items):
            if "." in item:
                raise SelectionError(
                    f"insert_exits: '{item}' is inside a layer; an exit stands between layers: say how "
                    f"many run before it, 1 to {layers - 1}"
                )
            if not item.isdecimal() or not 1 <= int(item) < layers:
                raise SelectionError(
                    f"insert_exits: no exit can be after '{item}' of the {layers} layers of '{stack.name}': "
                    f"say a number from 1 to {layers - 1}"
                )
            found.add(int(item))
        return tuple(sorted(found))
