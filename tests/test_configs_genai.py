from __future__ import annotations

from typing import Any

from graphprune.configs import Kept
from graphprune.configs_genai import follow_genai

FILES = ("model.onnx",)


def config(**more: Any) -> dict[str, Any]:
    decoder = {
        "filename": "model.onnx",
        "num_hidden_layers": 4,
        "inputs": {"past_key_names": "past_key_values.%d.key"},
    }
    return {"model": {"decoder": decoder | more, "x": 1}}


def pasts(*numbers: int) -> dict[str, list[str]]:
    return {"model.onnx": ["input_ids", *(f"past_key_values.{number}.key" for number in numbers)]}


def test_caches_are_counted_and_numbered() -> None:
    stack = Kept("decoder", 4, (0, 2, 3), 4, (0, 2, 3), files=FILES)
    given = config(sliding_window={"window_size": 8, "layers": [1, 3]})
    expected = config(num_hidden_layers=3, sliding_window={"window_size": 8, "layers": [2]})
    assert follow_genai(given, [stack], pasts(0, 1, 2)) == expected


def test_a_layer_that_lost_only_its_attention_is_not_counted() -> None:
    stack = Kept("decoder", 4, (0, 1, 2, 3), 4, (0, 1, 3), files=FILES)
    assert follow_genai(config(), [stack], pasts(0, 1, 2)) == config(num_hidden_layers=3)


def test_caches_with_gaps_keep_their_numbers() -> None:
    stack = Kept("decoder", 4, (0, 1, 2, 3), 4, (0, 1, 3), files=FILES)
    given = config(sliding_window={"layers": [1, 3]})
    assert follow_genai(given, [stack], pasts(0, 1, 3)) == config(
        num_hidden_layers=3, sliding_window={"layers": [1, 3]}
    )


def test_a_layer_that_runs_twice_has_two_caches() -> None:
    stack = Kept("decoder", 4, (0, 1, 1, 2, 3), 4, (0, 1, 1, 2, 3), files=FILES)
    given = config(sliding_window={"layers": [1]}, layer_types=["a", "b", "c", "d"])
    expected = config(
        num_hidden_layers=5, sliding_window={"layers": [1, 2]}, layer_types=["a", "b", "b", "c", "d"]
    )
    assert follow_genai(given, [stack], pasts(0, 1, 2, 3, 4)) == expected


def test_each_section_follows_its_own_file() -> None:
    given = {
        "model": {
            "decoder": {"filename": "decoder.onnx", "num_hidden_layers": 4},
            "encoder": {"filename": "encoder.onnx", "num_hidden_layers": 4},
        }
    }
    stacks = [
        Kept("decoder", 4, (0,), 4, (0,), reads_another=True, files=("decoder.onnx",)),
        Kept("encoder", 4, (0, 1, 3), files=("encoder.onnx",)),
    ]
    followed = follow_genai(given, stacks, {})["model"]
    assert followed["decoder"]["num_hidden_layers"] == 1
    assert followed["encoder"]["num_hidden_layers"] == 3


def test_what_is_no_genai_config_stays() -> None:
    stack = Kept("decoder", 4, (0,), files=FILES)
    assert follow_genai({"model": 3}, [stack], {}) == {"model": 3}
    assert follow_genai(config(num_hidden_layers=7), [stack], {}) == config(num_hidden_layers=7)
