"""Pruned models in onnxruntime-genai: token for token, and logit for logit over the cached steps.

Two oracles: torch without the layers, and a model that genai's builder makes of a checkpoint
without them. Weights are quantized one by one, so the second holds for int4 too.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

import graphprune
from graphprune.cachecheck import check_steps
from graphprune.errors import CheckError
from tests.loaders.genai_runs import in_genai, in_torch, prompts
from tools.zoo_genai import FAMILIES, LAYERS, SIZES, TEXT, Build, torch_model

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has wheels from Python 3.11 on")

# The second row is padded; both go on far beyond the window of 8.
ROWS = prompts(12, 7)
FAST = {
    ("llama", "fp32", "first"), ("llama", "int4", "first"), ("qwen3", "fp32", "last"),
    ("gemma3", "fp32", "half"), ("gemma2", "int4", "half"),
}  # fmt: skip


def some_layers(family: str, which: str) -> list[int]:
    """The layers that go: the first, the last, two between them, or half of them."""
    middle = sorted(random.Random(family).sample(range(1, LAYERS - 1), 2))
    return {"first": [0], "last": [LAYERS - 1], "some": middle, "half": [0, *middle]}[which]


def others(dropped: Sequence[int]) -> tuple[int, ...]:
    return tuple(layer for layer in range(LAYERS) if layer not in dropped)


def pruned(source: Path, out: Path, *, run: bool = True, **passes: Any) -> Path:
    return graphprune.prune(graphprune.load(source), **passes).save(out, run=run)


def rebuilt(build: Build, kept: tuple[int, ...]) -> Build | None:
    """The same build without the layers that went; None where it would put the windows elsewhere."""
    types = FAMILIES[build.family].get("layer_types", ["full_attention"] * LAYERS)
    if [types[layer] for layer in kept] != types[: len(kept)]:
        return None
    return Build(build.family, build.precision, kept, build.options, build.provider)


def ops(folder: Path) -> list[str]:
    """The ops of a model, sorted: exporters' orders differ."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return sorted(node.op_type for node in graph.node)


def decoder(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = config["model"]["decoder"]
    return found


def caches(folder: Path) -> list[str]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return [value.name for value in graph.input if value.name.endswith(".key")]


def marked(*case: str) -> Any:
    return pytest.param(*case, marks=[] if case in FAST else pytest.mark.matrix)


@pytest.mark.parametrize(
    ("family", "precision", "which"),
    [
        marked(family, precision, which)
        for family in FAMILIES
        for precision in ("fp32", "int4")
        for which in ("first", "last", "some", "half")
    ],
)
def test_without_layers(family: str, precision: str, which: str, tmp_path: Path) -> None:
    build, dropped = Build(family, precision), some_layers(family, which)
    kept = others(dropped)
    out = pruned(build.folder(), tmp_path / "out", drop_layers=dropped)
    got = in_genai(out, ROWS)
    if precision == "fp32":
        assert got.gap(in_torch(torch_model(family, kept), ROWS)) <= 1e-4
    else:
        silent = silenced(Build(family, "int4", options=("accuracy_level=1",)).folder(), dropped, tmp_path)
        exact = pruned(silent, tmp_path / "exact", drop_layers=dropped)
        assert in_genai(exact, ROWS).gap(in_genai(silent, ROWS)) <= 1e-4
    fresh = rebuilt(build, kept)
    if fresh:
        assert got.gap(in_genai(fresh.folder(), ROWS)) <= 1e-4
        assert ops(out) == ops(fresh.folder())
        assert decoder(out) == decoder(fresh.folder())
    assert decoder(out)["num_hidden_layers"] == len(caches(out)) == len(kept)


def silenced(source: Path, layers: Sequence[int], folder: Path) -> Path:
    """A copy of a quantized model in which these layers add nothing: what they put out has the scale 0."""
    out = Path(shutil.copytree(source, folder / "silenced"))
    model = onnx.load(out / "model.onnx")
    ends = tuple(f"layers.{layer}.{end}" for layer in layers for end in ("attn.o_proj", "mlp.down_proj"))
    scales = [
        one for one in model.graph.initializer if "scale" in one.name and any(e in one.name for e in ends)
    ]
    assert len(scales) == len(ends)
    for one in scales:
        one.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(one)), one.name))
    (out / "model.onnx.data").unlink()
    onnx.save(model, out / "model.onnx")
    return out


