from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphprune as gp
from graphprune.cli import run_line
from graphprune.errors import RunError
from graphprune.gates import MASK, THRESHOLDS
from graphprune.play import Source
from graphprune.skipping.asked import fit_skips
from graphprune.skipping.watching import feel, watch
from tests import tiny

LAYERS = 3
FFNS = [f"encoder.{layer}.ffn" for layer in range(LAYERS)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny.onnx", LAYERS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((64, 5, tiny.WIDTH)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path / "data.npz"


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(-1) / (np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1))


def test_what_blocks_do_to_examples(model: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, tiny.WIDTH)).astype(np.float32)
    seen = watch(model, (Source({"x": row[None]}, 1, 5) for row in x), FFNS)
    assert list(seen) == FFNS
    before = tiny.reference(x, 1, without={0: "ffn"})
    after = tiny.reference(x, 1)
    found = seen[FFNS[0]]
    np.testing.assert_allclose(found.pooled, before.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.alike, cosines(before, after).mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.near, cosines(x, before).mean(1), rtol=1e-4)
    tokens = watch(model, [Source({"x": x[:1]}, 1, 5)], FFNS, "token")[FFNS[0]]
    np.testing.assert_allclose(tokens.pooled, before[0], rtol=1e-4, atol=1e-5)


def test_what_is_put_out_without_a_block(model: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, tiny.WIDTH)).astype(np.float32)
    sources = [Source({"x": row[None]}, 1, 5) for row in x]
    wanted = cosines(tiny.reference(x, LAYERS), tiny.reference(x, LAYERS, without={1: "ffn"}))
    np.testing.assert_allclose(feel(model, sources, FFNS)[FFNS[1]], wanted.mean(1), rtol=1e-4)
    np.testing.assert_allclose(feel(model, sources, FFNS, "token")[FFNS[1]], wanted.reshape(-1), rtol=1e-4)


def test_several_rows_at_once(model: Path) -> None:
    with pytest.raises(RunError, match="single examples"):
        watch(model, [Source({"x": np.zeros((2, 5, tiny.WIDTH), np.float32)}, 2, 5)], FFNS)


@pytest.mark.parametrize("policy", ["router", "cosine"])
def test_the_model_skips_as_the_rules_say(policy: str, model: Path, data: Path, tmp_path: Path) -> None:
    found = fit_skips(model, gp.read_data(data), policy=policy, share=0.4)  # type: ignore[arg-type]
    out = found.pruned.save(tmp_path / "out.onnx")
    x = np.load(data)["x"]
    skipped = []
    for row in x[:16]:
        (call,) = gp.run(out, Source({"x": row[None]}, 1, 5))
        choices = {
            mask: tiny.reference(
                row[None], LAYERS, without={i: "ffn" for i in range(LAYERS) if not mask >> i & 1}
            )
            for mask in range(2**LAYERS)
        }
        mask = min(choices, key=lambda m: float(np.abs(choices[m] - call.outputs["y"]).max()))
        np.testing.assert_allclose(call.outputs["y"], choices[mask], rtol=1e-4, atol=1e-5)
        skipped.append(LAYERS - mask.bit_count())
    assert 0.2 < np.mean(skipped) / LAYERS < 0.6
    whole = {THRESHOLDS: np.full(LAYERS, 99, np.float32), MASK: np.ones(LAYERS, np.bool_)}
    (call,) = gp.run(out, Source({"x": x[:1], **whole}, 1, 5))
    np.testing.assert_allclose(call.outputs["y"], tiny.reference(x[:1], LAYERS), rtol=1e-4, atol=1e-5)


def test_on_the_command_line(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    assert run_line(["skips", str(model), str(out), "--data", str(data), "--share", "0.4"]) == 0
    assert "of the runs of these blocks are left out" in capsys.readouterr().out
    values = tmp_path / "out.skips.npz"
    assert any(str(values) in said for said in gp.load(out).files[0].model.metadata_props.values())
    gp.prune(gp.load(model), insert_skips={"kinds": "ffn", "policy": "router", "values": str(values)})
    assert run_line(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "encoder: 3 layers" in shown and "skip_thresholds" in shown
    for line, message in (
        (["skips", str(model), str(out), "--policy", "luck"], "'luck' is not among"),
        (["run", str(out), "--skip", "7"], "has no gate for '7'"),
        (["run", str(model), "--skip", "1"], "has no gates"),
    ):
        assert run_line(line) == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert run_line(["run", str(out), "--skip", "1,encoder.2.ffn"]) == 0
