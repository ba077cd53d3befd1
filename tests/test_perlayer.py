"""Configs layer by layer; the oracle is what transformers makes of them."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune import perlayer
from graphprune.configs import Kept, follow, follow_generation, notes
from graphprune.configs_genai import follow_genai
from graphprune.perlayer import follow_layers, place_after, untold

DERIVED = ("layer_types", "layers_block_type", "no_rope_layers", "attention_layers", "num_hidden_layers")


@pytest.mark.parametrize(
    ("given", "order", "expected"),
    [
        ({"mlp_only_layers": [0, 2]}, (2, 3), {"mlp_only_layers": [0]}),
        ({"cross_attention_layers": [1, 3]}, (0, 1, 1, 3), {"cross_attention_layers": [1, 2, 3]}),
        ({"pruned_heads": {"0": [1], "3": [0, 2]}}, (1, 3), {"pruned_heads": {"1": [0, 2]}}),
        ({"hybrid_override_pattern": "M-*E"}, (3, 0), {"hybrid_override_pattern": "EM"}),
        ({"attention_types": [[["x", "y"], 2]]}, (0, 2, 3), {"attention_types": [[["x", "x", "y"], 1]]}),
        ({"block_types": ["r", "r", "a"]}, (0, 2, 3), {"block_types": ["r", "a", "r"]}),
        ({"max_window_layers": 3}, (0, 2, 3), {"max_window_layers": 2}),
        ({"max_window_layers": 28}, (0, 2, 3), {}),
        ({"num_kv_shared_layers": 3}, (0, 2, 3), {"num_kv_shared_layers": 2}),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": -1}, (2, 3), {"moe_layer_start_index": 0}),
        ({"moe_layer_end_index": 2}, (0, 2, 3), {"moe_layer_end_index": 1}),
        ({"extract_layers": [1, 3]}, (0, 2), {"extract_layers": [0, 1]}),
        ({"extract_layers": [0, 3]}, (1, 3), {"extract_layers": [1]}),
        ({"intermediate_size": 4, "layer_types": ["a"] * 3}, (0, 2), {}),
    ],
)
def test_what_follows(given: dict[str, Any], order: tuple[int, ...], expected: dict[str, Any]) -> None:
    assert follow_layers(given, 4, order) == expected


def test_nothing_follows_where_nothing_changed() -> None:
    assert follow_layers({"model_type": "gemma2", "decoder_sparse_step": 2}, 4, range(4)) == {}


def test_outputs_of_a_backbone() -> None:
    stages = ["stem", "stage1", "stage2", "stage3"]
    given = {"stage_names": stages, "out_indices": [0, 1, 3], "out_features": ["stem", "stage1", "stage3"]}
    assert follow_layers(given, 3, (0, 1)) == {
        "stage_names": stages[:3], "out_indices": [0, 1, 2], "out_features": ["stem", "stage1", "stage2"],
    }  # fmt: skip
    assert follow_layers(given, 3, (1, 2))["out_indices"] == [0, 2]


def test_places() -> None:
    assert [place_after(old, (1, 3, 3, 4)) for old in range(6)] == [-1, 0, 0, 2, 3, 3]


def test_another_period_where_it_says_the_truth() -> None:
    every = {"global_attn_every_n_layers": 2}  # 0 2 4
    assert follow_layers(every, 6, (0, 1, 3, 4)) == {"global_attn_every_n_layers": 3}
    assert follow_layers(every, 6, (0, 2)) == {"global_attn_every_n_layers": 1}
    assert untold(every, 6, (0, 1, 3, 4)) == ()
    assert follow_layers(every, 6, (1, 2)) == {}
    assert "global_attn_every_n_layers 2" in untold(every, 6, (1, 2))[0]
    jamba = {"attn_layer_period": 4, "attn_layer_offset": 2}
    assert follow_layers(jamba, 8, (1, 2, 5, 6)) == {"attn_layer_period": 2, "attn_layer_offset": 1}


def test_special_ones_at_the_start_stay_there() -> None:
    dense = {"first_k_dense_replace": 1}
    assert untold(dense, 3, (0, 2)) == ()
    assert "first_k_dense_replace 1" in untold(dense, 3, (1, 0))[0]


def test_what_goes_by_the_number_of_a_layer_is_noted() -> None:
    gpt2 = {"scale_attn_by_inverse_layer_idx": True}
    assert untold(gpt2, 4, (0, 1, 2)) == ()
    assert "by a layer's number" in untold(gpt2, 4, (0, 2, 3))[0]
    albert = {"num_hidden_groups": 2}
    assert untold(albert, 4, (0, 2)) == untold({"num_hidden_groups": 1}, 4, (1, 3)) == ()
    assert "num_hidden_groups 2" in untold(albert, 4, (0, 1))[0]


def test_experts_by_their_step() -> None:
    config = {"mlp_only_layers": [1], "decoder_sparse_step": 2}  # experts in 3 and 5
    expected = {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1}
    assert follow_layers(config, 6, (1, 2, 3, 5)) == expected


def configs(*types: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """transformers' default configs of some (all) model types, and as they would be written."""
    from transformers import CONFIG_MAPPING

    for name in types or CONFIG_MAPPING.keys():
        try:
            config = CONFIG_MAPPING[name]()
            told = json.loads(config.to_json_string(use_diff=False))
            read(config, told)
        except Exception:  # there are no defaults, or they do not load back
            continue
        count = getattr(config, "num_hidden_layers", None)
        if isinstance(count, int) and count > 2 and not config.is_encoder_decoder:
            yield config, told


