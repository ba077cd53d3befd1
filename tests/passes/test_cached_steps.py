"""After every pass, a prompt and cached steps put out what one full pass over the same tokens does.

Both ways run the pruned files, so that a cache which another layer reads, or a mask of the wrong
length, shows whatever the weights are. One row is padded.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import graphprune as gp
from graphprune.errors import SelectionError
from tests.passes.agreement import NOT_REORDERED, open_session, run
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_feeds import Feeds, make_feeds

TOLERANCE = 1e-4
CHUNKS = (4, 1, 1, 2)  # the prompt, two single tokens, and two at once
TOTAL, SOURCE, PADDED = sum(CHUNKS), 6, 2
FAST = ("gpt2", "gpt_neox", "t5")
FAST_PASSES = ("drop_attention", "drop_layers", "reorder_layers")
PASSES = (*FAST_PASSES, "drop_ffn", "drop_bias", "drop_norm", "drop_activation", "drop_residual")
MORE = ("llama", "gpt_neox", "opt", "t5", "whisper", "marian")
Step = dict[str, object]
ANY = ("attention", "cross_attention", "ffn", "parallel")
# The passes over blocks: their options, and the kinds of blocks that they are for.
OF_BLOCKS: dict[str, list[tuple[dict[str, str], tuple[str, ...]]]] = {
    "drop_attention": [
        ({"which": "self"}, ("attention", "parallel")),
        ({"which": "cross"}, ("cross_attention",)),
    ],
    "drop_ffn": [({}, ("ffn", "parallel"))],
    "drop_activation": [({}, ("ffn", "parallel"))],
    "drop_bias": [({}, ANY)],
    "drop_norm": [({}, ANY)],
    "drop_residual": [({}, ANY)],
}


def decoders() -> Iterator[Entry]:
    """The families with a cache: causal ones, and encoders with decoders."""
    for entry in entries(fast=True):
        if entry.task.endswith("-with-past"):
            yield entry


def steps(folder: Path, name: str) -> Iterator[Step]:
    """The pass on blocks or layers of the decoder, drawn at random; the first layer among them."""
    surveyed = [file.architecture for file in gp.inspect(gp.load(folder))]
    stack = next(s for architecture in surveyed for s in architecture.stacks if s.name == "decoder")
    draw = random.Random(zlib.crc32(f"{folder.name} {name}".encode()))
    count = len(stack.layers)
    if name == "reorder_layers":
        order = [*range(count)]
        while order == sorted(order):
            draw.shuffle(order)
        yield {name: {"order": ",".join(map(str, order)), "stack": "decoder"}}
        return
    for layers in ([0], sorted(draw.sample(range(count), 2))):
        named = [f"decoder.{layer}" for layer in layers]
        if name == "drop_layers":
            yield {name: ",".join(named)}
            continue
        blocks = [block for layer in layers for block in stack.layers[layer].blocks]
        for options, kinds in OF_BLOCKS[name]:
            own = [block.id for block in blocks if block.kind in kinds]
            if own:
                yield {name: {"blocks": ",".join(own), **options}}


class Decoding:
    """The sessions of a pruned folder, and tokens with their mask; row 1 begins with padding if it may."""

    def __init__(self, folder: Path, *, merged: bool) -> None:
        self.sessions = {path.stem: open_session(path) for path in folder.glob("*.onnx")}
        generator = np.random.default_rng(0)
        self.ids = generator.integers(3, 90, (2, TOTAL))
        self.mask = np.ones_like(self.ids)
        self.states: Feeds = {}
        if "encoder_model" in self.sessions:
            self.first, self.step = (
                ("decoder_model_merged",) * 2 if merged else ("decoder_model", "decoder_with_past_model")
            )
            self._encode()
        else:
            self.first = self.step = "model"
            self.mask[1, :PADDED] = 0

    def _encode(self) -> None:
        session = self.sessions["encoder_model"]
        feeds = make_feeds(session, sequence=SOURCE)
        if "attention_mask" in feeds:
            feeds["attention_mask"][1, -PADDED:] = 0
            self.states["encoder_attention_mask"] = feeds["attention_mask"]
        self.states["encoder_hidden_states"] = next(iter(run(session, feeds).values()))

    def call(self, stem: str, start: int, stop: int, cache: Feeds) -> tuple[np.ndarray, Feeds]:
        """Scores of the tokens start:stop, and the cache with them."""
        session = self.sessions[stem]
        feeds = make_feeds(session, sequence=stop - start, past=start, source=self._length())
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, start:stop]
        known = {
            "input_ids": self.ids[:, start:stop],
            "attention_mask": self.mask[:, :stop],
            "position_ids": positions,
        }
        feeds |= {name: value for name, value in {**known, **self.states, **cache}.items() if name in feeds}
        outputs = run(session, feeds)
        presents = {
            n.replace("present", "past_key_values"): v for n, v in outputs.items() if n.startswith("present")
        }
        return outputs["logits"], cache | {name: value for name, value in presents.items() if value.size}

    def _length(self) -> int:
        return self.states["encoder_hidden_states"].shape[1] if self.states else SOURCE

    def takes(self, count: int) -> bool:
        """Whether the file that goes on takes several tokens at once."""
        ids = next(v for v in self.sessions[self.step].get_inputs() if v.name == "input_ids")
        return count == 1 or not isinstance(ids.shape[1], int)

    def gap(self) -> float:
        """How far the scores of all chunks are from those of one pass, over max(1, the largest)."""
        whole, _ = self.call(self.first, 0, TOTAL, {})
        worst, start, cache = 0.0, 0, {}
        for count in CHUNKS:
            if not self.takes(count) and start:
                break
            scores, cache = self.call(self.step if start else self.first, start, start + count, cache)
            told = self.mask[:, start : start + count] == 1
            wanted = whole[:, start : start + count]
            worst = max(worst, float(np.abs(scores - wanted)[told].max()))
            start += count
        return worst / max(1.0, float(np.abs(whole).max()))


def problems(entry: Entry, name: str, folder: Path) -> Iterator[str]:
    source = entry.folder()
    for number, step in enumerate(steps(source, name)):
        try:
            out = gp.prune(gp.load(source), **step).save(folder / str(number), run=False)
        except SelectionError as error:  # the family has no such part
            assert "nothing would change" in str(error), error
            continue
        for merged in (False, True) if (out / "decoder_model_merged.onnx").exists() else (False,):
            gap = Decoding(out, merged=merged).gap()
            if not gap <= TOLERANCE:
                yield f"{step}{', merged' if merged else ''}: off by {gap:.2g}"


def cases() -> Iterator[object]:
    for entry in decoders():
        for name in PASSES:
            if name == "reorder_layers" and entry.family.name in NOT_REORDERED:
                continue
            fast = entry.family.name in FAST and name in FAST_PASSES
            marks = () if fast else (pytest.mark.matrix,)
            yield pytest.param(entry, name, marks=marks, id=f"{entry.family.name}-{name}")


@pytest.mark.parametrize(("entry", "name"), list(cases()))
def test_cached_steps_equal_a_full_pass(entry: Entry, name: str, tmp_path: Path) -> None:
    try:
        entry.folder()
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    assert not [*problems(entry, name, tmp_path)]


@pytest.mark.parametrize("name", ["gpt2", "bart", *(pytest.param(n, marks=pytest.mark.matrix) for n in MORE)])
def test_the_last_cache_of_a_whole_recipe_tells_the_position(name: str, tmp_path: Path) -> None:
    """Of one layer the attention goes, of the others everything: each pass alone would leave a cache."""
    (entry,) = entries(name, fast=True)
    bundle = gp.load(entry.folder())
    stack = next(s for file in gp.inspect(bundle) for s in file.architecture.stacks if s.name == "decoder")
    others = ",".join(f"decoder.{layer.index}" for layer in stack.layers[1:])
    out = gp.prune(bundle, drop_attention="decoder.0", drop_layers=others).save(tmp_path / "out", run=False)
    for merged in (False, True) if (out / "decoder_model_merged.onnx").exists() else (False,):
        decoding = Decoding(out, merged=merged)
        pasts = [v.name for v in decoding.sessions[decoding.step].get_inputs() if "past" in v.name]
        assert {int(past.split(".")[1]) for past in pasts} == {0}
        assert decoding.gap() <= TOLERANCE
