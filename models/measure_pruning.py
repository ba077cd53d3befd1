"""What dropping layers does to a demo decoder, before any repair, as ONNX: a table in Markdown.

python -m models.measure_pruning llama-shakespeare [--data FOLDER]

The tables of models/README.md are its output.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

import graphprune as gp
from models import corpus, decoders
from models.corpus import HERE

BATCH = 8


def nats_per_token(model: Path, rows: corpus.Ids) -> float:
    """The mean cross-entropy of an exported decoder over windows [rows, length + 1], each without a past."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    total = 0.0
    for part in np.array_split(rows, math.ceil(len(rows) / BATCH)):
        (logits,) = session.run(["logits"], _feeds(session, part[:, :-1]))
        shifted = logits - logits.max(-1, keepdims=True)
        scores = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        total -= float(np.take_along_axis(scores, part[:, 1:, None], -1).mean(dtype=np.float64)) * len(part)
    return total / len(rows)


def _feeds(session: ort.InferenceSession, ids: corpus.Ids) -> dict[str, Any]:
    """Whole rows of tokens and empty caches for every input of the session."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        if value.name in known:
            feeds[value.name] = known[value.name].astype(np.int64)
        else:
            _, heads, _, size = value.shape
            feeds[value.name] = np.zeros((len(ids), heads, 0, size), np.float32)
    return feeds


def variants(depth: int) -> Iterator[tuple[str, str]]:
    """What is dropped: names for people, and selections of layers."""
    yield from ((f"layer {layer}", str(layer)) for layer in range(depth))
    half = depth // 2
    yield f"the last {half} layers", f"last:{half}"
    yield f"{half} layers in the middle", f"middle:{half}"
    yield "every second layer", "every:2"


def table(bundle: Path, rows: corpus.Ids) -> Iterator[str]:
    """The lines of the table: perplexity per token, dense and with layers dropped."""
    dense = math.exp(nats_per_token(bundle / "model.onnx", rows))
    yield "| dropped | perplexity | × dense |"
    yield "|---|--:|--:|"
    yield f"| nothing | {dense:.2f} | 1.00 |"
    (survey,) = gp.inspect(gp.load(bundle))
    for name, selection in variants(len(survey.architecture.stacks[0].layers)):
        with tempfile.TemporaryDirectory() as scratch:
            pruned = gp.prune(gp.load(bundle), drop_layers=selection).save(Path(scratch) / "pruned")
            found = math.exp(nats_per_token(pruned / "model.onnx", rows))
        yield f"| {name} | {found:.2f} | {found / dense:.2f} |"


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Perplexity of a demo decoder with layers dropped.")
    parser.add_argument("name", choices=decoders.NAMES)
    parser.add_argument("--data", type=Path, default=corpus.DATA, help=f"the folder that holds {corpus.TEXT}")
    parser.add_argument("--windows", type=int, help="measure on this many windows (all)")
    given = parser.parse_args(arguments)
    try:
        text = corpus.read(given.data).held_out
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    folder = HERE / given.name
    ids = corpus.encode(Tokenizer.from_file(str(folder / "tokenizer.json")), text)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = gp.export(folder, Path(scratch) / "dense")
        for line in table(bundle, corpus.windows(ids).numpy()[: given.windows]):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
