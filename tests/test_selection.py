from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import SelectionError
from graphprune.selection import policy_layers, select_blocks, select_layers
from tests.tiny import architecture

BERT = architecture([("encoder", [["attention", "ffn"]] * 6)])
SEQ2SEQ = architecture(
    [
        ("encoder", [["attention", "ffn"]] * 3),
        ("decoder", [["attention", "cross_attention", "ffn"]] * 4),
        ("decoder", [["attention", "cross_attention", "ffn"]] * 4),  # the other branch of a merged one
    ]
)


def layers(selection: object, of=SEQ2SEQ) -> list[str]:
    return [f"{stack.name}.{layer.index}" for stack, layer in select_layers(of, selection)]


def blocks(selection: object, *kinds: str, of=BERT) -> list[str]:
    return [block.id for block in select_blocks(of, selection, kinds)]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("0", ["encoder.0"]),
        (2, ["encoder.2"]),
        ("3", ["decoder.0", "decoder.0"]),
        ("2-3", ["encoder.2", "decoder.0", "decoder.0"]),
        ("-1", ["decoder.3", "decoder.3"]),
        ("-7--6", ["encoder.0", "encoder.1"]),
        ("0--6", ["encoder.0", "encoder.1"]),
        (" 0 , encoder.1 ", ["encoder.0", "encoder.1"]),
        (["encoder.-1", 0], ["encoder.0", "encoder.2"]),
        ((0, 0, "0"), ["encoder.0"]),
        ("decoder.2", ["decoder.2"] * 2),
        ("decoder.last:1", ["decoder.3"] * 2),
        ("last:1", ["decoder.3"] * 2),
        ("encoder", ["encoder.0", "encoder.1", "encoder.2"]),
        ("encoder.all", ["encoder.0", "encoder.1", "encoder.2"]),
        ("all-but:decoder,1", ["encoder.0", "encoder.2"]),
    ],
)
def test_layers(selection: object, expected: list[str]) -> None:
    assert layers(selection) == expected


@pytest.mark.parametrize(
    ("selection", "kinds", "expected"),
    [
        ("3,5", ["ffn"], ["encoder.3.ffn", "encoder.5.ffn"]),
        ("1", ["ffn", "attention"], ["encoder.1.attention", "encoder.1.ffn"]),
        ("encoder.2.ffn", ["ffn"], ["encoder.2.ffn"]),
        ("every:2", ["attention"], ["encoder.1.attention", "encoder.3.attention", "encoder.5.attention"]),
    ],
)
def test_blocks(selection: object, kinds: list[str], expected: list[str]) -> None:
    assert blocks(selection, *kinds) == expected


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("9", "layer 9 does not exist: the model has layers 0-5 (encoder)"),
        ("-7", "layer -7 does not exist: the model has layers 0-5 (encoder)"),
        ("4-9", "layer 9 (asked for by '4-9') does not exist: the model has layers 0-5 (encoder)"),
        ("4-2", "the range 4-2 runs backwards: write 2-4"),
        ("decoder.1", "'decoder.1' is no layer or block: the model has layers 0-5 (encoder)"),
        ("encoder.1.conv", "'encoder.1.conv' does not exist: the layer has the blocks encoder.1.attention, "),
        ("", "the selection is empty: the model has layers 0-5 (encoder)"),
        ([True], "True is neither"),
        ("last:9", "last:9 does not fit: there are 6 layers"),
        ("early:6", "early:6 does not fit: there are 5 layers after the first"),
        ("99999999999999999999", "is no layer or block"),
        ("all-but:all", "selects no layer"),
        ("encoder.1.ffn", "is a block, and layers are asked for: encoder.1"),
        ("all-but:encoder.1.ffn", "all-but: takes layers: encoder.1, not encoder.1.ffn"),
    ],
)
def test_errors_say_what_there_is(selection: object, message: str) -> None:
    with pytest.raises(SelectionError) as raised:
        layers(selection, of=BERT)
    assert message in str(raised.value)


def test_a_single_layer_must_have_such_a_block_and_a_range_one_at_least() -> None:
    mixed = architecture([("encoder", [["ffn"], ["attention", "ffn"], ["ffn"]])])
    assert blocks("0-2", "attention", of=mixed) == ["encoder.1.attention"]
    with pytest.raises(
        SelectionError, match=r"'0' has no block of kind attention: there are encoder\.0\.ffn"
    ):
        blocks("0", "attention", of=mixed)
    with pytest.raises(SelectionError, match="'all' has no block of kind conv"):
        blocks("all", "conv", of=mixed)
    with pytest.raises(SelectionError, match="is of kind ffn, and attention is asked for"):
        blocks("encoder.1.ffn", "attention", of=mixed)


