"""Packages for ONNX Runtime's own format: complete, the same to the last step, or not there at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from graphprune import packaging_ort
from graphprune.bundle import load
from graphprune.compare import verify
from graphprune.errors import CheckError, GraphError, GraphpruneError, LoadError, RunError, SaveError
from graphprune.footprint import Usage
from graphprune.ortformat import Conversion
from graphprune.packaging_ort import Package, package_ort
from graphprune.play import Source, run
from graphprune.session import open_session
from tests import small, tiny
from tests.test_ortformat import listed_ops, optimized_ops
from tools import zoo_genai
from tools.zoo import NotExportableError, entries


def quick(path: Path, out: Path, **options: Any) -> Package:
    """A package whose footprint nobody measures."""
    return package_ort(path, out, measure=False, **options)


def output(path: Path, x: np.ndarray) -> np.ndarray:
    return open_session(path, path.name).run({"x": x})["y"]


def test_a_file_becomes_a_file_with_its_operators_beside_it(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    made = quick(model, tmp_path / "out" / "model.ort")
    assert small.names(tmp_path / "out") == {"model.ort", "model.required_operators.config"}
    assert (made.config, made.gap, made.before) == ("model.required_operators.config", 0.0, None)
    assert set(listed_ops(tmp_path / "out" / made.config)) == optimized_ops(model, Conversion())
    assert made.operators == len(optimized_ops(model, Conversion()))
    assert made.bytes_before == model.stat().st_size
    assert made.bytes_after == (tmp_path / "out" / "model.ort").stat().st_size
    assert made.open_axes == ("batch", "sequence")
    x = np.random.default_rng(1).normal(size=(2, 5, tiny.WIDTH)).astype(np.float32)
    np.testing.assert_allclose(output(tmp_path / "out" / "model.ort", x), tiny.reference(x), 1e-4, 1e-5)


def test_a_folder_becomes_a_folder_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    source = small.write_folder(tmp_path / "small")
    made = quick(source, tmp_path / "out", types=True)
    assert small.names(tmp_path / "out") == {
        *("model.ort", "required_operators_and_types.config"),
        *("config.json", "tokenizer.json", "1_Pooling/config.json"),
    }
    assert [(file.name, file.source, file.unchecked) for file in made.files] == [
        ("model.ort", "model.onnx", "")
    ]
    assert (tmp_path / "out" / "config.json").read_text() == (source / "config.json").read_text()
    assert made.bytes_before == sum((source / name).stat().st_size for name in ("model.onnx", "weights.bin"))
    assert [difference.max_abs for difference in verify(source, tmp_path / "out").differences] == [0.0]


def test_a_package_tells_where_it_comes_from(tmp_path: Path) -> None:
    model = small.write(tmp_path / "model.onnx")
    quick(model, tmp_path / "model.ort")
    metadata = ort.InferenceSession(tmp_path / "model.ort").get_modelmeta().custom_metadata_map
    assert metadata["graphprune.source"] == "model.onnx" and metadata["graphprune.target"] == "ort"
    assert metadata["exporter"] == "by hand"


def test_sizes_are_fixed(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    made = quick(model, tmp_path / "model.ort", fix=["batch=2,sequence=5"])
    session = ort.InferenceSession(tmp_path / "model.ort")
    assert [one.shape for one in (*session.get_inputs(), *session.get_outputs())] == [[2, 5, tiny.WIDTH]] * 2
    assert made.open_axes == () and made.gap == 0.0
    assert all(one.open_shapes == 0 and one.if_fixed is None for one in made.files[0].partitions)
    x = np.random.default_rng(1).normal(size=(2, 5, tiny.WIDTH)).astype(np.float32)
    np.testing.assert_allclose(output(tmp_path / "model.ort", x), tiny.reference(x), 1e-4, 1e-5)
    with pytest.raises(RunError, match="Got invalid dimensions"):
        output(tmp_path / "model.ort", x[:, :4])


def test_fixed_sizes_let_shape_arithmetic_fold(tmp_path: Path) -> None:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
one (float[n, 4] x) => (float[n, 4] y)
{ s = Shape (x)  f = Cast <to = 1> (s)  t = ReduceMax <keepdims = 0> (f)  y = Mul (x, t) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    quick(tmp_path / "model.onnx", tmp_path / "open.ort")
    quick(tmp_path / "model.onnx", tmp_path / "fixed.ort", fix=["n=2"])
    assert "ai.onnx:Shape" in listed_ops(tmp_path / "open.required_operators.config")
    assert set(listed_ops(tmp_path / "fixed.required_operators.config")) == {"ai.onnx:Mul"}


def test_what_both_take_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((3.0, 1.0, 2.0, 9.0, 9.0, 4.0))
    asked = []

    def counted(path: Path, source: Source, *_: object, **__: object) -> Usage:
        asked.append((path.name, source.sequence))
        return Usage(next(times), None, None)

    monkeypatch.setattr(packaging_ort, "usage", counted)
    made = package_ort(tiny.save(tmp_path / "model.onnx"), tmp_path / "out.ort", source=Source(sequence=7))
    assert made.before == Usage(2.0, None, None) and made.after == Usage(9.0, None, None)
    assert asked == [("model.onnx", 7)] * 3 + [("out.ort", 7)] * 3


def test_a_failed_measurement_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RunError("no memory")

    monkeypatch.setattr(packaging_ort, "usage", fails)
    made = package_ort(tiny.save(tmp_path / "model.onnx"), tmp_path / "model.ort")
    assert made.after is None and (tmp_path / "model.ort").is_file()
    assert "was not measured: no memory" in caplog.text


@pytest.mark.parametrize(
    ("source", "out", "problem"),
    [
        (
            "model.onnx",
            "out.onnx",
            r"the source is one file, so the target must be a file too, named \*\.ort",
        ),
        ("model.onnx", "folder", r"must be a file too, named \*\.ort"),
        ("model.onnx", "taken.ort", "taken.ort exists: name another target, or allow overwriting"),
        ("model.onnx", "list.ort", "list.required_operators.config exists"),
        ("folder", "out.ort", "the source is a folder, so the target must be a folder too"),
        ("folder", "model.onnx", "the target must be a folder too"),
        ("folder", "folder", "is part of the source, which is never overwritten"),
        ("folder", ".", "is part of the source, which is never overwritten"),
    ],
)
def test_targets_that_cannot_be(source: str, out: str, problem: str, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model.onnx")
    small.write_folder(tmp_path / "folder")
    for name in ("taken.ort", "list.required_operators.config"):
        (tmp_path / name).write_text("mine")
    before = {name: (tmp_path / name).read_bytes() for name in small.names(tmp_path)}
    with pytest.raises(SaveError, match=problem):
        quick(tmp_path / source, tmp_path / out, overwrite=source == "folder")
    assert {name: (tmp_path / name).read_bytes() for name in small.names(tmp_path)} == before


def test_overwriting_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    source = small.write_folder(tmp_path / "small")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(SaveError, match="exists"):
        quick(source, tmp_path / "out")
    quick(source, tmp_path / "out", overwrite=True)
    assert "old" not in small.names(tmp_path / "out")


def other_weights(model: Path, target: Path, how: Conversion) -> None:
    """What a faulty converter would do."""
    packaging_ort_convert(tiny.save(model.with_name("other.onnx"), seed=1), target, how)


packaging_ort_convert = packaging_ort.convert


def not_finite(model: Path, target: Path, how: Conversion) -> None:
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        tensor.raw_data = np.full(tensor.dims, np.nan, np.float32).tobytes()
    onnx.save(proto, model.with_name("other.onnx"))
    packaging_ort_convert(model.with_name("other.onnx"), target, how)


@pytest.mark.parametrize("faulty", [other_weights, not_finite])
def test_other_outputs_are_an_error_and_nothing_is_written(
    faulty: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging_ort, "convert", faulty)
    model = tiny.save(tmp_path / "model.onnx")
    with pytest.raises(CheckError, match=r"the outputs of the package are .* off the source's .*nothing was"):
        quick(model, tmp_path / "model.ort")
    assert small.names(tmp_path) == {"model.onnx"}


def test_a_model_that_is_too_large_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging_ort, "LIMIT", 1000)
    monkeypatch.setattr(packaging_ort, "convert", None)
    with pytest.raises(
        SaveError, match=r"2,752 bytes of weights do not fit into a \.ort file, .* at most 2 GiB"
    ):
        quick(small.write(tmp_path / "model.onnx"), tmp_path / "model.ort")
    assert small.names(tmp_path) == {"model.onnx"}


def test_types_that_the_format_lacks(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 21]>
one (float[n, 4] x) => (float[n, 4] y) <float scale = {0.1}>
{ w = DequantizeLinear (q, scale)  y = Mul (x, w) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.helper.make_tensor("q", onnx.TensorProto.INT4, [4], [1, 2, 3, 4]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        SaveError, match=r"model\.onnx: .*cannot read that: .*has no types of 4 bits or fewer"
    ):
        quick(tmp_path / "model.onnx", tmp_path / "model.ort", conversion=Conversion(level="disabled"))
    assert small.names(tmp_path) == {"model.onnx"}


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    source = Source({"x": np.zeros((1, 4, 3), np.float32)})
    with pytest.raises(RunError, match=r"model\.onnx"):
        quick(model, tmp_path / "model.ort", source=source)
    assert small.names(tmp_path) == {"model.onnx"}
    with pytest.raises(GraphError, match="there is no axis rows to fix"):
        quick(model, tmp_path / "model.ort", fix=["rows=1"])


def test_a_model_that_does_not_run_is_packaged_unchecked(tmp_path: Path) -> None:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
one (float[n, 4] x) => (float[k, 5] y) <int64[2] s = {-1, 5}> { y = Reshape (x, s) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    made = package_ort(tmp_path / "model.onnx", tmp_path / "model.ort")
    assert made.gap is None and "Reshape" in made.uncompared and made.after is None
    with pytest.raises(RunError, match="Reshape"):
        quick(tmp_path / "model.onnx", tmp_path / "model.ort", source=Source(), overwrite=True)


def test_packages_are_run_but_not_edited(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    quick(model, tmp_path / "package" / "model.ort")
    for path in (tmp_path / "package", tmp_path / "package" / "model.ort"):
        (call,) = run(path, Source(batch=2, sequence=3))
        assert call.outputs["y"].shape == (2, 3, tiny.WIDTH)
        with pytest.raises(
            LoadError, match=r"model\.ort is in ONNX Runtime's own format.* name the \.onnx file"
        ):
            load(path)


def test_a_damaged_package_is_a_clear_error(tmp_path: Path) -> None:
    quick(tiny.save(tmp_path / "model.onnx"), tmp_path / "model.ort")
    whole = (tmp_path / "model.ort").read_bytes()
    for content in (b"", b"no model", whole[: len(whole) // 2], whole[:64]):
        (tmp_path / "model.ort").write_bytes(content)
        with pytest.raises(LoadError, match=r"model\.ort: ONNX Runtime cannot load it"):
            run(tmp_path / "model.ort")


def same_to_the_last_step(folder: Path, out: Path) -> None:
    """The package puts out what its source does, over cached steps, as `verify` finds it."""
    made = quick(folder, out)
    files = {Path(file.name).with_suffix("").as_posix() for file in load(folder).files}
    assert {Path(file.name).with_suffix("").as_posix() for file in made.files} == files
    found = verify(folder, out, steps=3)
    assert not found.only_in_a and not found.only_in_b
    assert max(one.max_abs for one in found.differences) <= 1e-4
    assert len({one.file for one in found.differences}) == len(files)
    config = set(listed_ops(out / "required_operators.config"))
    for file in load(folder).files:
        assert optimized_ops(file.path, Conversion()) <= config


FAMILIES = ("bert", "gpt2", "llama", "t5", "bart", "whisper", "vit", "resnet", "clip", "gemma3", "albert")


@pytest.mark.parametrize(
    "family", [n if n in ("t5", "vit") else pytest.param(n, marks=pytest.mark.matrix) for n in FAMILIES]
)
def test_real_bundles_to_the_last_step(family: str, tmp_path: Path) -> None:
    tasks = [entry for entry in entries(family) if entry.exporter == "optimum"]
    entry = next((one for one in tasks if one.task.endswith("-with-past")), tasks[0])
    same_to_the_last_step(entry.folder(), tmp_path / "out")


DIALECTS = ("fp16", "qdq", "int8-ort", "fused", "fused-fp16", "qoperator", "int4")


@pytest.mark.parametrize("family", ["bert", pytest.param("vit", marks=pytest.mark.matrix)])
@pytest.mark.parametrize(
    "name", [n if n in ("qdq", "fp16") else pytest.param(n, marks=pytest.mark.matrix) for n in DIALECTS]
)
def test_dialects_are_packaged(family: str, name: str, tmp_path: Path) -> None:
    (entry,) = entries(family, fast=True)
    try:
        file = entry.dialect(entry.files()[0], name)
    except NotExportableError as refusal:
        pytest.skip(str(refusal)[:100])
    for conversion in (Conversion(), Conversion(style="runtime", platform="arm")):
        made = quick(file, tmp_path / "model.ort", conversion=conversion, overwrite=True)
        assert made.gap is not None and not any(file.unchecked for file in made.files)
        assert (
            optimized_ops(file, conversion) <= set(listed_ops(tmp_path / made.config))
            or conversion.style == "runtime"
        )


def test_genai_loads_a_package(tmp_path: Path) -> None:
    """onnxruntime-genai reads `.ort` files by the name in its config, and makes the same scores."""
    og = pytest.importorskip("onnxruntime_genai")
    source = zoo_genai.Build("llama").folder()
    quick(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["decoder"]["filename"] == "model.ort"
    scores = []
    for folder in (source, tmp_path / "out"):
        model = og.Model(str(folder))
        options = og.GeneratorParams(model)
        options.set_search_options(max_length=12)
        generator = og.Generator(model, options)
        generator.append_tokens(np.array([[1, 5, 7, 9]], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        scores.append((list(generator.get_sequence(0)), np.array(generator.get_output("logits"))))
    assert scores[0][0] == scores[1][0]
    np.testing.assert_array_equal(scores[0][1], scores[1][1])


def test_names_in_other_places_stay() -> None:
    config = {
        "model": {"decoder": {"filename": "model.onnx", "note": "model.onnx"}, "files": [{"filename": "x"}]}
    }
    names = {"model.onnx": "model.ort"}
    assert packaging_ort._renamed(config, names) == {
        "model": {"decoder": {"filename": "model.ort", "note": "model.onnx"}, "files": [{"filename": "x"}]}
    }


def test_everything_fails_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong on the way, the folder of the target is as it was."""
    source = small.write_folder(tmp_path / "small")

    def fails(*_: object, **__: object) -> None:
        raise SaveError("no more")

    for step in ("convert", "write_operators", "gap", "partitions"):
        with monkeypatch.context() as patch:
            patch.setattr(packaging_ort, step, fails)
            with pytest.raises(GraphpruneError, match="no more"):
                quick(source, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert asdict(quick(source, tmp_path / "out"))["gap"] == 0
