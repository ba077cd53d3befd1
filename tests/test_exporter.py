from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from graphprune.errors import LoadError, MissingExtraError, SaveError
from graphprune.exporter import export
from graphprune.play import Source, run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
        config = transformers.BertConfig(vocab_size=30, max_position_embeddings=20, **sizes)
        folder = tmp_path_factory.mktemp("checkpoint")
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_local_model_runs_as_in_torch(checkpoint: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    out = export(checkpoint, tmp_path / "out")
    (call,) = run(out, Source(batch=2, sequence=7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        model = transformers.BertModel.from_pretrained(checkpoint).eval()
        with torch.no_grad():
            result = model(**{name: torch.from_numpy(array) for name, array in call.feeds.items()})
    np.testing.assert_allclose(call.outputs["last_hidden_state"], result.last_hidden_state, atol=1e-4)
    with pytest.raises(SaveError, match="exists"):
        export(checkpoint, tmp_path / "out", task="feature-extraction")


def test_what_cannot_be_exported_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be exported") as raised:
        export(checkpoint, tmp_path / "out", task="no-such-task")
    assert "\n" not in str(raised.value)
    with pytest.raises(LoadError, match="no such folder"):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'graphprune\[export\]'"):
        export("some/model", tmp_path / "out")
