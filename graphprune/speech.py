"""Recordings as Whisper's encoder takes them: log-mel spectra (Radford et al. 2022, section 2.2).

The sizes are read from the `preprocessor_config.json` beside the model; without one they are Whisper's.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import LoadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_SIZES = {"feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "chunk_length": 30}


def read_features(audio: Path, model: Path) -> NDArray[np.float32]:
    """Features [1, mels, frames] of a recording (.wav), or those that an .npy file holds.

    The recording is cut or filled up to the length that the model takes. Raises `LoadError`.
    """
    if audio.suffix == ".npy":
        return _read_array(audio)
    sizes = _read_sizes(model)
    return log_mel(_read_wave(audio, sizes["sampling_rate"]), sizes)


def log_mel(wave: Floats, sizes: dict[str, int]) -> NDArray[np.float32]:
    """The log-mel spectrum [1, mels, frames] of one channel of sound between -1 and 1."""
    length, width, hop = sizes["sampling_rate"] * sizes["chunk_length"], sizes["n_fft"], sizes["hop_length"]
    wave = np.pad(wave[:length], (0, max(length - len(wave), 0)))
    wave = np.pad(wave, width // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(wave, width)[::hop][:-1]
    window = np.hanning(width + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2
    mels = mel_filters(sizes["feature_size"], width, sizes["sampling_rate"]) @ power.T
    logs = np.log10(np.maximum(mels, 1e-10))
    logs = np.maximum(logs, logs.max() - 8.0)
    result: NDArray[np.float32] = ((logs + 4.0) / 4.0)[None].astype(np.float32)
    return result


def mel_filters(count: int, width: int, rate: int) -> Floats:
    """Triangular filters [count, width // 2 + 1], even on Slaney's mel scale from 0 to half the rate."""
    tones = np.linspace(0, rate / 2, width // 2 + 1)
    corners = _to_hertz(np.linspace(0, _to_mel(min(rate / 2, 8000.0)), count + 2))
    rise = (tones - corners[:-2, None]) / np.diff(corners)[:-1, None]
    fall = (corners[2:, None] - tones) / np.diff(corners)[1:, None]
    filters: Floats = np.maximum(0, np.minimum(rise, fall)) * (2 / (corners[2:] - corners[:-2]))[:, None]
    return filters


def _to_mel(hertz: float) -> float:
    """Linear below 1 kHz, logarithmic above (Slaney, Auditory Toolbox, 1998)."""
    return hertz / (200 / 3) if hertz < 1000 else float(15 + np.log(hertz / 1000) * 27 / np.log(6.4))


def _to_hertz(mels: Floats) -> Floats:
    hertz: Floats = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
    return hertz


def _read_array(path: Path) -> NDArray[np.float32]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy lets whatever its parts raise out
        raise LoadError(f"{path}: not an .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.dtype.kind != "f":
        raise LoadError(f"{path}: features are numbers [mels, frames], or several of these")
    return array.reshape(-1, *array.shape[-2:]).astype(np.float32)


def _read_wave(path: Path, rate: int) -> Floats:
    """One channel at `rate` samples a second, between -1 and 1."""
    from math import gcd

    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of chunks that are no sound
            found, wave = wavfile.read(path)
    except Exception as error:  # scipy raises whatever struct and numpy do
        raise LoadError(f"{path}: cannot be read as a .wav file: {error}") from error
    if not wave.size or not found:
        raise LoadError(f"{path}: holds no sound")
    sound = _scaled(wave)
    sound = sound.mean(axis=1) if sound.ndim == 2 else sound
    shared = gcd(rate, found)
    resampled: Floats = sound if found == rate else resample_poly(sound, rate // shared, found // shared)
    return resampled


def _scaled(wave: NDArray[Any]) -> Floats:
    """Samples between -1 and 1, whatever type they were written in."""
    if wave.dtype.kind == "f":
        return wave.astype(np.float64)
    limits = np.iinfo(wave.dtype)
    middle = 0.0 if limits.min < 0 else (limits.max + 1) / 2
    scaled: Floats = (wave.astype(np.float64) - middle) / (limits.max + 1 - middle)
    return scaled


def _read_sizes(model: Path) -> dict[str, int]:
    folder = model if model.is_dir() else model.parent
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return _SIZES
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {name: int(config.get(name, size)) for name, size in _SIZES.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LoadError(f"{path}: not a preprocessor's configuration: {error}") from error
