"""Caches stay in the runtime, in the type that the model keeps them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.generator import Steps, generate_steps
from graphprune.language import open_model
from graphprune.slots import cache_slot
from tests.test_generator import PROMPTS, run, zoo

NEW = 6
SCALE = 0.05


def stored_as(path: Path, element: int, *, scores: bool = False) -> Path:
    """GPT-2 of the zoo whose caches (and scores) are bfloat16, or int8 with one scale, outside of it."""
    model = onnx.load(zoo("gpt2").folder() / "model.onnx")
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(SCALE), "cache_scale"))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), "cache_zero"))
    quantized = element == TensorProto.INT8
    into, out = ("DequantizeLinear", "QuantizeLinear") if quantized else ("Cast", "Cast")
    parameters = ["cache_scale", "cache_zero"] if quantized else []
    first, last = [], []
    for value in graph.input:
        if cache_slot(value.name, "past"):
            inner = f"{value.name}/inside"
            rename(graph, value.name, inner)
            options = {} if quantized else {"to": TensorProto.FLOAT}
            first.append(helper.make_node(into, [value.name, *parameters], [inner], **options))
            value.type.tensor_type.elem_type = element
    for value in graph.output:
        if cache_slot(value.name, "present") or scores:
            inner = f"{value.name}/inside"
            rename(graph, value.name, inner)
            options = {} if quantized else {"to": element}
            last.append(helper.make_node(out, [inner, *parameters], [value.name], **options))
            value.type.tensor_type.elem_type = element
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.save(model, path)
    return path


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def lane_types(steps: Steps) -> set[str]:
    return {value.data_type() for lane in steps._lanes for value in lane._cache.values()}


@pytest.mark.parametrize(
    ("element", "scores", "limit"),
    [
        (TensorProto.BFLOAT16, False, 0.05),
        (TensorProto.BFLOAT16, True, 0.1),
        (TensorProto.INT8, False, 0.3),
    ],
    ids=["bfloat16", "bfloat16-and-scores", "int8"],
)
def test_caches_keep_their_type(element: int, scores: bool, limit: float, tmp_path: Path) -> None:
    model = open_model(stored_as(tmp_path / "model.onnx", element, scores=scores))
    plain = zoo("gpt2").folder() / "model.onnx"
    steps = generate_steps(model, PROMPTS, max_new_tokens=NEW, ignore_eos=True)
    found = np.stack([step.scores for step in steps])
    assert lane_types(steps) == {f"tensor({TensorProto.DataType.Name(element).lower()})"}
    made, wanted = run(plain, prompts=PROMPTS, max_new_tokens=NEW)
    same = [i for i in range(NEW) if _tokens(steps.result(), i) == _tokens(made, i)]
    assert same[:2] == [0, 1]
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found[:2] / np.abs(wanted).max(), wanted[:2] / np.abs(wanted).max(), atol=limit
    )
    width = {TensorProto.INT8: 1}.get(element, 2)
    assert steps.result().cache_bytes * 4 == made.cache_bytes * width


def _tokens(made: object, place: int) -> list[int]:
    return [one.tokens[place] for one in made.completions]  # type: ignore[attr-defined]


def test_a_cache_of_a_fixed_size_is_refused(tmp_path: Path) -> None:
    from graphprune.errors import RunError

    model = onnx.load(zoo("gpt2").folder() / "model.onnx")
    for value in model.graph.input:
        if cache_slot(value.name, "past"):
            value.type.tensor_type.shape.dim[2].dim_value = 16
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RunError, match=r"past_key_values\.0\.key .* cannot begin without tokens"):
        run(tmp_path / "model.onnx", prompts=PROMPTS)
