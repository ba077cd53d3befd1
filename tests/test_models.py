"""The trained demo models: what is shipped is what was measured, and exports."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import graphprune as gp
from tools.zoo_trained import FOLDERS, MODELS, checkpoint, trained

torch = pytest.importorskip("torch")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of transformers' own modules
    transformers = pytest.importorskip("transformers")
    from models import corpus, decoders, digits, layer_skip, measure_pruning, train_decoder, train_vit

DECODERS = ("gpt2", "llama")
LIMIT = 20e6  # bytes, all models together


def metrics(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((checkpoint(name) / "metrics.json").read_text(encoding="utf-8"))
    return loaded


@cache
def model(name: str) -> Any:
    """A trained model as transformers loads it."""
    kind = (
        transformers.AutoModelForImageClassification if name == "vit" else transformers.AutoModelForCausalLM
    )
    return kind.from_pretrained(checkpoint(name)).eval()


@pytest.fixture(scope="module")
def held_out() -> str:
    try:
        return corpus.read().held_out
    except FileNotFoundError as error:
        pytest.skip(str(error))


def rows_of(name: str, text: str) -> Any:
    """The windows of the slice that metrics.json tells the perplexity of."""
    tokenizer = Tokenizer.from_file(str(checkpoint(name) / "tokenizer.json"))
    return corpus.windows(corpus.encode(tokenizer, text))[: metrics(name)["slice_windows"]]


def test_bytes() -> None:
    files = [file for folder in FOLDERS.values() for file in (MODELS / folder).iterdir()]
    assert sum(file.stat().st_size for file in files) <= LIMIT


@pytest.mark.parametrize("name", FOLDERS)
def test_sizes(name: str) -> None:
    loaded = model(name)
    assert loaded.dtype == torch.float32, "fp16 on disk, fp32 where nobody asks"
    assert loaded.num_parameters() == metrics(name)["parameters"]
    assert loaded.config.num_hidden_layers >= (6 if name == "vit" else 8)


@pytest.mark.parametrize("name", DECODERS)
def test_nearly_all_of_a_decoder_is_in_its_layers(name: str) -> None:
    loaded = model(name)
    assert 3e6 <= loaded.num_parameters() <= 5e6
    head = loaded.get_output_embeddings().weight
    assert head.data_ptr() == loaded.get_input_embeddings().weight.data_ptr(), "tied"
    assert head.numel() <= 0.05 * loaded.num_parameters()


def test_the_decoders_share_a_tokenizer() -> None:
    gpt2, llama = ((checkpoint(name) / "tokenizer.json").read_bytes() for name in DECODERS)
    assert gpt2 == llama


@pytest.mark.parametrize("name", DECODERS)
def test_perplexity_of_what_is_shipped(name: str, held_out: str) -> None:
    rows = rows_of(name, held_out)
    found = math.exp(decoders.nats_per_token(model(name), rows))
    assert found == pytest.approx(metrics(name)["slice_perplexity_per_token"], rel=1e-3)
    assert metrics(name)["bits_per_character"] < 2.6, "trained, not just drawn"


def test_every_exit_of_the_llama_says_something(held_out: str) -> None:
    rows = rows_of("llama", held_out)[:4]
    found = decoders.exit_perplexities(model("llama"), rows)
    recorded = metrics("llama")["perplexity_by_exit"]
    assert len(found) == len(recorded) == model("llama").config.num_hidden_layers
    assert found[-1] == pytest.approx(math.exp(decoders.nats_per_token(model("llama"), rows)), rel=1e-4)
    assert recorded == sorted(recorded, reverse=True), "later exits know more"
    assert recorded[len(recorded) // 2] < 1.5 * recorded[-1], "trained for early exits"


@pytest.mark.parametrize("name", DECODERS)
def test_exported_and_pruned(name: str, tmp_path: Path) -> None:
    bundle = trained(name)
    (survey,) = gp.inspect(gp.load(bundle))
    depth = model(name).config.num_hidden_layers
    assert [len(stack.layers) for stack in survey.architecture.stacks] == [depth]
    rows = np.random.default_rng(0).integers(1, corpus.VOCABULARY, (2, 40))
    nats = decoders.nats_per_token(model(name), torch.from_numpy(rows))
    assert measure_pruning.nats_per_token(bundle / "model.onnx", rows) == pytest.approx(nats, rel=1e-4)
    pruned = gp.prune(gp.load(bundle), drop_layers="3,5").save(tmp_path / "pruned")
    tokenizer = Tokenizer.from_file(str(pruned / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("O Romeo,\nwherefore?").ids) == "O Romeo,\nwherefore?"
    cut = copy.deepcopy(model(name))
    layers = cut.transformer.h if name == "gpt2" else cut.model.layers
    del layers[5], layers[3]
    nats = decoders.nats_per_token(cut, torch.from_numpy(rows))
    assert measure_pruning.nats_per_token(pruned / "model.onnx", rows) == pytest.approx(nats, rel=1e-4)


def test_the_vit_reads_digits() -> None:
    pytest.importorskip("sklearn")
    _, data = digits.read()
    assert train_vit.accuracy(model("vit"), data) >= metrics("vit")["accuracy"] - 0.005
    (call,) = gp.run(trained("vit"), gp.Source(arrays={"pixel_values": data.images[:50].numpy()}))
    with torch.no_grad():
        expected = model("vit")(pixel_values=data.images[:50]).logits
    np.testing.assert_allclose(call.outputs["logits"], expected, atol=1e-4)


def test_a_missing_corpus_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_decoder.main(["llama-shakespeare", "--data", str(tmp_path)]) == 2
    assert "tinyshakespeare.txt" in capsys.readouterr().err


def test_windows_predict_every_token_once() -> None:
    ids = np.arange(1, 22)
    rows = corpus.windows(ids, 5)
    assert rows[:, 1:].flatten().tolist() == list(range(2, 22))
    assert rows[:, :-1].flatten().tolist() == list(range(1, 21))
    seen = list(corpus.batches(np.arange(3000), 2, 2, seed=0))
    assert all(batch.shape == (2, corpus.WINDOW + 1) for batch in seen)
    assert len(seen) >= 2 * corpus.steps_per_epoch(np.arange(3000), 2)


def tiny_llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=17, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8
        )
    )


def test_rates_and_weights_of_layer_skip() -> None:
    """By the formulas of the paper, at depth 4."""
    skip = layer_skip.LayerSkip(dropout=0.3, scale=0.5, rotation=2)
    grown = math.exp(0.5 * math.log(2)) - 1
    expected = [0.3 * grown * (math.exp(i * math.log(2) / 3) - 1) for i in range(4)]
    assert skip.rates(4, 0.5) == pytest.approx(expected)
    assert skip.rates(4, 1.0)[-1] == pytest.approx(0.3)
    raw = {0: 0.0, 1: 0.5, 2: 1.5, 3: 3 + 0.5 * 3}
    assert skip.weights(4, 1) == pytest.approx({1: raw[1] / 5, 3: raw[3] / 5})
    assert skip.weights(4, 2) == pytest.approx({2: raw[2] / 6, 3: raw[3] / 6})


def exits_by_truncation(rows: Any) -> Iterator[float]:
    """The loss after 1, 2, … layers, by models that have no more."""
    for depth in range(1, 5):
        model = tiny_llama().eval()
        del model.model.layers[depth:]
        yield decoders.nats_per_token(model, rows)


def test_exits_are_truncated_models() -> None:
    rows = torch.randint(0, 17, (3, 9), generator=torch.Generator().manual_seed(0))
    found = decoders.exit_perplexities(tiny_llama(), rows)
    assert found == pytest.approx([math.exp(nats) for nats in exits_by_truncation(rows)], rel=1e-4)


def test_the_early_exit_loss_weighs_exits() -> None:
    rows = torch.randint(0, 17, (3, 9), generator=torch.Generator().manual_seed(0))
    skip = layer_skip.LayerSkip(dropout=0.3, scale=0.5, rotation=2)
    exits = list(exits_by_truncation(rows))
    weights = skip.weights(4, 2)
    expected = sum(weight * exits[layer] for layer, weight in weights.items())
    found = layer_skip.loss(tiny_llama().train(), rows, skip, step=2, progress=0.0)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_skipped_layer_passes_the_stream_on() -> None:
    model = tiny_llama().train()
    rows = torch.randint(0, 17, (3, 9), generator=torch.Generator().manual_seed(0))
    with layer_skip.recording(model, [0.0, 1.0, 0.0, 1.0]) as recorder:
        model.model(input_ids=rows, use_cache=False)
    first, second, third, last = recorder.outputs
    assert torch.equal(first, second) and torch.equal(third, last) and not torch.equal(second, third)
    assert not any(layer._forward_hooks for layer in model.model.layers)
