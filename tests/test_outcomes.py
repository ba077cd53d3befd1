"""Passes' answers, settled: with passes that drop what they are told, on architectures built by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.architecture import Architecture, BlockKind, Cache, Norm
from graphprune.errors import SelectionError
from graphprune.macs import Macs
from graphprune.outcomes import Outcome, ask, removed
from graphprune.prunepass import Edit, Skipped
from graphprune.selection import select_blocks, select_layers
from graphprune.survey import SurveyedFile
from tests.tiny import architecture


def nothing() -> None:
    raise AssertionError("planning applies nothing")


@dataclass(frozen=True)
class DropKind:
    blocks: str
    kind: BlockKind = "ffn"
    name: ClassVar[str] = "drop_kind"
    refuse: Callable[[Architecture, str], str] = field(default=lambda architecture, block: "")

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        for block in select_blocks(architecture, self.blocks, [self.kind]):
            reason = self.refuse(architecture, block.id)
            yield Skipped(block.id, reason) if reason else Edit(block.id, "gone", nothing, (block,))


@dataclass(frozen=True)
class DropLayers:
    layers: str
    name: ClassVar[str] = "drop_layers"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        for stack, layer in select_layers(architecture, self.layers):
            yield Edit(f"{stack.name}.{layer.index}", "gone", nothing, layer.blocks)


@dataclass(frozen=True)
class Retouch:
    """Changes a part of a block, and removes none."""

    blocks: str
    name: ClassVar[str] = "retouch"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        for block in select_blocks(architecture, self.blocks, ["ffn"]):
            yield Edit(f"{block.id}.up", "retouched", nothing)


BERT = [("encoder", [["attention", "ffn"]] * 4)]
DECODER = [("decoder", [["attention", "ffn"]] * 3)]


def files(*stacks: Sequence[tuple[str, Sequence[Sequence[BlockKind]]]]) -> list[SurveyedFile]:
    read = [architecture(one) for one in stacks]
    numbering = tuple(stack for one in read for stack in one.stacks)
    return [SurveyedFile(f"{i}.onnx", replace(one, numbering=numbering)) for i, one in enumerate(read)]


def told(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """(pass, target, the reason or nothing)."""
    return [
        (one.name, one.answer.target, one.answer.reason if isinstance(one.answer, Skipped) else "")
        for one in outcomes
    ]


@dataclass(frozen=True)
class Reverse:
    """Runs the layers of a stack the other way round."""

    stack: str
    name: ClassVar[str] = "reverse"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        for stack in architecture.stacks:
            if stack.name == self.stack:
                yield Edit(stack.name, "reversed", nothing, order=tuple(range(len(stack.layers)))[::-1])


@dataclass(frozen=True, eq=False)
class Normed:
    """Drops FFNs with the norm behind them or without, or changes that norm."""

    blocks: str
    how: Literal["drop", "drop all", "change"]
    norms: dict[str, Norm]
    name: ClassVar[str] = "normed"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        for block in select_blocks(architecture, self.blocks, ["ffn"]):
            own = self.norms.setdefault(block.id, Norm("layer", "post", (), None, ir.val("n")))
            if self.how == "change":
                yield Edit(f"{block.id}.norm", "changed", nothing, norms=(own,))
            else:
                yield Edit(
                    block.id, "gone", nothing, (block,), norms=(own,) if self.how == "drop all" else ()
                )


@pytest.mark.parametrize("first", [True, False])
def test_a_norm_that_stays_behind_may_change(first: bool) -> None:
    norms: dict[str, Norm] = {}
    change, drop, drop_all = (Normed("1", how, norms) for how in ("change", "drop", "drop all"))
    for removal, reason in ((drop, ""), (drop_all, "removed by normed")):
        passes = [change, removal] if first else [removal, change]
        found = {target: reason for _, target, reason in told(ask(passes, files(BERT)))}
        assert found == {"encoder.1.ffn": "", "encoder.1.ffn.norm": reason}


@dataclass(frozen=True)
class Exchange:
    """Puts something in the place of blocks."""

    blocks: str
    name: ClassVar[str] = "exchange"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        for block in select_blocks(architecture, self.blocks, ["ffn", "attention"]):
            yield Edit(block.id, "exchanged", nothing, (block,), instead=Macs())


def test_blocks_in_whose_place_others_stand_leave_the_stack_full() -> None:
    outcomes = ask([Exchange("all")], files(BERT))
    assert len(removed(outcomes)) == 8 and not any(reason for _, _, reason in told(outcomes))
    with pytest.raises(SelectionError, match="leave at least one"):
        ask([DropLayers("all")], files(BERT))
    assert told(ask([DropKind("1"), Exchange("1")], files(BERT))) == [
        ("drop_kind", "encoder.1.ffn", ""),
        ("exchange", "encoder.1.attention", ""),
        ("exchange", "encoder.1.ffn", "removed by drop_kind"),
    ]


def test_edits_of_different_blocks_all_stand() -> None:
    outcomes = ask([DropKind("1"), DropKind("1", "attention"), DropLayers("3")], files(BERT))
    assert [reason for _, _, reason in told(outcomes)] == ["", "", ""]
    assert sorted(block.id for block in removed(outcomes)) == [
        "encoder.1.attention",
        "encoder.1.ffn",
        "encoder.3.attention",
        "encoder.3.ffn",
    ]


def test_what_an_earlier_step_removes_a_later_one_does_not() -> None:
    assert told(ask([DropKind("1"), DropKind("1-2")], files(BERT))) == [
        ("drop_kind", "encoder.1.ffn", ""),
        ("drop_kind", "encoder.1.ffn", "removed by drop_kind"),
        ("drop_kind", "encoder.2.ffn", ""),
    ]


@pytest.mark.parametrize("first", [True, False])
def test_what_a_larger_edit_removes_needs_none_of_its_own(first: bool) -> None:
    passes = [DropLayers("1"), DropKind("1"), Retouch("1")]
    told_ = {name: reason for name, _, reason in told(ask(passes if first else passes[::-1], files(BERT)))}
    assert told_ == {
        "drop_layers": "",
        "drop_kind": "removed by drop_layers",
        "retouch": "removed by drop_layers",
    }


def test_copies_in_one_file_go_together() -> None:
    merged = files(DECODER + DECODER)
    assert [reason for _, _, reason in told(ask([DropKind("1")], merged))] == ["", ""]
    seen: list[str] = []

    def once(architecture: Architecture, block: str) -> str:
        seen.append(block)
        return "" if len(seen) == 1 else "it is odd"

    assert [reason for _, _, reason in told(ask([DropKind("1", refuse=once)], merged))] == [
        "another copy of it in 0.onnx stays",
        "it is odd",
    ]


def test_copies_in_several_files_go_together() -> None:
    bundle = files(BERT, DECODER, DECODER)
    assert told(ask([DropKind("4")], bundle)) == [("drop_kind", "decoder.0.ffn", "")] * 2
    last = bundle[-1].architecture

    def not_in_last(architecture: Architecture, block: str) -> str:
        return "it is odd" if architecture is last else ""

    assert told(ask([DropKind("3-4", refuse=not_in_last)], bundle)) == [
        ("drop_kind", "encoder.3.ffn", ""),
        ("drop_kind", "decoder.0.ffn", "its copy in 2.onnx stays: it is odd"),
        ("drop_kind", "decoder.0.ffn", "it is odd"),
    ]


def test_a_stack_keeps_a_block() -> None:
    with pytest.raises(
        SelectionError, match=r"0\.onnx: this would take every block of encoder \(layers 0-3\)"
    ):
        ask([DropLayers("all")], files(BERT))
    with pytest.raises(SelectionError, match="every block of encoder"):
        ask([DropKind("all"), DropKind("all", "attention")], files(BERT, DECODER))
    assert ask([DropKind("all")], files(BERT))


@given(st.lists(st.tuples(st.sampled_from(["ffn", "attention", "layer"]), st.integers(0, 3)), min_size=1))
def test_no_block_is_removed_twice_and_all_asked_for_are(asked: list[tuple[str, int]]) -> None:
    passes = [DropLayers(str(i)) if what == "layer" else DropKind(str(i), what) for what, i in asked]
    kinds = {"layer": {"attention", "ffn"}}
    expected = {f"encoder.{i}.{kind}" for what, i in asked for kind in kinds.get(what, {what})}
    if len(expected) == 8:
        with pytest.raises(SelectionError):
            ask(passes, files(BERT))
        return
    outcomes = ask(passes, files(BERT))
    edits = [one.answer for one in outcomes if isinstance(one.answer, Edit)]
    gone = [block.id for edit in edits for block in edit.removes]
    assert len(outcomes) == len(asked)
    assert sorted(gone) == sorted(expected)


def test_two_orders_for_one_stack_are_refused() -> None:
    stacks = [("encoder", [["attention", "ffn"]] * 2), ("decoder", [["attention", "ffn"]] * 2)]
    files = [SurveyedFile("model.onnx", architecture(stacks))]
    assert len(ask([Reverse("encoder"), Reverse("decoder")], files)) == 2
    with pytest.raises(SelectionError, match=r"reverse would arrange the layers of 'encoder' twice"):
        ask([Reverse("encoder"), Reverse("encoder")], files)


def test_layers_stay_whose_keys_another_file_computes() -> None:
    decoder = architecture([("decoder", [["attention", "cross_attention", "ffn"]] * 2)])
    names = (("past_key_cross_{}", "past_value_cross_{}"), ("present_key_cross_{}", "present_value_cross_{}"))
    layers = tuple(
        replace(
            layer,
            blocks=tuple(
                replace(
                    block,
                    caches=(Cache("cross", (), (), tuple(n.format(layer.index) for n in names[0]), ()),),
                )
                if block.kind == "cross_attention"
                else block
                for block in layer.blocks
            ),
        )
        for layer in decoder.stacks[0].layers
    )
    decoder = replace(decoder, stacks=(replace(decoder.stacks[0], layers=layers),))
    encoder = architecture([("encoder", [["attention", "ffn"]] * 2)])
    stacks = (*encoder.stacks, *decoder.stacks)
    decoder, encoder = (replace(one, numbering=stacks) for one in (decoder, encoder))
    files = [SurveyedFile("decoder.onnx", decoder), SurveyedFile("encoder.onnx", encoder)]
    assert all(isinstance(one.answer, Edit) for one in ask([DropLayers("decoder.0")], files))
    encoder.model.graph.outputs.extend(ir.val(name.format(0)) for name in names[1])
    (outcome,) = ask([DropLayers("decoder.0")], files)
    assert isinstance(outcome.answer, Skipped) and "encoder.onnx computes keys" in outcome.answer.reason
    (outcome,) = ask([Reverse("decoder")], files)
    assert isinstance(outcome.answer, Skipped)
    assert isinstance(ask([DropLayers("decoder.1")], files)[0].answer, Edit)
