"""Files in ONNX Runtime's own format: their operators are those that the runtime optimizes a graph to."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from graphprune.errors import RunError, SaveError
from graphprune.hints import Hint, read_hint
from graphprune.inputs import make_inputs
from graphprune.ortformat import (
    Conversion,
    as_library,
    convert,
    noted_inputs,
    packaged,
    read_notes,
    write_operators,
)
from graphprune.session import open_session
from graphprune.settings import LEVELS
from graphprune.storage import write_model
from tests import small, tiny

BRANCHES = """
<ir_version: 9, opset_import: ["" : 17]>
branches (bool flag, float[rows, 8] x) => (float[rows, 8] y)
<float[8, 8] w, float[1] third = {0.33}>
{
    h = MatMul (x, w)
    g = Mul (h, third)
    y = If (flag) <
        then_branch = then () => (float[rows, 8] a) { s = Sigmoid (g)  a = Add (s, x) },
        else_branch = other () => (float[rows, 8] b) { b = Erf (g) }
    >
}
"""


IMAGE = """
<ir_version: 9, opset_import: ["" : 17]>
image (float[n, 16, 12, 12] x) => (float[n, 16, 1, 1] y)
{
    c = Conv <pads = [1, 1, 1, 1]> (x, k, b)
    r = Relu (c)
    y = GlobalAveragePool (r)
}
"""


def branches(path: Path) -> Path:
    model = onnx.parser.parse_model(BRANCHES)
    weight = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path


def image(path: Path) -> Path:
    """A convolution, its activation and a pool: what is laid out anew for one sort of processor."""
    rng = np.random.default_rng(0)
    weights = {"k": rng.standard_normal((16, 16, 3, 3), np.float32), "b": np.zeros(16, np.float32)}
    model = onnx.parser.parse_model(IMAGE)
    model.graph.initializer.extend(numpy_helper.from_array(one, name) for name, one in weights.items())
    onnx.save(model, path)
    return path


def optimized_ops(path: Path, how: Conversion) -> set[str]:
    """Oracle: what ONNX Runtime optimizes the model to, written as ONNX and read by onnx."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    name = {"all": "ENABLE_ALL", "disabled": "DISABLE_ALL"}.get(how.level, f"ENABLE_{how.level.upper()}")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{name}")
    left_out = [] if how.platform == "native" else ["NchwcTransformer"]
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
        graph = onnx.load(options.optimized_model_filepath).graph
    return {f"{node.domain or 'ai.onnx'}:{node.op_type}" for node in nodes_of(graph)}


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def listed_ops(config: Path) -> dict[str, Any]:
    """The operators of a list and what it says of their types, read here by hand: `domain;opset;Op{…},…`."""
    found: dict[str, Any] = {}
    for line in config.read_text().splitlines():
        if not line.startswith("#"):
            domain, _, text = line.split(";", 2)
            while text:
                cut = min((text.find(mark) for mark in ",{" if mark in text), default=len(text))
                name, text, types = text[:cut], text[cut:], None
                if text.startswith("{"):
                    types, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:]
                found[f"{domain}:{name}"] = types
                text = text.removeprefix(",")
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [branches, image, tiny.save])
def test_the_list_has_the_operators_of_the_optimized_graph(make: Any, level: Any, tmp_path: Path) -> None:
    how = Conversion(level=level)
    model = make(tmp_path / "model.onnx")
    convert(model, tmp_path / "model.ort", how)
    count = write_operators({tmp_path / "model.ort": model}, tmp_path / "ops.config", how)
    expected = optimized_ops(model, how)
    assert set(listed_ops(tmp_path / "ops.config")) == expected
    assert count == len(expected)
    head = (tmp_path / "ops.config").read_text().splitlines()[:2]
    assert head == ["# Generated from model/s:", "# - model.ort"]


def test_several_files_share_a_list(tmp_path: Path) -> None:
    files = {}
    for make in (branches, image):
        model = make(tmp_path / f"{make.__name__}.onnx")
        files[model.with_suffix(".ort")] = model
        convert(model, model.with_suffix(".ort"), Conversion())
    write_operators(files, tmp_path / "ops.config", Conversion())
    both = set[str]().union(*(optimized_ops(model, Conversion()) for model in files.values()))
    assert set(listed_ops(tmp_path / "ops.config")) == both


