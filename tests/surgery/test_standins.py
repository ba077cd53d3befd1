"""Where something can stand in for a block, and where not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphprune as gp
from graphprune.errors import EditError
from graphprune.macs import Macs
from graphprune.recover import recover
from graphprune.surgery import drop_block, macs_of, place_for, replace_block, sweep
from tests.graphs import attention, ffn, norm, only_block, written
from tests.surgery.test_sums import X, run
from tools.zoo import entries

IMAGE = "float[batch, 8, 6, 6]"


@pytest.mark.parametrize(
    ("body", "reads"),
    [
        (f"{norm('x', 'n')} {ffn('n', 'f')} y = Add (x, f)", "n"),
        (f"{ffn('x', 'f')} y = Add (x, f)", "x"),
        (f"{ffn('x', 'f')} t = Add (x, f) {norm('t', 'y')}", "x"),
        (f"{norm('x', 'n')} {attention('n', 'a')} {norm('a', 'b')} y = Add (x, b)", "n"),
        (f"{attention('x', 'a')} {norm('a', 'b')} y = Add (x, b)", "x"),
        (f"{norm('x', 'n')} {ffn('n', 'f')} l = Mul (f, scale_8) y = Add (x, l)", "n"),
    ],
    ids=["pre", "none", "post", "sandwich", "after the branch", "layer scale"],
)
def test_what_a_linear_reads(body: str, reads: str) -> None:
    block = only_block(written(body))
    place = place_for(block)
    assert not isinstance(place, str), place
    assert (place.reads.name, place.width, place.dtype) == (reads, 8, ir.DataType.FLOAT)


@pytest.mark.parametrize(
    ("body", "reason", "options"),
    [
        (f"w = MatMul (x, w_8x8) {ffn('x', 'f')} y = Add (w, f)", "the shortcut into node", {}),
        (f"{ffn('x', 'f')} l = Mul (f, scale_8) y = Add (x, l)", "not known to be along the last axis", {}),
        (
            f"t = Transpose <perm = [0, 2, 1]> (x) {norm('t', 'n')} {ffn('n', 'f')} "
            "b = Transpose <perm = [0, 2, 1]> (f) y = Add (x, b)",
            "not known to be along the last axis",
            {"inputs": "float[batch, 8, sequence] x", "outputs": "float[batch, 8, sequence] y"},
        ),
        (
            "u = Conv (x, up_24x8x1x1) r = Relu (u) f = Conv (r, down_8x24x1x1) y = Add (x, f)",
            "its features are not the last axis",
            {"inputs": f"{IMAGE} x", "outputs": f"{IMAGE} y"},
        ),
        (
            "u = Conv <pads = [1, 1, 1, 1]> (x, up_24x8x3x3) r = Relu (u) "
            "f = Conv <pads = [1, 1, 1, 1]> (r, down_8x24x3x3) y = Add (x, f)",
            "it is a block of kind conv",
            {"inputs": f"{IMAGE} x", "outputs": f"{IMAGE} y"},
        ),
    ],
    ids=["projected", "unknown axis", "turned", "1x1", "conv"],
)
def test_where_nothing_can_stand_in(body: str, reason: str, options: dict[str, str]) -> None:
    (block,) = recover(written(body, **options)).blocks
    found = place_for(block)
    assert isinstance(found, str) and reason in found, found


@pytest.mark.parametrize("family", ["squeezebert", "convnext", "resnet"])
def test_streams_with_channels_first_are_declined(family: str) -> None:
    (entry,) = entries(family, fast=True)
    blocks = [*gp.inspect(gp.load(entry.files()[0]))[0].architecture.blocks]
    assert blocks and all(isinstance(place_for(block), str) for block in blocks)


def test_every_token_costs_one_run() -> None:
    block = only_block(written(f"{norm('x', 'n')} {ffn('n', 'f')} y = Add (x, f)"))
    one, two = np.zeros((8, 2), np.float32), np.zeros((2, 8), np.float32)
    assert macs_of(block, [one, two]) == Macs.of(32, "batch", "sequence")
    assert macs_of(block, []) == Macs()


def test_zeros_are_what_dropping_is() -> None:
    body = f"{norm('x', 'n')} {ffn('n', 'f')} h = Add (x, f)"
    body += f"{norm('h', 'm')} {attention('m', 'a')} y = Add (h, a)"
    model = written(body)
    architecture = recover(model)
    block = next(iter(architecture.blocks))
    place = place_for(block)
    assert not isinstance(place, str)
    replace_block(block, architecture, place, [np.zeros((8, 8), np.float32)], np.zeros(8, np.float32))
    sweep(model)
    plain = written(body)
    architecture = recover(plain)
    drop_block(next(iter(architecture.blocks)), architecture)
    sweep(plain)
    np.testing.assert_array_equal(run(model, X), run(plain, X))


def test_a_join_that_reads_the_stream_no_more() -> None:
    model = written(f"{norm('x', 'n')} {ffn('n', 'f')} y = Add (x, f)")
    architecture = recover(model)
    (block,) = architecture.blocks
    place = place_for(block)
    assert not isinstance(place, str)
    block.join.replace_input_with(0, block.branches[0].terms[0])
    with pytest.raises(EditError, match=r"does not add the stream as it is any more"):
        replace_block(block, architecture, place, [np.eye(8, dtype=np.float32)], None)
