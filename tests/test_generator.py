"""Generating, against transformers' `generate` of the model that was exported."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphprune.generator import Generation, generate_steps
from graphprune.language import open_model
from graphprune.settings import Settings
from tools import zoo_genai, zoo_loaders
from tools.zoo import Entry, NotExportableError, entries, families
from tools.zoo_truth import Family

NEW = 20
PROMPTS = ((5, 6, 7, 8, 9, 10, 11), (41, 42, 43))
TEXTS = ("gpt2", "llama", "gemma2")
SOURCES = ("t5", "bart", "whisper")


def zoo(family: str, *, past: bool = True) -> Entry:
    return next(
        entry
        for entry in entries(family)
        if entry.task.endswith("-with-past") == past and entry.exporter == "optimum"
    )


def inputs_of(entry: Entry | Built) -> dict[str, Any]:
    """The prompts as this model takes them: ids, or features of two recordings."""
    if entry.family.modality != "audio":
        return {"prompts": PROMPTS}
    features = np.random.default_rng(0).standard_normal((2, 12, 40), dtype=np.float32)
    return {"inputs": {"input_features": features}}


def tensors_of(entry: Entry | Built) -> dict[str, torch.Tensor]:
    """The same as a batch for transformers: filled up on the left, or on the right for an encoder."""
    given = inputs_of(entry)
    if "inputs" in given:
        return {name: torch.from_numpy(array) for name, array in given["inputs"].items()}
    longest = max(map(len, PROMPTS))
    left = entry.family.modality == "text"
    ids, mask = torch.zeros(len(PROMPTS), longest, dtype=torch.int64), torch.zeros(len(PROMPTS), longest)
    for row, prompt in enumerate(PROMPTS):
        where = slice(longest - len(prompt), None) if left else slice(0, len(prompt))
        ids[row, where] = torch.tensor(prompt)
        mask[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask.long()}


def expected(entry: Entry | Built, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The new tokens [texts, steps], and the scores [steps, texts, vocabulary], by transformers."""
    model: Any = entry.torch_model()
    model.config.forced_eos_token_id = model.generation_config.forced_eos_token_id = None
    options = {"min_new_tokens": NEW, "pad_token_id": 0} | options
    with torch.no_grad():
        result = model.generate(
            **tensors_of(entry),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
    scores = np.stack([one.numpy() for one in result.logits])
    return result.sequences[:, -len(scores) :].numpy(), scores


def check(folder: Path, entry: Entry | Built) -> None:
    """Tokens and scores of the bundle equal transformers', and each text alone equals itself in the batch."""
    tokens, scores = expected(entry)
    made, own = run(folder, **inputs_of(entry))
    assert [one.reason for one in made.completions] == ["length"] * 2
    assert_close(own, scores)
    np.testing.assert_array_equal([one.tokens for one in made.completions], tokens)
    model = open_model(folder, Settings(threads=1))
    for row in range(2):
        single, alone = run(model, **row_of(inputs_of(entry), row))
        assert single.completions[0] == made.completions[row]
        assert_close(alone[:, 0], own[:, row])


def run(model: Any, **options: Any) -> tuple[Generation, np.ndarray]:
    """The result, and the scores of every step."""
    options = {"max_new_tokens": NEW, "ignore_eos": True, "settings": Settings(threads=1)} | options
    steps = generate_steps(model, **options)
    scores = np.stack([step.scores for step in steps])
    return steps.result(), scores


def row_of(given: dict[str, Any], row: int) -> dict[str, Any]:
    if "prompts" in given:
        return {"prompts": given["prompts"][row : row + 1]}
    return {"inputs": {name: array[row : row + 1] for name, array in given["inputs"].items()}}


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-4, rtol=0)


def without(entry: Entry, folder: Path, *parts: str) -> Path:
    """A copy of the bundle without the files whose names hold one of these."""
    shutil.copytree(entry.folder(), folder, ignore=shutil.ignore_patterns(*(f"*{part}*" for part in parts)))
    return folder


@pytest.mark.parametrize("family", TEXTS + SOURCES)
def test_tokens_and_scores_equal_transformers(family: str) -> None:
    entry = zoo(family)
    check(entry.folder(), entry)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "family",
    [
        name
        for name, one in families().items()
        if any(task.endswith("with-past") for task in one.tasks) and name not in TEXTS + SOURCES
    ],
)
def test_tokens_and_scores_of_all_families_equal_transformers(family: str) -> None:
    entry = zoo(family)
    try:
        folder = entry.folder()
    except NotExportableError as error:
        pytest.skip(str(error))
    check(folder, entry)


@pytest.mark.parametrize("left_out", ["nothing", "merged"])
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.matrix)])
def test_causal_decoders_in_two_files_and_merged(family: str, left_out: str, tmp_path: Path) -> None:
    entry = zoo_loaders.entry(zoo_loaders.generating()[family], "merged")
    folder = without(entry, tmp_path / "bundle", left_out)
    check(folder, entry)
    step = open_model(folder).step
    wanted = {"nothing": "decoder_model_merged.onnx", "merged": "decoder_with_past_model.onnx"}[left_out]
    assert step is not None and step.session.name == wanted


@pytest.mark.matrix
@pytest.mark.parametrize(
    "family",
    [name for name, one in zoo_loaders.generating().items() if "-" in name and zoo_loaders.causal(one)],
)
def test_windows_shorter_than_the_text(family: str) -> None:
    entry = zoo_loaders.entry(zoo_loaders.generating()[family], "past")
    check(entry.folder(), entry)


@dataclass(frozen=True)
class Built:
    """A model of onnxruntime-genai's builder, in the place of the zoo's entry."""

    name: str

    @property
    def family(self) -> Family:
        return zoo_genai.family(self.name)

    def torch_model(self) -> Any:
        return zoo_genai.torch_model(self.name)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("llama", "gemma3") else pytest.param(name, marks=pytest.mark.matrix)
        for name in zoo_genai.FAMILIES
    ],
)
def test_tokens_and_scores_of_builder_models_equal_transformers(name: str) -> None:
    pytest.importorskip("onnxruntime_genai", reason="builds the models")
    folder = zoo_genai.Build(name).folder()
    check(folder, Built(name))
    assert open_model(folder).padding == "right"


@pytest.mark.parametrize("family", ["gpt2", "gemma2", *SOURCES])
def test_without_a_cache_every_token_is_a_full_pass(family: str) -> None:
    entry = zoo(family, past=False)
    check(entry.folder(), entry)
    assert open_model(entry.folder()).step is None


@pytest.mark.parametrize("family", SOURCES)
def test_decoders_in_two_files(family: str, tmp_path: Path) -> None:
    entry = zoo(family)
    folder = without(entry, tmp_path / "bundle", "merged")
    check(folder, entry)
    step = open_model(folder).step
    assert step is not None and step.session.name == "decoder_with_past_model.onnx"
