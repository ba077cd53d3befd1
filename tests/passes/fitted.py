"""Files of fitted values for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def drawn(*shape: int, seed: int = 7) -> np.ndarray:
    """Small random numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def stored(path: Path, **arrays: np.ndarray) -> str:
    """A file of these arrays; in their names `__` stands for the slash, and `_` for a dot."""
    names = {name: name.replace("__", "/").replace("_", ".") for name in arrays}
    np.savez(path, **{names[name]: array for name, array in arrays.items()})
    return str(path)
