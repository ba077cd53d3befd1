"""Let an input say which blocks run: one graph, any depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from graphprune.architecture import ALL_KINDS, Architecture, Block, BlockKind
from graphprune.errors import RecipeError
from graphprune.gates import MASK, NEVER
from graphprune.prunepass import Edit, Skipped, select_blocks
from graphprune.surgery import (
    Cosine,
    FittedValues,
    Gate,
    Router,
    Score,
    Skips,
    add_skips,
    fingerprint,
    has_phase,
    why_no_gate,
    why_no_gates,
)

_KINDS: dict[str, tuple[BlockKind, ...]] = {
    "all": ALL_KINDS, "attention": ("attention", "cross_attention"), "ffn": ("ffn",)
}  # fmt: skip


@dataclass(frozen=True)
class InsertSkips:
    """Let an input say which blocks run: `run_mask`, a bool for each block, all true by default.

    `blocks` and `kinds` choose the blocks that get a gate; `graphprune inspect` lists them in the mask's
    order. Those of `skip` do not run unless the input says so: `every:2`, `all-but:even:4`, `random:2:7`. A
    block that does not run leaves the stream as it is (the norm behind it runs); KV caches stay whole.

    `phase` restricts what follows, and `skip`, to decoding (one token) or to prefill. By `policy` "cosine" a
    block does not run where its input is so close to the input of the block before it that their
    cosine is over `threshold` (FFN-SkipLLM, https://arxiv.org/abs/2404.03865); by "router" where a linear
    map of the mean of its input is, which `values` has: `<block>/router` [d] and `<block>/router_bias` [],
    and for both policies `<block>/threshold` []. The input `skip_thresholds`, a float for each block,
    sets others.
    """

    name: ClassVar[str] = "insert_skips"
    blocks: str | tuple[int | str, ...] = "all"
    kinds: Literal["all", "attention", "ffn"] = "all"
    skip: str | tuple[int | str, ...] = ()
    phase: Literal["all", "decode", "prefill"] = "all"
    policy: Literal["mask", "cosine", "router"] = "mask"
    threshold: float = NEVER
    values: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.policy == "mask" and (self.values or self.threshold != NEVER):
            raise RecipeError("thresholds and values are for the policies cosine and router")
        if self.policy == "router" and not self.values:
            raise RecipeError("the policy router needs values: an .npz file with what was fitted")
        most = 1.0 if self.policy == "cosine" else NEVER
        if not (-most <= self.threshold <= most or self.threshold == NEVER):
            raise RecipeError(
                f"threshold {self.threshold} is no {self.policy} score: give {-most:g} to {most:g}"
            )

    def pinned(self) -> InsertSkips:
        """The same, bound to the file as it is now."""
        if not self.values:
            return self
        return replace(self, sha256=self.sha256 or fingerprint(self.values))

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say which blocks would get a gate. Raises `RecipeError` where the values do not fit."""
        chosen = select_blocks(architecture, self.blocks, _KINDS[self.kinds])
        off = {block.id for block in self._off(architecture)}
        if not chosen:
            return
        reason = why_no_gates(architecture)
        if not has_phase(architecture.model.graph, self.phase):
            reason = reason or f"it takes no tokens on top of a cache: there is no {self.phase} of its own"
        if reason:
            yield Skipped(MASK, reason)
            return
        values = FittedValues.open(self.values, self.sha256) if self.values else None
        if values is not None:
            values.require_known(architecture)
        reasons = why_no_gate(architecture)
        gates: dict[str, Gate] = {}
        for block in chosen:
            found = reasons.get(block.id) or self._gate(block, architecture, off, values)
            if isinstance(found, Gate):
                gates[block.id] = found
            elif block.id not in gates:
                yield Skipped(block.id, found)
        if gates:
            skips = Skips(gates, self.phase)
            yield Edit(MASK, self._summary(gates), partial(add_skips, architecture, skips), last=True)

    def _off(self, architecture: Architecture) -> tuple[Block, ...]:
        return select_blocks(architecture, self.skip, _KINDS[self.kinds]) if self.skip else ()

    def _gate(
        self, block: Block, architecture: Architecture, off: set[str], values: FittedValues | None
    ) -> Gate | str:
        """The gate of a block; why it has none, where that is so."""
        listed = block.id not in off
        runs = listed or self.phase != "all"
        if self.policy == "mask":
            return Gate(runs, listed)
        keys = values.of(block.id) if values is not None else frozenset()
        score: Score = Cosine()
        if self.policy == "cosine" and next(architecture.stack_of(block).blocks) is block:
            return "there is no block before it whose input its own could be compared with"
        if self.policy == "router":
            if values is None or "router" not in keys:
                return f"{self.values} holds no router for it"
            score = Router(
                values.read(block.id, "router", (None,)), float(values.read(block.id, "router_bias", ()))
            )
        threshold = self.threshold
        if values is not None and threshold == NEVER and "threshold" in keys:
            threshold = float(values.read(block.id, "threshold", ()))
        return Gate(runs, listed, score, threshold)

    def _summary(self, gates: dict[str, Gate]) -> str:
        ids = [*gates]
        names = ", ".join(ids) if len(ids) < 4 else f"{ids[0]} … {ids[-1]}"
        off = sum(not (gate.runs and gate.listed) for gate in gates.values())
        by_default = f"; {off} do not by default" if off else ""
        when = "" if self.phase == "all" else f" in {self.phase}"
        rule = {"mask": "", "cosine": ", or cosines", "router": ", or routers"}[self.policy]
        return f"let an input{rule} say which of {len(ids)} blocks run{when}: {names}{by_default}"
