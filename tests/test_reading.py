"""What cannot be read is refused in one line; what ONNX Runtime would read is mended."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser

from graphprune.bundle import load
from graphprune.errors import GraphError, GraphpruneError, LoadError
from graphprune.inputs import make_inputs
from tests import small

HEADER = '<ir_version: 9, opset_import: ["" : 17]>'
SHARED = Path(__file__).parent.parent.parent / "shared" / "models"


def saved(tmp_path: Path, model: onnx.ModelProto) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def text(tmp_path: Path, body: str, header: str = HEADER) -> Path:
    return saved(tmp_path, parser.parse_model(f"{header}\n{body}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an ONNX model"),
        (b"hello, this is no model", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (small.proto().SerializeToString()[:1500], "truncated"),
        (
            helper.make_model(helper.make_graph([], "g", [], []), ir_version=0).SerializeToString(),
            "no IR version",
        ),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=message) as found:
        load(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(x) => (y) { [n] y = Add (x, ghost) }", "node 'n' (Add) reads 'ghost', which nothing computes"),
        ("(x) => (z) { [n] y = Relu (x) }", "nothing computes 'z', an output"),
        ("(x) => (y) { [n] a = Add (x, b) [m] b = Relu (a) y = Neg (b) }", "cycle: n (Add), m (Relu)"),
        ("(x) => (y) { [n] y = Relu (x) [m] y = Neg (x) }", "node 'n' (Relu) computes 'y' once more"),
        ("(x, x) => (y) { y = Relu (x) }", "declares an input twice"),
    ],
)
def test_invalid_graphs_name_the_node(tmp_path: Path, body: str, message: str) -> None:
    head, arrow, nodes = body.partition("{")
    typed = re.sub(r"(\w)(?=[,)])", r"float[2] \1", head)
    with pytest.raises(GraphError, match=re.escape(message)):
        load(text(tmp_path, f"g {typed}{arrow}{nodes}"))


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = small.proto()
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999 is not one of 1 to"),
        (lambda m: setattr(m, "ir_version", 999), "IR version 999 is newer"),
        (lambda m: m.opset_import.pop(), "no opset is imported"),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"), "has 4 bytes, not 704"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "unknown type 99"),
        (lambda m: m.graph.initializer[0].dims.append(-1), "negative shape"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse initializers"),
    ],
)
def test_invalid_models(tmp_path: Path, change: Callable[[onnx.ModelProto], object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        load(saved(tmp_path, changed(change)))


@pytest.mark.parametrize("name", [b"embed", b"table", b"join_1", b"MatMul", b"ids", b"by hand"])
def test_names_that_are_not_utf8(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small.proto().SerializeToString().replace(name, b"\xff" * len(name)))
    with pytest.raises(GraphError, match="not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../weights.bin", "leads out of the model's folder"),
        ("sub/../../weights.bin", "leads out"),
        ("..\\weights.bin", "leads out"),
        ("/etc/hostname", "not a relative path"),
        ("C:\\weights.bin", "not a relative path"),
        ("", "not a relative path"),
        ("missing.bin", "cannot be found"),
        ("folder", "is not a file"),
        ("weights\0.bin", "cannot be found"),
    ],
)
def test_weights_out_of_the_folder_or_missing(tmp_path: Path, location: str, message: str) -> None:
    path = small.write(tmp_path / "in" / "m.onnx", external=True)
    (tmp_path / "weights.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    (path.parent / "folder").mkdir()
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match=message):
        load(path)


def test_short_weights(tmp_path: Path) -> None:
    path = small.write(tmp_path / "m.onnx", external=True)
    os.truncate(tmp_path / "weights.bin", 1000)
    with pytest.raises(LoadError, match=r"tensor 'w0' needs bytes .* of weights\.bin, which has 1000"):
        load(path)


def test_a_constant_declared_twice_and_nodes_out_of_order(tmp_path: Path) -> None:
    """ONNX Runtime takes the last constant, and sorts; so do we. It is the oracle here."""
    body = """g (float[2] x) => (float[2] y) {
        c = Constant <value_float = 1.0> ()
        [late] y = Add (a, c)
        a = Relu (x)
        c = Constant <value_float = 5.0> ()
    }"""
    source = text(tmp_path, body)
    bundle = load(source)
    assert len(bundle.repairs) == 2
    out = bundle.save(tmp_path / "out.onnx")
    onnx.checker.check_model(str(out), full_check=True)
    assert not load(out).repairs
    feeds = {"x": np.array([-1, 2], np.float32)}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    expected, found = (ort.InferenceSession(p, options).run(None, feeds)[0] for p in (source, out))
    assert np.array_equal(expected, found)


def test_a_missing_import_of_a_contrib_domain(tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx", 17)], ir_version=9)
    bundle = load(saved(tmp_path, model))
    assert bundle.repairs == ("imported com.microsoft version 1, which nodes use",)
    assert bundle.files[0].model.opset_imports == {"": 17, "com.microsoft": 1}


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = """g (float[2] x) => (float[2] y) { y = my.twice (x) }
    <domain: "my", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, a) }"""
    path = text(tmp_path, body, '<ir_version: 9, opset_import: ["" : 17, "my" : 1]>')
    model = load(path).files[0].model
    assert [node.op_type for node in model.graph] == ["Add"]
    assert not model.functions


def test_functions_that_call_each_other(tmp_path: Path) -> None:
    body = """g (float[2] x) => (float[2] y) { y = my.f (x) }
    <domain: "my", opset_import: ["" : 17, "my" : 1]> f (a) => (b) { b = my.f (a) }"""
    path = text(tmp_path, body, '<ir_version: 9, opset_import: ["" : 17, "my" : 1]>')
    with pytest.raises(GraphError, match="cannot be inlined"):
        load(path)


def test_external_constants_become_ordinary(tmp_path: Path) -> None:
    body = "g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> () y = Add (x, c) }"
    model = parser.parse_model(f"{HEADER} {body}")
    tensor = model.graph.node[0].attribute[0].t
    (tmp_path / "c.bin").write_bytes(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="c.bin")
    out = load(saved(tmp_path, model)).save(tmp_path / "out" / "m.onnx")
    assert small.names(out.parent) == {"m.onnx"}
    assert ort.InferenceSession(out).run(None, {"x": np.zeros(2, np.float32)})[0].tolist() == [1, 2]


MUTATED = small.proto().SerializeToString()
# the graph's text is where mutations do most harm; weights are at the end
STRUCTURE = MUTATED.index(b"join_1") + 40

edits = st.lists(st.tuples(st.integers(0, STRUCTURE), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits, cut=st.none() | st.integers(0, len(MUTATED)))
def test_mutated_bytes_never_crash(tmp_path: Path, edits: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(MUTATED)
    for place, byte in edits:
        data[place] = byte
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(data[:cut])
    out.unlink(missing_ok=True)
    try:
        bundle = load(path)
        bundle.clone().save(out)
    except GraphpruneError as error:
        assert "\n" not in str(error)
        assert not out.exists()
    else:
        make_inputs(load(out).files[0].model, batch=1, sequence=2)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the third-party models in ../shared/models are not here")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.onnx")), ids=lambda path: path.stem)
def test_models_of_others_come_back_equal(tmp_path: Path, path: Path) -> None:
    out = load(path).save(tmp_path / "out.onnx", external="always")
    feeds = make_inputs(out, batch=1, sequence=5, past=2)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    sessions = [ort.InferenceSession(file, options) for file in (path, out)]
    for before, after in zip(*(session.run(None, feeds) for session in sessions), strict=True):
        assert np.array_equal(before, after)