def read(config: Any, told: dict[str, Any]) -> Any:
    """What transformers reads; it takes things out of what it is given."""
    return type(config).from_dict(json.loads(json.dumps(told)))


def check_followed(config: Any, told: dict[str, Any]) -> None:
    """The config that transformers reads tells of the layers that are left what it told of them before."""
    count = config.num_hidden_layers
    rng = random.Random(config.model_type)
    for order in (tuple(range(1, count)), tuple(sorted(rng.sample(range(count), (count + 1) // 2)))):
        stacks = [Kept("decoder", count, order)]
        before, after = read(config, told), read(config, follow(told, stacks))
        assert after.num_hidden_layers == len(order)
        for name in DERIVED:
            value = getattr(before, name, None)
            if isinstance(value, (list, tuple)) and len(value) == count and not notes(told, stacks):
                assert list(getattr(after, name)) == [value[i] for i in order], name


TYPES = (
    *("bert", "gpt2", "gpt_neo", "distilbert", "qwen2", "qwen3_moe", "gemma2", "gemma3_text", "cohere2"),
    *("llama4_text", "smollm3", "olmo3", "modernbert", "modernbert-decoder", "jamba", "gemma3n_text"),
    *("recurrent_gemma", "deepseek_v3", "exaone4", "gpt_oss", "minimax", "qwen3_next", "vaultgemma"),
)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("types", [TYPES, pytest.param((), marks=pytest.mark.matrix)])
def test_transformers_reads_what_follows(
    types: tuple[str, ...], explicit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of configs as they are written, and of older ones without their lists."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # some defaults ask the hub
    counted = {"clap", "efficientnet"}  # from other keys
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for config, told in configs(*types):
            told = {k: v for k, v in told.items() if explicit or k not in ("layer_types", "no_rope_layers")}
            if config.model_type not in counted and not isinstance(told.get("depths"), list):
                check_followed(config, told)


def test_every_family_of_the_table_is_one_of_transformers() -> None:
    from transformers import CONFIG_MAPPING

    known = {*CONFIG_MAPPING.keys(), "t5_gemma_module"}
    assert {*perlayer._TYPES, *perlayer._NO_ROPE} <= known


KEYS = st.sampled_from(
    [
        *perlayer._followers(),
        *("num_hidden_layers", "depths", "text_config", "decoder", "model", "alignment_heads"),
        *("stage_names", "out_indices", "out_features", "model_type", "sliding_window", "inputs", "filename"),
        *(period.key for period in perlayer._PERIODS),
        *(period.offset for period in perlayer._PERIODS if period.offset),
    ]
)
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 5) | st.sampled_from(["gemma2", "model.onnx", "layers", ""])
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(
    st.dictionaries(KEYS, JSON, max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.booleans(),
)
def test_any_config_is_survived(config: dict[str, Any], order: list[int], reads_another: bool) -> None:
    stack = Kept("decoder", 4, tuple(order), 4, tuple(order), reads_another, files=("model.onnx",))
    before = json.dumps(config)
    json.dumps([follow(config, [stack]), notes(config, [stack]), follow_generation(config, [stack])])
    json.dumps(follow_genai(config, [stack], {"model.onnx": ["past_key_values.0.key"]}))
    assert json.dumps(config) == before
    same = Kept("decoder", 4, (0, 1, 2, 3), 4, (0, 1, 2, 3), reads_another)
    assert follow(config, [same]) == config
