from __future__ import annotations

from graphprune.configs import Kept, follow, follow_genai, what_is_kept
from tests.tiny import architecture


def kept(name: str, layers: int, *left: int, reads_another: bool = False) -> Kept:
    return Kept(name, layers, left, left, reads_another)


def test_what_is_kept() -> None:
    stack = architecture([("decoder", [["attention", "cross_attention", "ffn"]] * 3)]).stacks[0]
    gone = {id(block) for block in (*stack.layers[1].blocks, stack.layers[2].blocks[2])}
    assert what_is_kept(stack, gone) == Kept("decoder", 3, (0, 2), (), True)


def test_one_stack_under_any_name() -> None:
    for key in ("num_hidden_layers", "n_layer", "num_layers", "decoder_layers"):
        assert follow({key: 6, "hidden_size": 6}, [kept("decoder", 6, 0, 1, 5)]) == {key: 3, "hidden_size": 6}


def test_a_key_that_says_something_else_stays() -> None:
    assert follow({"num_hidden_layers": 5}, [kept("encoder", 6, 0)]) == {"num_hidden_layers": 5}


def test_encoder_and_decoder() -> None:
    stacks = [kept("encoder", 4, 0, 1), kept("decoder", 4, 0, 1, 2, reads_another=True)]
    bart = {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4}
    assert follow(bart, stacks) == {"encoder_layers": 2, "decoder_layers": 3, "num_hidden_layers": 2}
    assert follow({"num_layers": 4, "num_decoder_layers": 4}, stacks) == {
        "num_layers": 2,
        "num_decoder_layers": 3,
    }


def test_lists_of_one_entry_a_layer() -> None:
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "attention_types": [[["x", "y", "z"], 1]],
    }
    assert follow(config, [kept("decoder", 3, 0, 2)]) == {
        "num_hidden_layers": 2,
        "layer_types": ["a", "c"],
        "attention_types": [[["x", "z"], 1]],
    }


def test_configs_within_the_config() -> None:
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}}
    stacks = [kept("text", 4, 0, 1, 2, 3), kept("vision", 4, 0, 3)]
    assert follow(config, stacks) == {
        "text_config": {"num_hidden_layers": 4},
        "vision_config": {"num_hidden_layers": 2},
    }


def test_genai() -> None:
    config = {"model": {"decoder": {"num_hidden_layers": 4, "sliding_window": {"layers": [1, 3]}}, "x": 1}}
    assert follow_genai(config, [kept("decoder", 4, 0, 2, 3)]) == {
        "model": {"decoder": {"num_hidden_layers": 3, "sliding_window": {"layers": [2]}}, "x": 1}
    }
    assert follow_genai({"model": 3}, [kept("decoder", 4, 0)]) == {"model": 3}
