"""The check passes what works, blames what does not, and forgives what the source does too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from graphprune.bundle import load
from graphprune.check import SHAPES, CheckReport, check_model
from graphprune.errors import CheckError
from tests import small


def check(path: Path, source: Path | None = None, *, run: bool = True) -> CheckReport:
    return check_model(path, expected_inputs=["ids"], expected_outputs=["out"], source=source, run=run)


def changed(path: Path, change: Callable[[onnx.GraphProto], object]) -> Path:
    model = small.proto()
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("external", [True, False])
def test_a_sound_model_runs_in_two_shapes(tmp_path: Path, external: bool) -> None:
    path = small.write(tmp_path / "m.onnx", external=external)
    assert check(path) == CheckReport("m.onnx", SHAPES[:2], ())
    assert check(path, run=False) == CheckReport("m.onnx", (), ())


def wrong_operator(graph: onnx.GraphProto) -> None:
    graph.node[1].op_type = "NoSuchOp"


def wrong_shape(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim[2].dim_value = small.WIDTH + 1


def test_a_source_without_kernels_may_lack_another_one_first(tmp_path: Path) -> None:
    """On a CPU nothing runs in bfloat16: the runtime names the first operator alone."""

    def written(name: str, body: str) -> Path:
        text = (
            f"<ir_version: 8, opset_import: ['' : 17]> m (bfloat16[N] ids) => (bfloat16[N] out) {{ {body} }}"
        )
        onnx.save(parser.parse_model(text.replace("'", '"')), tmp_path / name)
        return tmp_path / name

    source = written("source.onnx", "a = Abs (ids) out = Neg (a)")
    pruned = written("pruned.onnx", "out = Neg (ids)")
    (tolerated,) = check(pruned, source).tolerated
    assert "Neg" in tolerated
    with pytest.raises(CheckError, match="fails loading it in ONNX Runtime"):
        check(pruned, small.write(tmp_path / "sound.onnx"))


def not_finite(graph: onnx.GraphProto) -> None:
    weights = numpy_helper.to_array(graph.initializer[1]).copy()
    weights[3, 3] = np.inf
    graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "w0"))


def not_runnable(graph: onnx.GraphProto) -> None:
    """The reshape holds for two tokens alone: nothing but a run finds it."""
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, small.WIDTH]), "shape"))
    graph.node[4].output[0] = "sum"
    graph.node.append(helper.make_node("Reshape", ["sum", "shape"], ["out"], name="narrow"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_operator, "fails the ONNX checker: No Op registered for NoSuchOp"),
        (wrong_shape, "fails the ONNX checker: .*Inferred shape and existing shape differ"),
        (not_finite, "output 'out' is not finite"),
        (not_runnable, r"batch 2, sequence 7, past 0\).*narrow"),
    ],
)
def test_faults_are_blamed_unless_the_source_has_them(
    tmp_path: Path, change: Callable[[onnx.GraphProto], object], message: str
) -> None:
    sound, faulty = small.write(tmp_path / "sound.onnx"), changed(tmp_path / "m.onnx", change)
    for source in (None, sound):
        with pytest.raises(CheckError, match=message) as found:
            check(faulty, source)
        assert str(found.value).startswith("m.onnx fails")
        assert "\n" not in str(found.value)
    forgiven = check(faulty, faulty)
    assert forgiven.tolerated or len(forgiven.shapes) < 2


def test_another_fault_than_the_source_has_is_blamed(tmp_path: Path) -> None:
    source = changed(tmp_path / "source.onnx", wrong_shape)
    with pytest.raises(CheckError, match="NoSuchOp"):
        check(changed(tmp_path / "m.onnx", wrong_operator), source)


def runtimes_own(graph: onnx.GraphProto) -> None:
    """An op of the default domain that only the runtime knows: the checker stops there."""
    graph.initializer.append(numpy_helper.from_array(np.ones(small.WIDTH, np.float32), "gamma"))
    graph.node[4].output[0] = "sum"
    graph.node.add(op_type="SimplifiedLayerNormalization", input=["sum", "gamma"], output=["out"])


@pytest.mark.parametrize("faults", [1, 30])
def test_what_the_checker_did_not_come_to_in_the_source_is_no_new_fault(tmp_path: Path, faults: int) -> None:
    def wrong(graph: onnx.GraphProto) -> None:
        for number in range(faults):
            name = f"constant/of/a/long/name/{number}"
            graph.node.add(op_type="Constant", output=[name]).attribute.add(
                name="value", type=onnx.AttributeProto.TENSOR, t=numpy_helper.from_array(np.int64([number]))
            )
            graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, []))

    def both(graph: onnx.GraphProto) -> None:
        wrong(graph)
        runtimes_own(graph)

    source, sound = changed(tmp_path / "source.onnx", both), changed(tmp_path / "s.onnx", runtimes_own)
    pruned = changed(tmp_path / "m.onnx", wrong)
    assert "differ in rank" in check(pruned, source, run=False).tolerated[0]
    with pytest.raises(CheckError, match="differ in rank") as found:
        check(pruned, sound, run=False)
    assert len(str(found.value)) < 600


def test_the_signature_must_be_as_promised(tmp_path: Path) -> None:
    path = small.write(tmp_path / "m.onnx")
    with pytest.raises(CheckError, match=r"inputs that were promised; they differ in \['mask'\]"):
        check_model(path, expected_inputs=["ids", "mask"], expected_outputs=["out"])
    with pytest.raises(CheckError, match="outputs that were promised"):
        check_model(path, expected_inputs=["ids"], expected_outputs=["logits"])


def test_operators_of_unknown_domains_are_let_through_where_the_source_has_them(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "their.own" : 1]>
    g (float[batch, 2] ids) => (float[batch, 2] out) { y = their.own.Secret (ids) out = Relu (y) }"""
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(text), path)
    with pytest.raises(CheckError, match="fails loading it in ONNX Runtime"):
        check(path)
    report = check(path, path)
    assert report.shapes == ()
    assert "Secret" in report.tolerated[0]


def test_as_part_of_a_save(tmp_path: Path) -> None:
    bundle = load(small.write(tmp_path / "m.onnx"))
    reports: list[CheckReport] = []
    bundle.save(tmp_path / "out.onnx", check=lambda file, path: reports.append(check(path, file.path)))
    assert reports == [CheckReport("out.onnx", SHAPES[:2], ())]
