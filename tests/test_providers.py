"""Every command on each accelerator that the installed ONNX Runtime has: CUDA, OpenVINO, …

On a machine without one all of these skip, and say so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

from graphprune.compare import verify
from graphprune.errors import LoadError
from graphprune.play import Source, run
from graphprune.profiler import profile
from graphprune.session import open_session
from graphprune.settings import AUTO, Settings, installed
from graphprune.timing import bench
from tests import tiny

NONE = pytest.mark.skip(reason=f"the installed onnxruntime has {', '.join(installed())}, and no accelerator")
ACCELERATORS = [name for name in AUTO if name in installed() and name != "cpu"] or [
    pytest.param("none", marks=NONE)
]
SOURCE = Source(batch=2, sequence=8)


@pytest.fixture(params=ACCELERATORS)
def accelerator(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A provider that is there and starts."""
    name = str(request.param)
    try:
        open_session(tiny.save(tmp_path / "probe.onnx", layers=1), "probe", Settings(providers=(name,)))
    except LoadError as error:
        pytest.skip(f"{name} does not start on this machine: {error}")
    return name


@pytest.fixture(params=["float32", "float16"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tiny.save(tmp_path / "model.onnx")
    if request.param == "float16":
        onnx.save(convert_float_to_float16(onnx.load(path)), path)
    return path


@pytest.mark.parametrize("binding", [False, True])
def test_runs_and_agrees_with_the_cpu(accelerator: str, model: Path, binding: bool) -> None:
    settings = Settings(providers=(accelerator,), binding=binding)
    (there,), (here,) = run(model, SOURCE, settings=settings), run(model, SOURCE)
    assert there.session.providers == (accelerator, "cpu")
    wide = {name: array.astype(np.float32) for name, array in here.outputs.items()}
    for name, array in wide.items():
        np.testing.assert_allclose(there.outputs[name], array, rtol=2e-2, atol=2e-2 * np.abs(array).max())
        values = there.session.prepared(there.feeds)()
        if binding:
            np.testing.assert_array_equal(values[0].numpy(), there.outputs[name])  # type: ignore[index]
    assert min(one.cosine for one in verify(model, model, SOURCE, settings=settings).differences) > 0.999


def test_the_optimized_model_is_kept(accelerator: str, model: Path, tmp_path: Path) -> None:
    settings = Settings(providers=(accelerator,), cache=tmp_path / "kept")
    for _ in range(2):
        run(model, SOURCE, settings=settings)


def test_is_timed_and_profiled(accelerator: str, model: Path) -> None:
    settings = Settings(providers=(accelerator,), threads=1, binding=True)
    assert bench([model, model], SOURCE, rounds=3, warmup=1, settings=settings)
    found = profile(model, SOURCE, rounds=3, settings=settings)
    assert found.total_us > 0
    assert found.attributed >= 0.99