@pytest.mark.parametrize("lengths", [(1,), (5,), (30,), (3, 9, 1)])
def test_prompts_of_all_lengths(lengths: tuple[int, ...], tmp_path: Path) -> None:
    rows = prompts(*lengths, seed=1)
    out = pruned(Build("mistral").folder(), tmp_path / "out", drop_layers="last:2")
    assert in_genai(out, rows).gap(in_torch(torch_model("mistral", (0, 1, 2, 3)), rows)) <= 1e-4


PARTS = {
    "attention": {"drop_attention": [1, 4]},
    "first attention": {"drop_attention": [0]},
    "all attention but one": {"drop_attention": "0-4"},
    "all attention": {"drop_attention": "all"},
    "ffn": {"drop_ffn": [0, 3]},
    "both": {"drop_attention": [0, 5], "drop_ffn": [5, 2]},
}


@pytest.mark.parametrize(
    ("family", "which"),
    [
        pytest.param(family, which, marks=[] if family == "llama" else pytest.mark.matrix)
        for family in FAMILIES
        for which in PARTS
    ],
)
def test_without_parts_of_layers(family: str, which: str, tmp_path: Path) -> None:
    passes: dict[str, Any] = PARTS[which]
    gone = {"0-4": range(LAYERS - 1), "all": range(LAYERS)}
    attention = passes.get("drop_attention", [])
    model = torch_model(family)
    for layer in gone.get(str(attention), attention):
        torch.nn.init.zeros_(model.model.layers[layer].self_attn.o_proj.weight)
    for layer in passes.get("drop_ffn", []):
        torch.nn.init.zeros_(model.model.layers[layer].mlp.down_proj.weight)
    out = pruned(Build(family).folder(), tmp_path / "out", loader="genai", **passes)
    assert in_genai(out, ROWS).gap(in_torch(model, ROWS)) <= 1e-4
    # Versions before the caches were looked for compose their names from this number.
    count = decoder(out)["num_hidden_layers"]
    assert sorted(caches(out)) == [f"past_key_values.{number}.key" for number in range(count)]


OPTIONS: list[tuple[str, str, tuple[str, ...]]] = [
    ("llama", "int4", ("use_qdq=true",)),
    ("llama", "int4", ("is_symmetric=false",)),
    ("llama", "int4", ("algo_config=rtn",)),
    ("llama", "int8", ()),
    ("llama", "fp32", ("disable_qkv_fusion=true",)),
    ("llama", "fp32", ("include_hidden_states=true",)),
    ("llama", "fp32", ("prune_lm_head=true",)),
    ("gemma", "fp32", ("shared_embeddings=true",)),
    ("gemma", "int4", ("shared_embeddings=true",)),
    ("gemma", "fp32", ("shared_embeddings=false",)),
]


