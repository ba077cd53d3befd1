"""Random inputs are valid: they have the right sizes, and every model runs on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, parser

from graphprune.inputs import make_inputs
from tests import small

FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def interface(path: Path, *inputs: tuple[str, int, list[int | str | None]]) -> Path:
    """A model of Identity nodes with these inputs."""
    values = [helper.make_tensor_value_info(*one) for one in inputs]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs]
    outs = [helper.make_tensor_value_info(f"{name}_out", kind, None) for name, kind, _ in inputs]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, outs), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(model, path)
    return path


def shapes(path: Path, batch: int = 2, sequence: int = 5, past: int = 3) -> dict[str, tuple[int, ...]]:
    made = make_inputs(path, batch=batch, sequence=sequence, past=past)
    return {name: array.shape for name, array in made.items()}


def test_ids_are_within_the_table_and_reach_all_of_it(tmp_path: Path) -> None:
    ids = make_inputs(small.write(tmp_path / "m.onnx"), batch=50, sequence=50)["ids"]
    assert ids.dtype == np.int64
    assert set(ids.ravel()) == set(range(small.VOCABULARY))


def test_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    path = small.write(tmp_path / "m.onnx")
    a, b, c = (make_inputs(path, batch=4, sequence=9, seed=seed)["ids"] for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_session_a_path_and_a_model_in_memory_are_alike(tmp_path: Path) -> None:
    from graphprune.bundle import load

    path = small.write(tmp_path / "m.onnx")
    arrays = [
        make_inputs(model, batch=2, sequence=3)["ids"]
        for model in (path, ort.InferenceSession(path), load(path).files[0].model)
    ]
    assert all(np.array_equal(arrays[0], other) for other in arrays[1:])


def test_a_decoder_with_a_cache(tmp_path: Path) -> None:
    """The axes as optimum names them."""
    cache: list[int | str | None] = ["batch_size", 4, "past_sequence_length", 8]
    path = interface(
        tmp_path / "m.onnx",
        ("input_ids", INT64, ["batch_size", "sequence_length"]),
        ("attention_mask", INT64, ["batch_size", "past_sequence_length + sequence_length"]),
        ("position_ids", INT64, ["batch_size", "sequence_length"]),
        ("past_key_values.0.key", FLOAT, cache),
        ("use_cache_branch", BOOL, [1]),
    )
    made = make_inputs(path, batch=2, sequence=5, past=3)
    assert {name: array.shape for name, array in made.items()} == {
        "input_ids": (2, 5),
        "attention_mask": (2, 8),
        "position_ids": (2, 5),
        "past_key_values.0.key": (2, 4, 3, 8),
        "use_cache_branch": (1,),
    }
    assert made["attention_mask"].all()
    assert made["position_ids"].tolist() == [[3, 4, 5, 6, 7]] * 2
    assert made["use_cache_branch"].all()
    assert not make_inputs(path, batch=2, sequence=5)["use_cache_branch"].any()


def test_opaque_axes_mean_what_their_place_does(tmp_path: Path) -> None:
    """As torch's dynamo exporter names them; a stacked cache too."""
    path = interface(
        tmp_path / "m.onnx",
        ("input_ids", INT64, ["s1", "s2"]),
        ("attention_mask", INT64, ["s1", "s2 + s9"]),
        ("past_0", FLOAT, [2, "s1", 4, "s9", 8]),
        ("unnamed", FLOAT, [None, None, 6]),
    )
    assert shapes(path) == {
        "input_ids": (2, 5),
        "attention_mask": (2, 8),
        "past_0": (2, 2, 4, 3, 8),
        "unnamed": (2, 5, 6),
    }


def test_what_the_graph_fixes_comes_first(tmp_path: Path) -> None:
    path = interface(
        tmp_path / "m.onnx",
        ("input_ids", INT64, ["batch", 1]),
        ("attention_mask", INT64, ["batch", "total_sequence_length"]),
        ("past_0", FLOAT, ["batch", 4, 7, 8]),
    )
    assert shapes(path) == {"input_ids": (2, 1), "attention_mask": (2, 8), "past_0": (2, 4, 7, 8)}


def test_a_length_in_a_batch_is_no_batch(tmp_path: Path) -> None:
    path = interface(tmp_path / "m.onnx", ("input_ids", INT64, ["batch", "max_seq_len_in_batch"]))
    assert shapes(path) == {"input_ids": (2, 5)}


