from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphprune as gp
from graphprune.errors import RunError, SelectionError
from graphprune.scoring import Prefixes, Scorer, batches_by_length, open_scorer
from graphprune.session import Session, open_session
from graphprune.settings import Settings
from tests import small, tiny
from tests.test_play import write_tokenizer
from tools.zoo import Entry, families

ONE = Settings(threads=1)
SHAPES = ((2, 5), (3, 4), (1, 9))


def arrays(shape: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((*shape, tiny.WIDTH)).astype(np.float32)}


def sources() -> list[gp.Source]:
    return [gp.Source(arrays(shape, seed), *shape) for seed, shape in enumerate(SHAPES)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny.onnx")


@pytest.fixture
def scorer(path: Path) -> Scorer:
    return open_scorer(path, sources(), ONE)


def expected(dropped: tuple[str, ...]) -> list[np.ndarray]:
    without = dict.fromkeys(range(3), "")
    for id in dropped:
        without[int(id.split(".")[1])] += id
    return [tiny.reference(source.arrays["x"], without=without) for source in sources()]


def assert_right(scorer: Scorer, dropped: tuple[str, ...]) -> None:
    for outputs, wanted in zip(scorer.outputs(dropped), expected(dropped), strict=True):
        assert [*outputs] == ["y"]
        np.testing.assert_allclose(outputs["y"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [0, 1000, 1 << 20])
def test_every_choice_in_any_order(path: Path, memory: int) -> None:
    scorer = open_scorer(path, sources(), ONE, memory=memory)
    choices = [choice for size in range(7) for choice in combinations(scorer.blocks, size)]
    assert len(choices) == 64
    for number in np.random.default_rng(0).permutation(64):
        assert_right(scorer, choices[number])
        assert scorer.prefixes.size <= memory


def test_what_choices_share_runs_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    class Spy:
        def __init__(self, runtime: object) -> None:
            self.runtime = runtime

        def run(self, names: object, given: dict[str, np.ndarray]) -> object:
            begun.append(int(given.get("resume", 0)))
            return self.runtime.run(names, given)  # type: ignore[attr-defined]

    spied = Scorer(
        Session(**vars(scorer.session) | {"runtime": Spy(scorer.session.runtime)}),
        scorer.gates, scorer.feeds[:1], scorer.prefixes,
    )  # fmt: skip
    one, two, _, four, five, six = scorer.blocks
    for dropped in ((), (one,), (four,), (six,), (four, six), (two, six), (two, five)):
        [*spied.outputs(dropped)]
    assert begun == [0, 0, 3, 5, 5, 1, 4]


def test_what_was_not_used_longest_goes_first() -> None:
    prefixes = Prefixes(limit=100)
    first, second, third = ((batch, 1, frozenset[int]()) for batch in range(3))
    for prefix in (first, second):
        prefixes.keep(prefix, np.zeros(50, np.uint8))
    assert prefixes.find(first) is not None
    prefixes.keep(third, np.zeros(40, np.uint8))
    assert prefixes.find(second) is None
    assert prefixes.find(first) is not None and prefixes.find(third) is not None
    assert prefixes.size == 90
    prefixes.keep(second, np.zeros(101, np.uint8))
    assert prefixes.find(second) is None and prefixes.size == 90


def test_the_same_as_pruning(tmp_path: Path) -> None:
    folder = Entry(families()["bert"], "optimum", "feature-extraction").folder()
    random = np.random.default_rng(0)
    given = []
    for batch, sequence in ((3, 6), (2, 9)):
        mask = (np.arange(sequence) < random.integers(2, sequence, (batch, 1))).astype(np.int64)
        ids = random.integers(3, 99, (batch, sequence))
        given.append(gp.Source({"input_ids": ids, "attention_mask": mask}, batch, sequence))
    scorer = open_scorer(folder / "model.onnx", given, ONE)
    for number, dropped in enumerate(((), ("encoder.1.ffn",), ("encoder.0.attention", "encoder.2.ffn"))):
        path = folder / "model.onnx"
        if dropped:
            drops = {
                "drop_ffn": [id for id in dropped if id.endswith("ffn")],
                "drop_attention": [id for id in dropped if id.endswith("attention")],
            }
            pruned = gp.prune(gp.load(path), **{name: ids for name, ids in drops.items() if ids})
            path = pruned.bundle.save(tmp_path / f"{number}.onnx")
        session = open_session(path, "pruned", ONE)
        for outputs, feeds in zip(scorer.outputs(dropped), scorer.feeds, strict=True):
            for name, wanted in session.run(feeds).items():
                np.testing.assert_allclose(outputs[name], wanted, atol=1e-5)


def test_a_decoder_puts_out_no_caches() -> None:
    folder = Entry(families()["gpt2"], "optimum", "text-generation-with-past").folder()
    scorer = open_scorer(folder / "model.onnx", [gp.Source(batch=2, sequence=5)], ONE)
    (dense,) = scorer.outputs()
    assert [*dense] == ["logits"] and dense["logits"].shape[:2] == (2, 5)
    session = open_session(folder / "model.onnx", "dense", ONE)
    np.testing.assert_allclose(dense["logits"], session.run(scorer.feeds[0])["logits"], atol=1e-5)


def test_weights_beside_the_model(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    (tmp_path / "elsewhere").mkdir()
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(model, tmp_path / "elsewhere" / "model.onnx", **options)
    assert_right(open_scorer(tmp_path / "elsewhere" / "model.onnx", sources(), ONE), ("encoder.1.ffn",))


def test_blocks_that_cannot_be_left_out(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"encoder\.9\.ffn cannot be left out.*encoder\.0\.attention"):
        scorer.outputs({"encoder.9.ffn"})
    path = tmp_path / "none.onnx"
    text = '<ir_version: 9, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(RunError, match="no block can be left out"):
        open_scorer(path, [], ONE)


def test_one_model_at_a_time(tmp_path: Path) -> None:
    for name in ("encoder_model", "decoder_model"):
        small.write(tmp_path / f"{name}.onnx")
    with pytest.raises(RunError, match=r"one is scored at a time.*decoder_model\.onnx"):
        open_scorer(tmp_path, [], ONE)


def test_texts_of_like_length_stand_together(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    texts = ["one two three four", "one", "two three", "four", "one two three"]
    batches, order = batches_by_length(tmp_path, texts, 2)
    assert [*order] == [1, 3, 2, 4, 0]
    assert [batch.arrays["attention_mask"].sum(1).tolist() for batch in batches] == [[1, 1], [2, 3], [4]]
    assert [batch.sequence for batch in batches] == [1, 3, 4]
    for texts_, size in (([], 2), (texts, 0)):
        with pytest.raises(RunError, match="one or more in a batch"):
            batches_by_length(tmp_path, texts_, size)