def test_a_file_of_a_bundle_answers_for_its_own_stacks_only() -> None:
    from dataclasses import replace

    encoder, decoder = (
        architecture([("encoder", [["ffn"]] * 3)]),
        architecture([("decoder", [["ffn"]] * 2)]),
    )
    both = encoder.stacks + decoder.stacks
    encoder, decoder = (replace(one, numbering=both) for one in (encoder, decoder))
    assert layers("2-3", of=encoder) == ["encoder.2"]
    assert layers("2-3", of=decoder) == ["decoder.0"]
    with pytest.raises(SelectionError, match=r"layers 0-2 \(encoder\), layers 3-4 \(decoder\)"):
        layers("5", of=decoder)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("0", "0"), ("-4", "0"), ("1-2", "1 2"), ("last:1", "3"), ("all-but:0,3", "1 2"), ("decoder.1", "1")],
)
def test_numbers_of_cross_attention_count_the_layers_of_stacks_that_have_any(
    selection: str, expected: str
) -> None:
    wanted = [f"decoder.{index}.cross_attention" for index in expected.split()]
    assert blocks(selection, "cross_attention", of=SEQ2SEQ) == wanted * 2
    with pytest.raises(SelectionError, match=r"layers 0-3 \(decoder\), encoder.0-2$"):
        blocks("4", "cross_attention", of=SEQ2SEQ)
    with pytest.raises(SelectionError, match=r"'encoder.0' has no block of kind cross_attention"):
        blocks("encoder.0", "cross_attention", of=SEQ2SEQ)
    assert blocks("3", "cross_attention", "attention", of=SEQ2SEQ)[:2] == [
        "decoder.0.attention", "decoder.0.cross_attention",
    ]  # fmt: skip


POLICIES = ["first", "last", "early", "middle", "every", "even", "random"]


@given(
    count=st.integers(1, 40),
    number=st.integers(1, 40),
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 9),
)
def test_policies(count: int, number: int, policy: str, seed: int) -> None:
    room = count - (policy == "early")
    if number > room:
        with pytest.raises(SelectionError):
            policy_layers(count, policy, number, seed)
        return
    chosen = policy_layers(count, policy, number, seed)
    assert list(chosen) == sorted(set(chosen)) and set(chosen) <= set(range(count))
    assert len(chosen) == (count // number if policy == "every" else number)
    assert chosen == policy_layers(count, policy, number, seed)
    assert policy != "early" or 0 not in chosen
    assert policy != "middle" or abs(chosen[0] - (count - 1 - chosen[-1])) <= 1


@given(st.sets(st.integers(0, 5), min_size=1))
def test_numbers_and_all_but_are_complements(chosen: set[int]) -> None:
    listed = [int(one.rpartition(".")[2]) for one in layers(sorted(chosen), of=BERT)]
    assert listed == sorted(chosen)
    if len(chosen) < 6:
        rest = layers("all-but:" + ",".join(map(str, chosen)), of=BERT)
        assert {int(one.rpartition(".")[2]) for one in rest} == set(range(6)) - chosen


@given(st.text(alphabet="0123456789-.,:abdeflnrst ", max_size=25))
def test_any_text_selects_or_is_refused(text: str) -> None:
    try:
        assert layers(text)
    except SelectionError as error:
        assert "\n" not in str(error)


def test_even_distances() -> None:
    """As Shleifer and Rush keep them (2020, their student layers of 12), but for halves."""
    assert [policy_layers(12, "even", number) for number in (1, 2, 3, 6)] == [
        (0,), (0, 11), (0, 6, 11), (0, 2, 4, 7, 9, 11),
    ]  # fmt: skip


@given(count=st.integers(2, 60), number=st.integers(2, 60))
def test_even_distances_differ_by_one_at_most(count: int, number: int) -> None:
    if number <= count:
        chosen = policy_layers(count, "even", number)
        steps = {b - a for a, b in pairwise(chosen)}
        assert (chosen[0], chosen[-1]) == (0, count - 1) and max(steps) - min(steps) <= 1