def test_types_go_along_when_asked_for(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    convert(model, tmp_path / "model.ort", Conversion())
    write_operators({tmp_path / "model.ort": model}, tmp_path / "ops.config", Conversion(), types=True)
    found = listed_ops(tmp_path / "ops.config")
    assert found["ai.onnx:MatMul"] == {"inputs": {"0": ["float"]}}
    assert set(found) == optimized_ops(model, Conversion())


def test_the_style_runtime_lists_what_is_fused_later_too(tmp_path: Path) -> None:
    how = Conversion(style="runtime")
    model = image(tmp_path / "model.onnx")
    convert(model, tmp_path / "model.ort", how)
    write_operators({tmp_path / "model.ort": model}, tmp_path / "ops.config", how)
    assert {"ai.onnx:Conv", "ai.onnx:Relu", "com.microsoft:FusedConv"} <= set(
        listed_ops(tmp_path / "ops.config")
    )


def test_only_native_files_have_the_layout_of_this_processor(tmp_path: Path) -> None:
    model = image(tmp_path / "model.onnx")
    for platform in ("any", "arm", "native"):
        how = Conversion(platform=platform)  # type: ignore[arg-type]
        convert(model, tmp_path / "model.ort", how)
        write_operators({tmp_path / "model.ort": model}, tmp_path / "ops.config", how)
        found = set(listed_ops(tmp_path / "ops.config"))
        assert found == optimized_ops(model, how)
        assert platform == "native" or not any(op.startswith("com.microsoft.nchwc") for op in found)


def test_it_puts_out_what_numpy_does(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    x = np.random.default_rng(1).normal(size=(2, 5, tiny.WIDTH)).astype(np.float32)
    for style in ("fixed", "runtime"):
        convert(model, tmp_path / "model.ort", Conversion(style=style))  # type: ignore[arg-type]
        session = open_session(tmp_path / "model.ort", "model.ort")
        np.testing.assert_allclose(session.run({"x": x})["y"], tiny.reference(x), 1e-4, 1e-5)


@pytest.mark.parametrize("given", [{"level": "most"}, {"style": "quick"}, {"platform": "x86"}])
def test_what_does_not_exist_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"there is no .*: choose one of "):
        Conversion(**given)


def test_what_the_runtime_cannot_write_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(SaveError, match=r"model\.onnx: ONNX Runtime cannot write it in its own format"):
        convert(tmp_path / "model.onnx", tmp_path / "model.ort", Conversion())
    model = tiny.save(tmp_path / "model.onnx")
    with pytest.raises(SaveError, match="cannot write it in its own format"):
        convert(model, tmp_path / "missing" / "model.ort", Conversion())


def test_command_line_tools_leave_nothing_behind(tmp_path: Path) -> None:
    """They print, set up logging, extend `sys.path` and import torch where it is installed."""
    model = tiny.save(tmp_path / "model.onnx")
    code = f"""
import logging, sys
from pathlib import Path
from graphprune.mobile import partitions
from graphprune.ortformat import Conversion, convert, write_operators
before = list(sys.path)
model, made = Path({str(model)!r}), Path({str(tmp_path / "model.ort")!r})
convert(model, made, Conversion())
for _ in range(2):
    write_operators({{made: model}}, made.with_suffix(".config"), Conversion(), types=True)
    assert partitions(model)
assert sys.path == before and not logging.root.handlers and "torch" not in sys.modules
assert logging.root.level == logging.WARNING
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_logger_of_the_user_stays(tmp_path: Path) -> None:
    handlers = list(logging.root.handlers)
    with as_library():
        pass
    assert logging.root.handlers == handlers


def test_a_file_or_a_folder_without_onnx_files_is_packaged(tmp_path: Path) -> None:
    assert packaged(tmp_path) == packaged(tmp_path / "missing.ort") == ()
    (tmp_path / "onnx").mkdir()
    for name in ("b.ort", "onnx/a.ort", ".hidden.ort"):
        (tmp_path / name).write_bytes(b"")
    assert packaged(tmp_path) == ((tmp_path / "b.ort", "b.ort"), (tmp_path / "onnx" / "a.ort", "onnx/a.ort"))
    assert packaged(str(tmp_path / "b.ort")) == ((tmp_path / "b.ort", "b.ort"),)
    (tmp_path / "model.onnx").write_bytes(b"")
    assert packaged(tmp_path) == ()


def test_packaged_files_keep_their_order(tmp_path: Path) -> None:
    names = ("a.onnx", "a.optimized.onnx")
    for name in names:
        (tmp_path / name).with_suffix(".ort").write_bytes(b"")
    assert sorted(names) == [name.replace(".ort", ".onnx") for _, name in packaged(tmp_path)]


def test_what_a_graph_says_of_its_inputs_goes_along(tmp_path: Path) -> None:
    """So that the same source gives the same values to a model and to its package."""
    model = ir.from_proto(small.proto())
    write_model(model, tmp_path / "model.onnx", external="never", metadata=noted_inputs(model))
    convert(tmp_path / "model.onnx", tmp_path / "model.ort", Conversion())
    sessions = [ort.InferenceSession(tmp_path / f"model.{kind}") for kind in ("onnx", "ort")]
    assert read_notes(sessions[1].get_modelmeta().custom_metadata_map) == {
        "ids": Hint(limit=small.VOCABULARY)
    }
    one, two = (make_inputs(session, batch=3, sequence=50, seed=4) for session in sessions)
    assert one.keys() == two.keys()
    np.testing.assert_array_equal(one["ids"], two["ids"])
    assert len(np.unique(two["ids"])) > 5


def test_a_file_of_somebody_else_gets_valid_inputs(tmp_path: Path) -> None:
    small.write(tmp_path / "model.onnx")
    convert(tmp_path / "model.onnx", tmp_path / "model.ort", Conversion())
    session = ort.InferenceSession(tmp_path / "model.ort")
    assert session.run(None, make_inputs(session, batch=2, sequence=3))[0].shape == (2, 3, small.WIDTH)


def test_notes_hold_every_field_of_a_hint() -> None:
    hint = Hint(limit=9, search="ids", channels=3, stride=4, positions=17, head=8)
    model = ir.from_proto(small.proto())
    notes = noted_inputs(model)
    assert json.loads(next(iter(notes.values()))) == {
        "ids": {"limit": read_hint(model.graph.inputs[0]).limit}
    }
    key = next(iter(notes))
    assert read_notes({key: json.dumps({"x": hint.__dict__})}) == {"x": hint}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*Hint().__dict__, "x"]), inner)
    ),
    max_leaves=12,
)


@given(JSON.map(json.dumps) | st.text(max_size=50))
def test_notes_of_anybody_are_read_or_left(text: str) -> None:
    for hint in read_notes({"graphprune.inputs": text}).values():
        numbers = (hint.limit, hint.channels, hint.stride, hint.positions, hint.head)
        assert all(number is None or number > 0 for number in numbers)
