from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import RunError
from graphprune.gates import GATES, MASK, THRESHOLDS, mask_without, read_gates, require_gates, without_rules

IDS = ("encoder.1.ffn", "decoder.1.attention", "decoder.1.ffn", "decoder.11.ffn")


@pytest.mark.parametrize(
    ("skipped", "mask"),
    [
        (("1",), [False, False, False, True]),
        (("decoder.1",), [True, False, False, True]),
        (("decoder",), [True, False, False, False]),
        (("decoder.1.ffn", "11"), [True, True, False, False]),
        ((), [True] * 4),
        (("none",), [True] * 4),
    ],
)
def test_blocks_layers_and_stacks(skipped: tuple[str, ...], mask: list[bool]) -> None:
    assert mask_without(IDS, skipped) == mask


def test_what_has_no_gate() -> None:
    require_gates(IDS, ("1", "decoder"), "m.onnx")
    require_gates(IDS, ("none",), "m.onnx")
    for item in ("2", "decoder.1.f", "encoder.1.ffn.x", ""):
        with pytest.raises(RunError, match=r"m\.onnx has no gate for"):
            require_gates(IDS, (item,), "m.onnx")
    with pytest.raises(RunError, match="has no gates"):
        require_gates((), ("1",), "m.onnx")


def test_inputs_by_which_no_rule_counts() -> None:
    found = without_rules({MASK: (2,), THRESHOLDS: (2,), "decode_mask": (2,), "other": (5,)})
    assert set(found) == {THRESHOLDS, "decode_mask"}
    assert found[THRESHOLDS].dtype == np.float32 and (found[THRESHOLDS] > 1).all()
    assert found["decode_mask"].dtype == np.bool_ and found["decode_mask"].all()


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_metadata_of_anybody(text: str) -> None:
    found = read_gates({GATES: text})
    assert all(isinstance(id, str) for id in found)
    if found:
        assert list(found) == json.loads(text)
