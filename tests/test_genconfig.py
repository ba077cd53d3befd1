"""What configs say on generating, against transformers' `generate` with the same configs."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import LoadError
from graphprune.genconfig import GenerationRules, read_rules
from graphprune.generator import generate
from graphprune.settings import Settings
from tests.test_generator import NEW, PROMPTS, expected, inputs_of, tensors_of, zoo


def configured(family: str, folder: Path, **settings: Any) -> Path:
    """A copy of the family's bundle whose generation config says more."""
    shutil.copytree(zoo(family).folder(), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def by_transformers(family: str, settings: dict[str, Any]) -> list[list[int]]:
    """The new tokens of each text, up to its end."""
    entry = zoo(family)
    model: Any = entry.torch_model()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
        if hasattr(model.config, name):
            setattr(model.config, name, value)
    with torch.no_grad():
        result = model.generate(
            **tensors_of(entry),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    ends = np.atleast_1d(settings.get("eos_token_id", 2)).tolist()
    rows = result.sequences[:, -len(result.logits) :].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), None)] for row in rows]


def made(family: str, folder: Path) -> list[list[int]]:
    result = generate(folder, max_new_tokens=NEW, settings=Settings(threads=1), **inputs_of(zoo(family)))
    return [list(one.tokens) for one in result.completions]


def test_a_text_ends_at_any_of_the_models_ends(tmp_path: Path) -> None:
    tokens, _ = expected(zoo("gpt2"))
    settings = {"eos_token_id": [int(tokens[0, 9]), 98], "pad_token_id": 0}
    found = made("gpt2", configured("gpt2", tmp_path / "bundle", **settings))
    assert found == by_transformers("gpt2", settings)
    assert len(found[0]) <= 10
    result = generate(tmp_path / "bundle", PROMPTS, max_new_tokens=NEW)
    assert [one.reason for one in result.completions] == [
        "eos" if len(one) < NEW else "length" for one in found
    ]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bart", {"forced_bos_token_id": 17, "begin_suppress_tokens": [29, 49], "forced_eos_token_id": 2}),
        ("bart", {"suppress_tokens": [29, 49, 7], "forced_eos_token_id": 2}),
        ("t5", {"decoder_start_token_id": 11}),
        (
            "whisper",
            {"suppress_tokens": [71, 5], "begin_suppress_tokens": [33, 70], "forced_eos_token_id": None},
        ),
        ("whisper", {"forced_decoder_ids": [[1, 40], [2, 41]], "forced_eos_token_id": None}),
        (
            "whisper",
            {"is_multilingual": False, "no_timestamps_token_id": 60, "forced_eos_token_id": None},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value)[:40],
)
def test_what_must_and_must_not_be_said(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    wanted = by_transformers(family, settings)
    found = made(family, configured(family, tmp_path / "bundle", **settings))
    assert found[: len(wanted)] == wanted  # transformers makes one text alone of two without a language


def write(folder: Path, **configs: Any) -> Path:
    for name, content in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_first_config_that_says_something_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        generation_config={"eos_token_id": [5, 6], "pad_token_id": None},
        config={"eos_token_id": 4, "pad_token_id": 3, "text_config": {"max_position_embeddings": 128}},
        genai_config={"model": {"context_length": 64, "bos_token_id": 1}},
    )
    rules = read_rules(tmp_path)
    assert (rules.eos, rules.pad, rules.context, rules.bos) == ({5, 6}, 3, 128, 1)
    (tmp_path / "onnx").mkdir()
    assert read_rules(tmp_path / "onnx" / "model.onnx") == rules
    (tmp_path / "deep" / "er").mkdir(parents=True)
    assert read_rules(tmp_path / "deep" / "er") == GenerationRules()


def test_relative_positions_limit_nothing(tmp_path: Path) -> None:
    write(tmp_path, config={"n_positions": 512, "relative_attention_num_buckets": 32})
    assert read_rules(tmp_path).context is None


@pytest.mark.parametrize(
    "content", ["{", '{"eos_token_id": "</s>"}', '{"suppress_tokens": [1, [2]]}', '{"pad_token_id": true}']
)
def test_a_config_that_cannot_be_used_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(LoadError, match="config"):
        read_rules(tmp_path)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=5))
def test_whatever_a_config_says_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("configs")
    names = ("eos_token_id", "forced_decoder_ids", "suppress_tokens", "max_position_embeddings", "decoder")
    write(folder, generation_config=dict.fromkeys(names, value))
    with suppress(LoadError):
        read_rules(folder)
