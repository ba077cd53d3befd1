"""Whether an encoder's file and a decoder's are of one model, as far as their tables of tokens tell.

Nearly all models that make text of text read both with one vocabulary, and most keep one table of
it for the encoder and the decoder (T5, BART and their relatives; Press and Wolf, 2017,
https://arxiv.org/abs/1608.05859). `config.json` says where it is otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune.hints import tables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_IDS = ("decoder_input_ids", "input_ids")
_COUNTS = {"vocab_size", "decoder_vocab_size"}
_SHARED = ("tie_word_embeddings", "share_encoder_decoder_embeddings")  # unless they are there, and false
_ROWS, _COLUMNS = 64, 32  # how much of two tables is compared, at even distances


def strangers(
    encoder: Mapping[str, ir.Value], decoder: Mapping[str, ir.Value], config: Mapping[str, Any]
) -> str:
    """Why the files with these inputs, by name, are surely of different models; empty where nothing says so.

    Where the decoder's table has the rows that `config` gives the one vocabulary of the model, the
    encoder's must have them too, and hold the same numbers where the model shares the table.
    """
    mine, other = _table(encoder), _table(decoder)
    if mine is None or other is None or not _one_vocabulary(config, other.shape[0]):
        return ""
    if mine.shape[0] != other.shape[0]:
        return f"has {mine.shape[0]} tokens, and {other.shape[0]} are the decoder's and config.json's"
    if all(config.get(key, True) is True for key in _SHARED) and _differ(mine, other):
        return "has another table of tokens than the decoder"
    return ""


def _one_vocabulary(config: Mapping[str, Any], rows: object) -> bool:
    """Whether `config` knows one vocabulary for both sides, and it has so many tokens."""
    counts = {key for key in config if key.endswith("vocab_size")}
    alone = "vocab_size" in counts <= _COUNTS and all(config[key] == rows for key in counts)
    return alone and not isinstance(config.get("encoder"), Mapping)


def _table(inputs: Mapping[str, ir.Value]) -> ir.TensorProtocol | None:
    """The one table in which token ids are looked up."""
    ids = next((inputs[name] for name in _IDS if name in inputs), None)
    found = dict.fromkeys(_stored(table) for table in tables(ids)) if ids is not None else {}
    table = next(iter(found)) if len(found) == 1 else None
    return None if table is None else table.const_value


def _stored(value: ir.Value) -> ir.Value:
    """The constant behind other names of it."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value


def _differ(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Whether two tables of floats hold different numbers; other types are of no account."""
    if one.dtype != other.dtype or not one.dtype.is_floating_point() or one.shape != other.shape:
        return False
    return _sample(one).tobytes() != _sample(other).tobytes()


def _sample(tensor: ir.TensorProtocol) -> NDArray[np.generic]:
    array = tensor.numpy()
    return array[:: max(1, array.shape[0] // _ROWS), :_COLUMNS]
