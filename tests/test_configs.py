from __future__ import annotations

import pytest

from graphprune.configs import Kept, follow, follow_generation, notes, what_is_kept
from tests.tiny import architecture


def kept(name: str, layers: int, *left: int, reads_another: bool = False) -> Kept:
    return Kept(name, layers, left, reads_another=reads_another, convolutional=name.startswith("stage"))


def test_what_is_kept() -> None:
    stack = architecture([("decoder", [["attention", "cross_attention", "ffn"]] * 3)]).stacks[0]
    gone = {id(block) for block in (*stack.layers[1].blocks, stack.layers[2].blocks[2])}
    assert what_is_kept(stack, gone) == Kept("decoder", 3, (0, 2), reads_another=True)


def test_what_is_kept_runs_in_an_order_of_its_own() -> None:
    stack = architecture([("encoder", [["attention", "ffn"]] * 3)]).stacks[0]
    gone = {id(block) for block in stack.layers[1].blocks}
    assert what_is_kept(stack, gone, (2, 1, 1, 0)).order == (2, 0)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "decoder_layers", "n_layers"])
def test_one_stack_under_any_name(key: str) -> None:
    assert follow({key: 6, "hidden_size": 6}, [kept("decoder", 6, 0, 1, 5)]) == {key: 3, "hidden_size": 6}


def test_a_key_that_says_something_else_stays_and_is_told_of() -> None:
    config = {"num_hidden_layers": 5, "layer_types": ["a"] * 5}
    stacks = [kept("encoder", 6, 0)]
    assert follow(config, stacks) == config
    assert notes(config, stacks) == ("it says num_hidden_layers 5, and encoder has 6 layers: left as it is",)


def test_encoder_and_decoder() -> None:
    stacks = [kept("encoder", 4, 0, 1), kept("decoder", 4, 0, 1, 2, reads_another=True)]
    bart = {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4}
    assert follow(bart, stacks) == {"encoder_layers": 2, "decoder_layers": 3, "num_hidden_layers": 2}
    t5 = {"num_layers": 4, "num_decoder_layers": 4}
    assert follow(t5, stacks) == {"num_layers": 2, "num_decoder_layers": 3}
    pair = {"encoder": {"num_hidden_layers": 4, "model_type": "bert"}, "decoder": {"num_hidden_layers": 4}}
    followed = follow(pair, stacks)
    assert followed["encoder"]["num_hidden_layers"] == 2
    assert followed["decoder"]["num_hidden_layers"] == 3


def test_lists_of_an_encoder_do_not_follow_its_decoder() -> None:
    stacks = [kept("encoder", 2, 0, 1), kept("decoder", 2, 1, reads_another=True)]
    led = {"encoder_layers": 2, "decoder_layers": 2, "attention_window": [8, 16]}
    assert follow(led, stacks) == {"encoder_layers": 2, "decoder_layers": 1, "attention_window": [8, 16]}


def test_configs_within_the_config() -> None:
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}}
    stacks = [kept("text", 4, 0, 1, 2, 3), kept("vision", 4, 0, 3)]
    assert follow(config, stacks) == {
        "text_config": {"num_hidden_layers": 4},
        "vision_config": {"num_hidden_layers": 2},
    }


def test_one_tower_of_two() -> None:
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}}
    followed = follow(config, [kept("decoder", 4, 0, 3)])  # the text tower looks only back
    assert followed == {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 4}}


def test_stages() -> None:
    swin = {"depths": [2, 2], "num_layers": 2, "num_heads": [2, 4]}
    assert follow(swin, [kept("vision", 2, 1), kept("encoder", 2, 0, 1)]) == swin | {"depths": [1, 2]}
    stages = [kept("stage0", 2, 0), kept("stage1", 3, 0, 2)]
    assert follow({"depths": [2, 3], "num_stages": 2}, stages) == {"depths": [1, 2], "num_stages": 2}
    assert follow({"depths": [2, 3]}, [kept("vision", 5, 0, 2, 3)]) == {"depths": [1, 2]}
    unlike = {"depths": [3, 3], "num_layers": 2}
    assert follow(unlike, [kept("vision", 2, 1), kept("encoder", 2, 0, 1)]) == unlike


def test_shifted_windows_are_noted() -> None:
    swin = {"model_type": "swinv2", "depths": [2, 4]}
    first = kept("vision", 2, 0, 1)
    assert notes(swin, [first, kept("encoder", 4, 0, 3)]) == ()
    (note,) = notes(swin, [first, kept("encoder", 4, 1, 2)])
    assert "windows shifted, and in encoder others have" in note


def test_stages_that_are_no_numbers_stay() -> None:
    strange = {"depths": [2, None, 2]}
    assert follow(strange, [kept("vision", 4, 0)]) == strange


def test_a_detector_has_stages_an_encoder_and_a_decoder() -> None:
    config = {"backbone_config": {"depths": [2, 3]}, "encoder_layers": 3, "decoder_layers": 3}
    stacks = [
        *(kept("stage0", 2, 0, 1), kept("stage1", 3, 0, 2)),
        *(kept("encoder", 3, 0), kept("decoder", 3, 0, 1, reads_another=True)),
    ]
    assert follow(config, stacks) == {
        "backbone_config": {"depths": [2, 2]},
        "encoder_layers": 1,
        "decoder_layers": 2,
    }


def test_alignment_heads() -> None:
    config = {"alignment_heads": [[0, 1], [2, 0], [2, 3], [3, 2]], "max_length": 9}
    stacks = [kept("encoder", 4, 0, 1), kept("decoder", 4, 0, 3, 2, reads_another=True)]
    followed = follow_generation(config, stacks)
    assert followed == {"alignment_heads": [[0, 1], [1, 2], [2, 0], [2, 3]], "max_length": 9}
    gone = [kept("decoder", 4, 1, reads_another=True)]
    assert follow_generation(config, gone) == {"max_length": 9}
    assert follow_generation({"max_length": 9}, stacks) == {"max_length": 9}
