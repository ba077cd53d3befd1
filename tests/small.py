"""A model small enough to read: an embedding and two residual layers, written as ONNX text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

VOCABULARY, WIDTH = 11, 16

TEXT = """
<ir_version: 9, opset_import: ["" : 17], metadata_props: ["exporter": "by hand"]>
small (int64[batch, sequence] ids) => (float[batch, sequence, 16] out)
{
    [embed] x = Gather (table, ids)
    [up_0] a = MatMul (x, w0)
    [join_0] y = Add (x, a)
    [up_1] b = MatMul (y, w1)
    [join_1] out = Add (y, b)
}
"""


def proto() -> onnx.ModelProto:
    """The model with seeded random weights of 704 and 1,024 bytes inside."""
    model = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    shapes = {"table": (VOCABULARY, WIDTH), "w0": (WIDTH, WIDTH), "w1": (WIDTH, WIDTH)}
    for name, shape in shapes.items():
        weights = rng.standard_normal(shape, dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    return model


def write(path: Path, *, external: bool = False) -> Path:
    """The model in a file, with `external` its weights in `weights.bin` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = (
        {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    )
    onnx.save(proto(), path, **options)
    return path


def write_folder(folder: Path) -> Path:
    """A bundle as optimum writes one: the model, its data, config, tokenizer, and what else lies about."""
    write(folder / "model.onnx", external=True)
    (folder / "config.json").write_text('{"num_hidden_layers": 2, "model_type": "small"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "model.safetensors").write_bytes(b"the unpruned weights")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "junk").write_text("junk")
    return folder


def names(folder: Path) -> set[str]:
    """Every file below `folder`, hidden ones included."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
