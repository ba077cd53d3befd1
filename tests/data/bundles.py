"""Bundles small enough to check by hand: a model of few nodes with a tokenizer of few words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from graphprune.data.dataset import Batch
from graphprune.play import first_feeds
from graphprune.session import open_sessions
from graphprune.settings import Settings

WORDS = (
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    *"abcdefgh",
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "red",
    "big",
)
WIDTH = 6
TABLE = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH)).astype(np.float32)

# What the bodies below put out; `table` and `head` are weights.
STATES = "int64[b, s] input_ids, int64[b, s] attention_mask", "float[b, s, 6] last_hidden_state"
CLASSES = (
    "int64[b, s] input_ids, int64[b, s] attention_mask, int64[b, s] token_type_ids",
    "float[b, 3] logits",
)
NUMBER = CLASSES[0], "float[b, 1] logits"
SCORES = "int64[b, s] input_ids, int64[b, s] attention_mask", f"float[b, s, {len(WORDS)}] logits"
IMAGES = "float[b, 1, 4, 4] pixel_values", "float[b, 3] logits"
BODIES = {
    "states": (*STATES, "last_hidden_state = Gather (table, input_ids)"),
    "classes": (
        *CLASSES,
        """x = Gather (table, input_ids)
        kinds = Cast <to = 1> (token_type_ids) kept = Cast <to = 1> (attention_mask)
        weight = Add (kinds, kept) axis = Constant <value_ints = [2]> ()
        wide = Unsqueeze (weight, axis) y = Mul (x, wide)
        tokens = Constant <value_ints = [1]> ()
        sum = ReduceSum <keepdims = 0> (y, tokens) logits = MatMul (sum, head)""",
    ),
    "bigrams": (*SCORES, "x = Gather (table, input_ids) logits = MatMul (x, head)"),
    "masked": (
        *SCORES,
        """x = Gather (table, input_ids) m = ReduceMean <axes = [1]> (x)
        y = Sub (x, m) logits = MatMul (y, head)""",
    ),
    "images": (*IMAGES, "flat = Flatten (pixel_values) logits = MatMul (flat, head)"),
}  # fmt: skip
BODIES["number"] = (*NUMBER, BODIES["classes"][2])
HEADS = {"classes": (WIDTH, 3), "number": (WIDTH, 1), "images": (16, 3), "bigrams": (WIDTH, len(WORDS))}


def head(kind: str) -> NDArray[np.float32]:
    shape = HEADS["bigrams" if kind == "masked" else kind]
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def tokenizer(*, special: bool = True) -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
    return made


def write(folder: Path, kind: str, *, config: Mapping[str, Any] | None = None, special: bool = True) -> Path:
    """A bundle of one of `BODIES`."""
    inputs, outputs, body = BODIES[kind]
    text = f'<ir_version: 8, opset_import: ["" : 13]> written ({inputs}) => ({outputs}) {{\n{body}\n}}'
    model = onnx.parser.parse_model(text)
    if "table" in body:
        model.graph.initializer.append(numpy_helper.from_array(TABLE, "table"))
    if "head" in body:
        model.graph.initializer.append(numpy_helper.from_array(head(kind), "head"))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    tokenizer(special=special).save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def outputs(path: Path, batches: Iterable[Batch]) -> Iterator[dict[str, NDArray[Any]]]:
    """What the model puts out for each batch."""
    (session,) = open_sessions(path, Settings(threads=1))
    return (session.run(first_feeds(session, batch.source)) for batch in batches)
