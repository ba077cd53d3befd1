from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from graphprune.errors import LoadError, RunError
from graphprune.play import Call, Source, play, run
from graphprune.session import open_sessions
from graphprune.text import encode, load_tokenizer
from tests import tiny
from tools.zoo import Entry, entries

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"


def zoo(family: str) -> Entry:
    return next(entry for entry in entries(family) if entry.task.endswith("-with-past"))


def write_tokenizer(folder: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_arrays_go_through_the_model(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(2, 5, tiny.WIDTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float64), more=x)  # cast; what the model lacks is left out
    (call,) = run(path, Source.of_npz(tmp_path / "x.npz"))
    np.testing.assert_allclose(call.outputs["y"], tiny.reference(x), atol=1e-5)


def test_random_inputs_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.onnx")
    one, same, other = (run(path, Source(batch=3, sequence=4, seed=seed))[0] for seed in (1, 1, 2))
    assert one.feeds["x"].shape == (3, 4, tiny.WIDTH)
    np.testing.assert_array_equal(one.feeds["x"], same.feeds["x"])
    assert not np.array_equal(one.feeds["x"], other.feeds["x"])


def of_file(calls: list[Call], name: str) -> list[Call]:
    return [call for call in calls if call.session.name == name]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steps_with_the_cache_equal_one_run_over_all_tokens(family: str) -> None:
    sessions = open_sessions(zoo(family).folder())
    calls = play(sessions, Source(batch=2, sequence=5), steps=3)
    ids = np.concatenate([call.feeds["input_ids"] for call in calls], axis=1)
    assert ids.shape == (2, 8)
    arrays = {"input_ids": ids}
    (whole,) = play(sessions, Source(arrays, batch=2, sequence=8))
    stepwise = np.concatenate([call.outputs["logits"] for call in calls], axis=1)
    np.testing.assert_allclose(stepwise, whole.outputs["logits"], atol=1e-4)


@pytest.mark.parametrize("family", ["t5", "whisper"])  # Whisper's file with past takes nothing of an encoder
def test_a_decoder_reads_its_encoder_and_goes_on_from_the_first_cache(family: str) -> None:
    sessions = open_sessions(zoo(family).folder())
    calls = play(sessions, Source(batch=2, sequence=5), steps=1)
    (encoder,) = of_file(calls, "encoder_model.onnx")
    (first,) = of_file(calls, "decoder_model.onnx")
    states = encoder.outputs["last_hidden_state"]
    np.testing.assert_array_equal(first.feeds["encoder_hidden_states"], states)
    start = next(name for name in first.feeds if name in ("input_ids", "decoder_input_ids"))
    for name in ("decoder_with_past_model.onnx", "decoder_model_merged.onnx"):
        steps = of_file(calls, name)
        ids = [call.feeds[start] for call in steps]
        ids = ids if name.endswith("merged.onnx") else [first.feeds[start], *ids]
        decoder = next(session for session in sessions if session.name == "decoder_model.onnx")
        arrays = {**first.feeds, start: np.concatenate(ids, axis=1)}
        expected = decoder.run(arrays)["logits"][:, -1]
        np.testing.assert_allclose(steps[-1].outputs["logits"][:, -1], expected, atol=1e-4)


def test_texts_go_through_the_tokenizer_beside_the_model(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "onnx").mkdir()
    source = Source.of_texts(tmp_path / "onnx" / "model.onnx", ["one two three", "two four"])
    assert source.arrays["input_ids"].tolist() == [[2, 3, 4], [3, 1, 0]]
    assert source.arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert (source.batch, source.sequence) == (2, 3)
    assert encode(load_tokenizer(tmp_path), ["one two three"], max_length=2)["input_ids"].shape == (1, 2)


def test_bad_input_is_named(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.onnx")
    with pytest.raises(LoadError, match=r"no tokenizer\.json"):
        Source.of_texts(path, ["one"])
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(LoadError, match="not a tokenizer"):
        Source.of_texts(path, ["one"])
    (tmp_path / "x.npz").write_bytes(b"PK no archive")
    with pytest.raises(LoadError, match=r"not an \.npz file"):
        Source.of_npz(tmp_path / "x.npz")
    with pytest.raises(RunError, match=r"model\.onnx: .*[Gg]ot invalid dimensions"):
        run(path, Source({"x": np.zeros((1, 2, 3), np.float32)}))
    with pytest.raises(RunError, match="inputs without a value: x"):
        open_sessions(path)[0].run({})


@pytest.mark.parametrize("family", ["bart", "whisper"])
@pytest.mark.parametrize("name", ["decoder_model_merged.onnx", "decoder_with_past_model.onnx"])
def test_a_decoder_alone_keeps_its_encoder_from_step_to_step(family: str, name: str) -> None:
    calls = play(open_sessions(zoo(family).folder() / name), Source(batch=2, sequence=5), steps=2)
    assert [call.step for call in calls] == [0, 1, 2]
    for key in (key for key in calls[0].feeds if key.startswith("encoder_")):
        assert all(call.feeds[key] is calls[0].feeds[key] for call in calls)


def test_a_mask_grows_with_the_tokens() -> None:
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int64)
    source = Source({"attention_mask": mask}, batch=2, sequence=4)
    first, second, third = play(open_sessions(zoo("llama").folder()), source, steps=2)
    np.testing.assert_array_equal(first.feeds["attention_mask"], mask)
    np.testing.assert_array_equal(second.feeds["attention_mask"], np.c_[mask, [1, 1]])
    np.testing.assert_array_equal(third.feeds["attention_mask"], np.c_[mask, [1, 1], [1, 1]])
    assert third.feeds["position_ids"].tolist() == [[5], [5]]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
def test_a_cache_of_one_length_takes_no_further_step() -> None:
    with pytest.raises(RunError, match="the cache past_key_self always has 10 tokens"):
        run(SHARED / "ort_whisper_dec_past.onnx", steps=1)
