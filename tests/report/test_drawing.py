"""What is drawn: the dense model's blocks in their order, each with the one that it became."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune as gp
from graphprune.architecture import Block
from graphprune.pipeline import sizes_of
from graphprune.report.ancestry import origin_of, plan_again
from graphprune.report.drawing import DrawnStack, draw
from graphprune.report.subject import Side
from tests import tiny
from tools import zoo


def side(path: Path) -> Side:
    bundle = gp.load(path)
    files = gp.inspect(bundle)
    return Side(path.name, path, bundle, files, sizes_of(bundle, files))


def drawn(dense: Path, pruned: Path) -> tuple[DrawnStack, ...]:
    """The drawing of a pruned model beside its source, by what its own file says."""
    one, other = side(dense), side(pruned)
    plan, notes = plan_again(one.bundle, origin_of(other.bundle))
    stacks, more = draw(other, one, plan, {}, {})
    assert plan is not None and not notes and not more
    return stacks


def pruned(dense: Path, out: Path, **passes: Any) -> Path:
    return gp.prune(gp.load(dense), **passes).save(out, run=False)


def weights(block: Block) -> dict[str, bytes]:
    """The weights of a block by their roles."""
    return {
        linear.role: value.const_value.numpy().tobytes()
        for linear in block.branches[0].linears
        for value in linear.weights
        if value.const_value is not None
    }


RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"drop_ffn": [1]}, "0a 0f 1a 1F 2a 2f 3a 3f"),
    ({"drop_layers": "1-2"}, "0a 0f 1A 1F 2A 2F 3a 3f"),
    ({"drop_attention": [0], "drop_ffn": [3]}, "0A 0f 1a 1f 2a 2f 3a 3F"),
    ({"reorder_layers": "0,2,1,3"}, "0a 0f 2a 2f 1a 1f 3a 3f"),
    ({"repeat_layers": [1]}, "0a 0f 1a 1f 1a 1f 2a 2f 3a 3f"),
    ({"repeat_layers": [1], "drop_ffn": [1]}, "0a 0f 1a 1F 1a 1F 2a 2f 3a 3f"),
    ({"reorder_layers": "3,2,1,0", "drop_layers": "2"}, "3a 3f 2A 2F 1a 1f 0a 0f"),
]


@pytest.mark.parametrize(("recipe", "expected"), RECIPES, ids=lambda one: str(one)[:40])
def test_blocks_are_matched_and_what_went_stays_in_its_place(
    tmp_path: Path, recipe: dict[str, Any], expected: str
) -> None:
    dense = tiny.save(tmp_path / "dense.onnx", layers=4)
    out = pruned(dense, tmp_path / "pruned.onnx", **recipe)
    (stack,) = drawn(dense, out)
    shown = [
        f"{layer.index}{kind.upper() if block.removed else kind}"
        for layer in stack.layers
        for block in layer.blocks
        for kind in [block.block.kind[0]]
    ]
    assert " ".join(shown) == expected
    # Each kept block has the weights of the dense model's block that it is drawn as.
    known = {block.id: weights(block) for block in side(dense).files[0].architecture.blocks}
    for block in stack.kept:
        assert weights(block.block) == known[block.name], block.name
    assert [block.id for block in stack.kept] == [
        block.id for block in side(out).files[0].architecture.blocks
    ]
    assert len({block.number for block in stack.blocks}) == len(list(stack.blocks))


@pytest.mark.parametrize(
    ("step", "expected"),
    [("replace_linear", ["0a", "0f", "1a!", "1f"]), ("replace_mean", ["0a", "0f", "1A", "1f"])],
)
def test_a_linear_is_drawn_in_the_place_of_its_block(tmp_path: Path, step: str, expected: list[str]) -> None:
    dense, values = tiny.save(tmp_path / "dense.onnx", layers=2), tmp_path / "v.npz"
    name = [block.id for block in gp.inspect(gp.load(dense))[0].architecture.blocks][2]
    np.savez(values, **{f"{name}/linear": np.eye(8), f"{name}/constant": np.ones(8)})
    (stack,) = drawn(
        dense, pruned(dense, tmp_path / "out.onnx", **{step: {"blocks": name, "values": str(values)}})
    )
    shown = []
    for layer in stack.layers:
        for block in layer.blocks:
            kind = block.name.rpartition(".")[2][0]
            shown.append(
                f"{layer.index}{kind.upper() if block.removed else kind}{'!' if block.changes else ''}"
            )
    assert shown == expected


def test_runs_of_a_repeated_layer_are_counted(tmp_path: Path) -> None:
    dense = tiny.save(tmp_path / "dense.onnx", layers=2)
    out = pruned(dense, tmp_path / "out.onnx", repeat_layers={"layers": [1], "times": 3})
    (stack,) = drawn(dense, out)
    assert [(layer.index, layer.run) for layer in stack.layers] == [(0, 1), (1, 1), (1, 2), (1, 3)]


def test_a_model_alone_is_drawn_as_it_is(tmp_path: Path) -> None:
    stacks, notes = draw(side(tiny.save(tmp_path / "model.onnx")), None, None, {}, {})
    assert not notes
    assert [block.name for stack in stacks for block in stack.blocks] == [
        f"{stacks[0].name}.{layer}.{kind}" for layer in range(3) for kind in ("attention", "ffn")
    ]
    assert all(not block.removed and block.now is None for stack in stacks for block in stack.blocks)


def test_another_model_is_not_taken_for_the_pruned_one(tmp_path: Path) -> None:
    dense = tiny.save(tmp_path / "dense.onnx", layers=4)
    out = pruned(dense, tmp_path / "out.onnx", drop_layers="0")
    plan, _ = plan_again(gp.load(dense), origin_of(gp.load(out)))
    other = side(tiny.save(tmp_path / "other.onnx", layers=2))
    stacks, (note,) = draw(other, side(dense), plan, {}, {})
    assert "not shown" in note and "6 blocks" in note and "4" in note
    assert [len(stack.layers) for stack in stacks] == [2]


def test_influence_goes_by_the_dense_names(tmp_path: Path) -> None:
    dense = tiny.save(tmp_path / "dense.onnx", layers=3)
    out = side(pruned(dense, tmp_path / "out.onnx", drop_layers="0"))
    one = side(dense)
    plan, _ = plan_again(one.bundle, origin_of(out.bundle))
    ids = [block.id for block in one.files[0].architecture.blocks]
    ((stack,), _) = draw(out, one, plan, {id: float(n) for n, id in enumerate(ids)}, {})
    assert [block.importance for block in stack.blocks] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_norms_of_removed_blocks_stay_where_the_pass_keeps_them(tmp_path: Path) -> None:
    dense = next(zoo.entries("bert", fast=True)).folder()
    keep = pruned(dense, tmp_path / "keep", drop_ffn=[1])
    drop = pruned(dense, tmp_path / "drop", drop_ffn={"blocks": [1], "post_norm": "drop"})
    layer = pruned(dense, tmp_path / "layer", drop_layers=[1])
    stays = [
        [b.norm_stays for s in drawn(dense, out) for b in s.blocks if b.removed]
        for out in (keep, drop, layer)
    ]
    assert stays == [[True], [False], [False, False]]


def test_an_encoder_stands_before_its_decoder_and_copies_are_drawn_once(tmp_path: Path) -> None:
    dense = next(e for e in zoo.entries("t5") if "with-past" in e.id).folder()
    out = pruned(dense, tmp_path / "out", drop_layers={"keep": 1, "stack": "decoder"})
    stacks = drawn(dense, out)
    assert [stack.name for stack in stacks] == ["encoder", "decoder"]
    kinds = [block.block.kind for block in stacks[1].layers[0].blocks]
    assert kinds == ["attention", "cross_attention", "ffn"]
    assert all(block.removed for layer in stacks[1].layers[1:] for block in layer.blocks)


def test_changes_within_a_block_are_told(tmp_path: Path) -> None:
    dense = tiny.save(tmp_path / "dense.onnx", layers=3)
    (stack,) = drawn(dense, pruned(dense, tmp_path / "out.onnx", drop_activation=[1]))
    changed = {block.name: block.changes for block in stack.blocks if block.changes}
    assert list(changed) == [f"{stack.name}.1.ffn"] and len(changed[f"{stack.name}.1.ffn"]) == 1
    assert not any(block.removed for block in stack.blocks)