@pytest.mark.parametrize(
    ("family", "precision", "options"),
    [pytest.param(*case, marks=[] if case in OPTIONS[:1] else pytest.mark.matrix) for case in OPTIONS],
)
def test_what_the_builder_can_do_else(
    family: str, precision: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    build, kept = Build(family, precision, options=options), (1, 3, 4, 5)
    out = pruned(build.folder(), tmp_path / "out", drop_layers=[0, 2])
    fresh = rebuilt(build, kept)
    assert fresh
    assert ops(out) == ops(fresh.folder())
    assert in_genai(out, ROWS).gap(in_genai(fresh.folder(), ROWS)) <= 1e-4


@pytest.mark.parametrize("provider", ["cpu", "cuda", "NvTensorRtRtx"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.matrix
def test_half_precision(provider: str, precision: str, tmp_path: Path) -> None:
    build = Build("llama", precision, provider=provider)
    out = pruned(build.folder(), tmp_path / "out", run=False, drop_layers=[0, 2])
    fresh = rebuilt(build, (1, 3, 4, 5))
    assert fresh
    assert ops(out) == ops(fresh.folder())
    if precision == "fp16":
        # On the CPU its MultiHeadAttention does not go on from a cache, unpruned neither.
        steps = 1 if provider == "cpu" else 5
        rows = ROWS[:1]
        assert in_genai(out, rows, steps).gap(in_genai(fresh.folder(), rows, steps)) <= 1e-2


@pytest.mark.parametrize(
    ("family", "dropped", "windowed"),
    [
        ("gemma2", [0, 1], [1, 3]),
        ("gemma2", [0], [0, 2, 4]),
        ("gemma3", [5], [0, 1, 2, 3, 4]),
        ("gemma3", [0, 2], [0, 1, 2]),
    ],
)
@pytest.mark.matrix
def test_layers_with_windows_are_renumbered(
    family: str, dropped: list[int], windowed: list[int], tmp_path: Path
) -> None:
    build = Build(family, "fp16", provider="NvTensorRtRtx")
    out = pruned(build.folder(), tmp_path / "out", drop_layers=dropped)
    assert decoder(out)["sliding_window"]["layers"] == windowed
    fresh = rebuilt(build, others(dropped))
    if fresh:
        assert decoder(out) == decoder(fresh.folder())
        assert in_genai(out, ROWS, 5).gap(in_genai(fresh.folder(), ROWS, 5)) <= 1e-2


def test_the_folder_has_all_that_genai_reads(tmp_path: Path) -> None:
    import onnxruntime_genai as genai

    source = Build("llama").folder()
    out = pruned(source, tmp_path / "out", drop_layers=[2])
    ours, theirs = (
        {path.name.replace("onnx_data", "onnx.data") for path in f.iterdir()} for f in (out, source)
    )
    assert ours == theirs
    tokenizer = genai.Tokenizer(genai.Model(str(out)))
    assert tokenizer.decode(tokenizer.encode(TEXT[1])) == TEXT[1]


@pytest.mark.matrix
def test_pruned_twice(tmp_path: Path) -> None:
    once = pruned(Build("llama", "int4").folder(), tmp_path / "once", drop_layers=[0])
    twice = pruned(once, tmp_path / "twice", drop_layers=[0, 4])
    fresh = Build("llama", "int4", (2, 3, 4)).folder()
    assert ops(twice) == ops(fresh)
    assert in_genai(twice, ROWS).gap(in_genai(fresh, ROWS)) <= 1e-4


@pytest.mark.parametrize(
    ("passes", "order"),
    [
        ({"reorder_layers": "2,0,1,3,5,4"}, (2, 0, 1, 3, 5, 4)),
        ({"repeat_layers": [1, 4]}, (0, 1, 1, 2, 3, 4, 4, 5)),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.matrix
def test_layers_in_another_order(
    passes: dict[str, Any], order: tuple[int, ...], precision: str, tmp_path: Path
) -> None:
    options = ("accuracy_level=1",) if precision == "int4" else ()  # 8-bit activations may round otherwise
    out = pruned(Build("llama", precision, options=options).folder(), tmp_path / "out", **passes)
    fresh = Build("llama", precision, order, options).folder()
    assert decoder(out) == decoder(fresh)
    assert in_genai(out, ROWS).gap(in_genai(fresh, ROWS)) <= 1e-4


def test_caches_that_are_mixed_up_are_found_where_activations_are_rounded(tmp_path: Path) -> None:
    source = Build("llama", "int4").folder()
    out = Path(shutil.copytree(source, tmp_path / "out"))
    model = onnx.load(source / "model.onnx", load_external_data=False)
    names = {"present.1.key": "present.2.key", "present.2.key": "present.1.key"}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(model, out / "model.onnx")
    with pytest.raises(CheckError, match="the scores with the cache are"):
        check_steps(out, source)


@torch.no_grad()
@pytest.mark.parametrize("option", ["exclude_lm_head=true", "exclude_embeds=true"])
def test_without_head_or_embeddings(option: str, tmp_path: Path) -> None:
    """genai reads such models as parts of larger ones: the oracle is torch alone."""
    kept = (1, 3, 4, 5)
    out = pruned(Build("llama", options=(option,)).folder(), tmp_path / "out", drop_layers=[0, 2])
    assert ops(out) == ops(Build("llama", "fp32", kept, (option,)).folder())
    model = torch_model("llama", kept)
    ids = torch.tensor(ROWS[:1])
    expected = model(input_ids=ids, output_hidden_states=True)
    session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    past = np.zeros((1, SIZES["num_key_value_heads"], 0, 16), np.float32)
    given = {
        "input_ids": ids,
        "inputs_embeds": model.model.embed_tokens(ids),
        "attention_mask": torch.ones_like(ids),
    }
    feeds = {name: given[name].numpy() if name in given else past for name in names}
    wanted = expected.hidden_states[-1] if "lm_head" in option else expected.logits
    np.testing.assert_allclose(session.run(None, feeds)[0], wanted.numpy(), atol=1e-4)
