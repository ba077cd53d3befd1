"""The multiply-accumulates that are left where caches stay or a part of a block goes: counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import graphprune as gp
from graphprune.recipe import Recipe
from tests.graphs import STREAM, written
from tests.surgery.test_signature import with_cross, with_ffn
from tools.zoo import entries

# Of one token of width 8 and nothing else to attend to; an FFN is 24 wide.
KEYS_AND_VALUES = 2 * 8 * 8
ATTENTION = 4 * 8 * 8 + 2 * 8
CROSS = 2 * 8 * 8 + 2 * 8  # keys and values come from the cache
FFN = 2 * 8 * 24
SIZES = {"batch_size": 2, "sequence_length": 5, "past_sequence_length": 3}


@pytest.mark.parametrize(
    ("make", "options", "left"),
    [
        (with_ffn, {"drop_attention": "0"}, 2 * ATTENTION + 4 * FFN),
        (with_ffn, {"drop_attention": "all"}, KEYS_AND_VALUES + 4 * FFN),
        (with_ffn, {"drop_attention": "0", "drop_layers": "1,2"}, KEYS_AND_VALUES + 2 * FFN),
        (with_cross, {"drop_attention": "1"}, 2 * ATTENTION + KEYS_AND_VALUES + 3 * CROSS),
        (with_cross, {"drop_attention": {"blocks": "1", "which": "cross"}}, 3 * ATTENTION + 2 * CROSS),
    ],
)
def test_of_a_cache_that_stays_keys_and_values_count(
    make: Callable[[], ir.Model], options: dict[str, Any], left: int, tmp_path: Path
) -> None:
    ir.save(make(), tmp_path / "decoder.onnx")
    pruned = gp.prune(gp.load(tmp_path / "decoder.onnx"), loader="optimum", **options)
    assert pruned.after.macs.at(batch=1, sequence=1, past=0) == left


def test_a_fused_op_that_puts_caches_out_does_all_of_its_work(tmp_path: Path) -> None:
    past = "float[batch, 1, past, 8]"
    body = """
    q = MatMul (x, q_8x8) k = MatMul (x, k_8x8) v = MatMul (x, v_8x8)
    c, present_key, present_value = com.microsoft.MultiHeadAttention <num_heads = 1>
        (q, k, v, , , , past_key, past_value)
    o = MatMul (c, o_8x8) h = Add (x, o)
    f = MatMul (h, up_8x24) g = Relu (f) d = MatMul (g, down_24x8) y = Add (h, d)
    """
    inputs = f"{STREAM} x, {past} past_key, {past} past_value"
    outputs = f"{STREAM} y, {past} present_key, {past} present_value"
    ir.save(written(body, inputs=inputs, outputs=outputs), tmp_path / "fused.onnx")
    pruned = gp.prune(gp.load(tmp_path / "fused.onnx"), drop_attention="0")
    sizes = dict(batch=2, sequence=5, past=3)
    attention = 10 * 4 * 64 + 2 * 8 * 10 * (5 + 3)
    assert pruned.plan.before.macs.at(**sizes) == attention + 10 * FFN
    assert pruned.after.macs.at(**sizes) == attention - 10 * 64 + 10 * FFN


def test_parallel_blocks_have_two_branches() -> None:
    (entry,) = entries("gptj", fast=True)
    bundle = gp.load(entry.files()[0])
    whole = gp.plan(bundle, Recipe()).before.macs.at(**SIZES)

    def left(**options: str) -> int:
        return gp.prune(bundle, **options).after.macs.at(**SIZES)

    both = left(drop_attention="0", drop_ffn="0")
    assert left(drop_attention="0") + left(drop_ffn="0") == whole + both
    assert 4 * both == 4 * left(drop_layers="0") == 3 * whole