def test_encoder_and_decoder_differ(tmp_path: Path) -> None:
    path = interface(
        tmp_path / "m.onnx",
        ("decoder_input_ids", INT64, ["batch_size", "decoder_sequence_length"]),
        ("encoder_hidden_states", FLOAT, ["batch_size", "encoder_sequence_length", 16]),
        ("encoder_attention_mask", INT64, ["batch_size", "encoder_sequence_length"]),
        ("halved", FLOAT, ["batch_size", "encoder_sequence_length / 2", 16]),
    )
    found = shapes(path, sequence=4)
    assert found["decoder_input_ids"] == (2, 4)
    assert found["encoder_hidden_states"][1] == found["encoder_attention_mask"][1] == 6
    assert found["halved"][1] == 3


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_an_image_fills_its_position_table(tmp_path: Path, extra: int) -> None:
    """A ViT's patches (8 pixels, a grid of 3 by 3) with none, one or two special tokens."""
    text = f"""<ir_version: 9, opset_import: ["" : 17]>
    vit (float[batch, channels, height, width] pixels) => (float[batch, n, 4] out)
    <int64[3] flat = {{0, 4, -1}}> {{
        patches = Conv <strides = [8, 8]> (pixels, kernel)
        rows = Reshape (patches, flat)
        tokens = Transpose <perm = [0, 2, 1]> (rows)
        {"padded = Concat <axis = 1> (special, tokens)" if extra else "padded = Identity (tokens)"}
        out = Add (padded, positions)
    }}"""
    model = parser.parse_model(text)
    weights = {"kernel": (4, 3, 8, 8), "positions": (1, 9 + extra, 4), "special": (1, extra, 4)}
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, tmp_path / "m.onnx")
    feeds = make_inputs(tmp_path / "m.onnx", batch=1, sequence=5)
    assert feeds["pixels"].shape == (1, 3, 24, 24)
    (out,) = ort.InferenceSession(tmp_path / "m.onnx").run(None, feeds)
    assert out.shape == (1, 9 + extra, 4)


@pytest.mark.parametrize(
    "convolution",
    [
        """pixels8, scale8, zero8 = DynamicQuantizeLinear (pixels)
        whole = ConvInteger <strides = [8, 8]> (pixels8, kernel8, zero8)
        patches = Cast <to = 1> (whole)""",
        """pixels8 = QuantizeLinear (pixels, scale, zero)
        patches8 = QLinearConv <strides = [8, 8]> (pixels8, scale, zero, kernel8, scale, zero, scale, zero)
        patches = DequantizeLinear (patches8, scale, zero)""",
        """patches = com.microsoft.FusedConv <strides = [8, 8], activation = "Relu"> (pixels, kernel)""",
    ],
)
def test_an_image_for_a_convolution_in_other_clothes(tmp_path: Path, convolution: str) -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
    vit (float[batch, channels, height, width] pixels) => (float[batch, n, 4] out)
    <int64[3] flat = {{0, 4, -1}}, float scale = {{0.1}}, uint8 zero = {{7}}> {{
        {convolution}
        rows = Reshape (patches, flat)
        tokens = Transpose <perm = [0, 2, 1]> (rows)
        out = Add (tokens, positions)
    }}"""
    model = parser.parse_model(text)
    kernel, positions = np.ones((4, 3, 8, 8), np.float32), np.ones((1, 9, 4), np.float32)
    weights: dict[str, np.ndarray] = {
        "kernel": kernel,
        "kernel8": kernel.astype(np.uint8),
        "positions": positions,
    }
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    feeds = make_inputs(tmp_path / "m.onnx", batch=1, sequence=5)
    assert feeds["pixels"].shape == (1, 3, 24, 24)
    (out,) = ort.InferenceSession(tmp_path / "m.onnx").run(None, feeds)
    assert out.shape == (1, 9, 4)


def test_initializers_listed_as_inputs_are_not_asked_for(tmp_path: Path) -> None:
    model = small.proto()
    model.graph.input.append(helper.make_tensor_value_info("w0", FLOAT, [small.WIDTH, small.WIDTH]))
    onnx.save(model, tmp_path / "m.onnx")
    assert list(make_inputs(tmp_path / "m.onnx", batch=1, sequence=2)) == ["ids"]
