"""An encoder and a decoder of different models: told by the tables in which they look tokens up."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.vocabulary import strangers
from tests.graphs import written

CONFIG: dict[str, Any] = {"vocab_size": 30}


def table(rows: int = 30, seed: int = 0, kind: type[np.generic] = np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, 8)) * 50).astype(kind)


def inputs(constant: np.ndarray, ids: str = "input_ids", body: str = "y = Gather (table, {ids})") -> Any:
    """The inputs of a graph that looks token ids up."""
    model = written(
        body.format(ids=ids), inputs=f"int64[batch, sequence] {ids}",
        outputs="float[batch, sequence, 8] y", constants={"table": constant},
    )  # fmt: skip
    return {value.name: value for value in model.graph.inputs}


@pytest.mark.parametrize("body", ["y = Gather (table, {ids})", "t = Identity (table) y = Gather (t, {ids})"])
@pytest.mark.parametrize("ids", ["input_ids", "decoder_input_ids"])
def test_one_table_of_both(ids: str, body: str) -> None:
    assert strangers(inputs(table()), inputs(table(), ids, body), CONFIG) == ""
    found = strangers(inputs(table(seed=1)), inputs(table(), ids, body), CONFIG)
    assert found == "has another table of tokens than the decoder"


@pytest.mark.parametrize("rows", [29, 31])
def test_another_vocabulary(rows: int) -> None:
    found = strangers(inputs(table(rows)), inputs(table()), CONFIG | {"tie_word_embeddings": False})
    assert found == f"has {rows} tokens, and 30 are the decoder's and config.json's"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"vocab_size": 29},
        {"vocab_size": "30"},
        {"vocab_size": 30, "decoder_vocab_size": 40},
        {"vocab_size": 30, "src_vocab_size": 31},
        {"vocab_size": 30, "encoder": {"vocab_size": 31}},
    ],
)
def test_where_the_config_knows_no_one_vocabulary_nothing_is_sure(config: dict[str, Any]) -> None:
    for constant in (table(31), table(seed=1)):
        assert strangers(inputs(constant), inputs(table()), config) == ""


@pytest.mark.parametrize("key", ["tie_word_embeddings", "share_encoder_decoder_embeddings"])
def test_tables_that_are_not_shared_may_differ(key: str) -> None:
    assert strangers(inputs(table(seed=1)), inputs(table()), CONFIG | {key: False}) == ""
    assert strangers(inputs(table(seed=1)), inputs(table()), CONFIG | {key: True})


def test_tables_of_other_types_may_differ() -> None:
    assert strangers(inputs(table(kind=np.float16)), inputs(table()), CONFIG) == ""
    assert strangers(inputs(table(seed=1, kind=np.int8)), inputs(table(kind=np.int8)), CONFIG) == ""


def test_where_no_table_or_more_than_one_is_read_nothing_is_sure() -> None:
    twice = "a = Gather (table, input_ids) t = Neg (table) b = Gather (t, input_ids) y = Add (a, b)"
    assert strangers(inputs(table(seed=1), body=twice), inputs(table()), CONFIG) == ""
    nothing: dict[str, ir.Value] = {}
    assert strangers(nothing, inputs(table()), CONFIG) == strangers(inputs(table()), nothing, CONFIG) == ""
