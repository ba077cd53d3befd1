"""Features of recordings, against transformers' own extractor for Whisper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile
from transformers import WhisperFeatureExtractor

from graphprune.errors import LoadError
from graphprune.speech import read_features

RATE = 16000
SECONDS = 2


def wave(rate: int = RATE, tone: float = 440.0) -> np.ndarray:
    """A tone that grows, with a little noise."""
    time = np.arange(int(rate * 1.3)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time)) * 0.01
    return (np.sin(2 * np.pi * tone * time) * time / 2 + noise).astype(np.float32)


def model(folder: Path, mels: int = 80) -> Path:
    sizes = {"feature_size": mels, "chunk_length": SECONDS, "sampling_rate": RATE}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    return folder


@pytest.mark.parametrize("mels", [80, 128])
def test_features_equal_transformers(mels: int, tmp_path: Path) -> None:
    wavfile.write(tmp_path / "one.wav", RATE, wave())
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=SECONDS)
    wanted = extractor(wave(), sampling_rate=RATE, return_tensors="np").input_features
    found = read_features(tmp_path / "one.wav", model(tmp_path, mels))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_without_sizes_they_are_whispers(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "one.wav", RATE, wave())
    assert read_features(tmp_path / "one.wav", tmp_path / "model.onnx").shape == (1, 80, 3000)


def test_other_rates_channels_and_types_are_the_same_sound(tmp_path: Path) -> None:
    sound = wave()
    folder = model(tmp_path)
    wavfile.write(tmp_path / "float.wav", RATE, sound)
    wanted = read_features(tmp_path / "float.wav", folder)
    wavfile.write(tmp_path / "short.wav", RATE, (sound * 32767).astype(np.int16))
    wavfile.write(tmp_path / "byte.wav", RATE, (sound * 127 + 128).astype(np.uint8))
    wavfile.write(tmp_path / "stereo.wav", RATE, np.stack([sound, sound], axis=1))
    wavfile.write(tmp_path / "fast.wav", 48000, wave(48000))
    limits = {"short.wav": 0.02, "byte.wav": 0.6, "stereo.wav": 1e-5, "fast.wav": 0.6}
    for name, limit in limits.items():
        found = read_features(tmp_path / name, folder)
        loud = wanted > wanted.max() - 0.5  # the rest is noise, which differs
        assert np.abs(found - wanted)[loud].max() < limit, name


def test_features_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((2, 12, 40))
    np.save(tmp_path / "two.npy", array)
    np.testing.assert_array_equal(read_features(tmp_path / "two.npy", tmp_path), array.astype(np.float32))
    np.save(tmp_path / "one.npy", array[0])
    assert read_features(tmp_path / "one.npy", tmp_path).shape == (1, 12, 40)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"no array", "not an .npy file"),
        ("a.wav", b"RIFF", "cannot be read as a .wav file"),
        ("a.mp3", b"ID3", "cannot be read as a .wav file"),
    ],
)
def test_what_is_no_recording_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=message.replace(".", r"\.")):
        read_features(tmp_path / name, tmp_path)


def test_wrong_arrays_sounds_and_sizes_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(3))
    with pytest.raises(LoadError, match="features are numbers"):
        read_features(tmp_path / "ids.npy", tmp_path)
    wavfile.write(tmp_path / "none.wav", RATE, np.zeros(0, np.int16))
    with pytest.raises(LoadError, match="holds no sound"):
        read_features(tmp_path / "none.wav", tmp_path)
    wavfile.write(tmp_path / "one.wav", RATE, wave())
    (tmp_path / "preprocessor_config.json").write_text('{"n_fft": "many"}')
    with pytest.raises(LoadError, match="not a preprocessor's configuration"):
        read_features(tmp_path / "one.wav", tmp_path)


@settings(deadline=None)
@given(st.data())
def test_damaged_recordings_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = model(tmp_path_factory.mktemp("damaged"))
    path = folder / "damaged.wav"
    wavfile.write(path, RATE, (wave()[:400] * 32767).astype(np.int16))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert np.isfinite(read_features(path, folder)).all()
    except LoadError as error:
        assert str(path) in str(error)
