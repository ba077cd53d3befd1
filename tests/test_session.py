from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from graphprune.errors import LoadError, RunError, SaveError
from graphprune.inputs import make_inputs
from graphprune.session import Session, open_session
from graphprune.settings import LEVELS, PROVIDERS, Settings, installed, short_name
from graphprune.starting import first_line
from tests import tiny

# Every wheel of onnxruntime for Linux has this provider beside the CPU's; it takes no node of these models.
IDLE = "AzureExecutionProvider"
idle = pytest.mark.skipif(IDLE not in ort.get_available_providers(), reason=f"no {IDLE} in this onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny.onnx")


def outputs(session: Session) -> dict[str, np.ndarray]:
    return session.run(make_inputs(session.runtime, batch=2, sequence=5))


@pytest.mark.parametrize(
    "settings",
    [*(Settings(level=level) for level in LEVELS), Settings(threads=2), Settings(memory="lean")],
    ids=str,
)
def test_settings_leave_the_numbers_alone(model: Path, settings: Settings) -> None:
    plain = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    feeds = make_inputs(plain, batch=2, sequence=5)
    for one, other in zip(
        plain.run(None, feeds), outputs(open_session(model, "m", settings)).values(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"level": "more"}, "no optimization level 'more'.*basic"),
        ({"memory": "huge"}, "fast or lean"),
        ({"threads": -1}, "0 .* or more"),
        ({"providers": ()}, "one or more providers, or auto alone"),
        ({"providers": ("auto", "cpu")}, "auto alone"),
        ({"provider_options": {"cuda": {"device_id": "0"}}}, "'cuda', which is not asked for"),
    ],
)
def test_what_does_not_exist_is_an_error(given: dict[str, object], said: str) -> None:
    with pytest.raises(RunError, match=said):
        Settings(**given)  # type: ignore[arg-type]


def test_settings_can_be_sent_to_another_process() -> None:
    given = Settings(("cpu",), 2, cache=Path("c"), provider_options={"cpu": {"a": "1"}})
    for settings in (Settings(), given):
        assert pickle.loads(pickle.dumps(settings)) == settings


def test_a_provider_that_is_not_installed_names_its_package(model: Path) -> None:
    absent = next(name for name in PROVIDERS if name not in installed())
    with pytest.raises(RunError, match=f"(?s){absent}.*install {PROVIDERS[absent].package[:20]}") as found:
        open_session(model, "m", Settings(providers=(absent,)))
    assert installed()[0] in str(found.value)
    with pytest.raises(RunError, match=r"no provider 'gpu'.*cuda"):
        open_session(model, "m", Settings(providers=("gpu",)))


def test_both_names_of_a_provider_are_known(model: Path) -> None:
    assert {short_name(one.name) for one in PROVIDERS.values()} == set(PROVIDERS)
    for name in ("cpu", "CPUExecutionProvider", "auto"):
        assert open_session(model, "m", Settings(providers=(name,))).providers[-1] == "cpu"


@idle
def test_nodes_that_fall_to_the_cpu_are_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        session = open_session(model, "tiny.onnx", Settings(providers=(IDLE,)))
    assert session.providers == (IDLE, "cpu")
    if not session.nodes:
        assert "1.24 and later" in caplog.text
        return
    total = sum(session.on_cpu.values())
    assert session.on_cpu == session.nodes["cpu"] and total > 20
    assert f"tiny.onnx: {total} of {total} nodes run on the CPU, not on {IDLE}: " in caplog.text
    assert f"{session.on_cpu['MatMul']} MatMul" in caplog.text


def test_nothing_is_told_of_the_cpu_alone(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert open_session(model, "m").on_cpu == {}
    assert not caplog.records


def test_a_provider_that_does_not_start(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # ONNX Runtime leaves out a CUDA whose driver is missing, and says so in its own log only.
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda *a, providers, **k: real(*a, providers=["CPUExecutionProvider"], **k)
    )
    with pytest.raises(LoadError, match="'cuda' is installed and does not start"):
        open_session(model, "m", Settings(providers=("cuda",)))
    with caplog.at_level(logging.WARNING):
        assert open_session(model, "m", Settings(providers=("auto",))).providers == ("cpu",)
    assert "cuda does not start" in caplog.text


def test_binding_gives_the_same(model: Path) -> None:
    session = open_session(model, "m", Settings(binding=True))
    feeds = make_inputs(session.runtime, batch=2, sequence=5)
    once = session.prepared(feeds)
    for _ in range(2):
        for expected, value in zip(session.run(feeds).values(), once(), strict=True):  # type: ignore[call-overload]
            np.testing.assert_array_equal(expected, value.numpy())
    with pytest.raises(RunError, match="without a value"):
        session.prepared({})


def test_an_optimized_model_is_kept_and_used(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = outputs(open_session(model, "m"))
    for _ in range(2):
        found = outputs(open_session(model, "m", Settings(cache=cache)))
        for name, array in expected.items():
            np.testing.assert_allclose(array, found[name], rtol=1e-4, atol=1e-5)
        (entry,) = cache.iterdir()
    kept = (entry / "model.onnx").stat().st_mtime_ns
    open_session(model, "m", Settings(cache=cache))
    assert (entry / "model.onnx").stat().st_mtime_ns == kept
    open_session(model, "m", Settings(cache=cache, level="basic"))
    tiny.save(model, layers=1)
    changed = outputs(open_session(model, "m", Settings(cache=cache)))
    assert len(list(cache.iterdir())) == 3
    assert not np.allclose(next(iter(changed.values())), next(iter(expected.values())))


def test_a_cache_that_cannot_be_written_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"cannot keep the optimized model in .*name another folder"):
        open_session(model, "m", Settings(cache=tmp_path / "file" / "cache"))


def test_the_runtime_is_quoted_whole_where_it_is_brief(model: Path) -> None:
    session = open_session(model, "tiny.onnx")
    with pytest.raises(RunError, match=r"tiny\.onnx: .*invalid dimensions.* Got: 9 Expected: 8"):
        session.run({"x": np.zeros((1, 2, 9), np.float32)})
    assert first_line(RuntimeError("much\n" + "x" * 500)) == "much"
    assert first_line(ValueError()) == "ValueError"
