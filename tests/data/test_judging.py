"""Scores of outputs: against scipy, torch and sums by hand; what is said of unsound ones."""

from __future__ import annotations

import gc
import math
import pickle
import tempfile
import tracemalloc
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch.nn import functional

from graphprune.data import questions
from graphprune.data.dataset import Batch, Data
from graphprune.data.judging import Judge, open_judge
from graphprune.data.metrics import Metric, read_metric
from graphprune.data.texts import Texts
from graphprune.errors import GraphpruneError, RunError, SelectionError
from graphprune.healing.spool import Spool
from graphprune.play import Source
from tests.data import bundles

Outputs = Mapping[str, NDArray[Any]]
RANDOM = np.random.default_rng(0)


def data_of(count: int, metric: str | None, labels: Any = None, columns: int = 1) -> Data:
    chosen = read_metric(metric) if metric else None
    texts = Texts((("a",) * count,) * columns)
    return Data("data", texts, np.arange(count), None if labels is None else np.array(labels), (), chosen)


def batches_of(lengths: list[list[int]], rows: list[list[int]], ids: int = 20) -> list[Batch]:
    """Batches of rows with as many tokens as `lengths` says, the rest of them padding."""
    made = []
    for row_lengths, numbers in zip(lengths, rows, strict=True):
        longest = max(row_lengths)
        mask = np.array([[1] * n + [0] * (longest - n) for n in row_lengths])
        arrays = {"input_ids": RANDOM.integers(0, ids, mask.shape), "attention_mask": mask}
        made.append(Batch(Source(arrays, *mask.shape), np.array(numbers)))
    return made


# Rows 4, 0 | 2, 1, 3 of 2, 5 | 4, 3, 1 tokens.
BATCHES = batches_of([[2, 5], [4, 3, 1]], [[4, 0], [2, 1, 3]])
TOKENS = 15


def noise(width: int, name: str, seed: int = 1) -> list[dict[str, NDArray[np.float32]]]:
    random = np.random.default_rng(seed)
    shapes = [batch.source.arrays["input_ids"].shape for batch in BATCHES]
    return [{name: random.standard_normal((*shape, width)).astype(np.float32)} for shape in shapes]


def spoiled(outputs: list[dict[str, NDArray[np.float32]]], value: float = np.nan) -> list[Outputs]:
    """The same with `value` at all padding."""
    found = []
    for batch, arrays in zip(BATCHES, outputs, strict=True):
        mask = batch.source.arrays["attention_mask"].astype(bool)
        found.append({name: np.where(mask[..., None], array, value) for name, array in arrays.items()})
    return found


def kept(outputs: Iterable[Outputs], name: str) -> torch.Tensor:
    """What is no padding, [tokens, width]."""
    masks = [batch.source.arrays["attention_mask"].astype(bool) for batch in BATCHES]
    return torch.from_numpy(
        np.concatenate([given[name][mask] for given, mask in zip(outputs, masks, strict=True)]).astype(
            np.float64
        )
    )


DENSE, OTHER = noise(7, "logits"), noise(7, "logits", 2)


@pytest.mark.parametrize("asked", ["kl", None])
def test_kl(asked: str | None) -> None:
    judge = open_judge(data_of(5, asked), BATCHES, spoiled(DENSE))
    assert (judge.metric, judge.better, judge.dense) == ("kl", "lower", 0)
    one, two = (kept(outputs, "logits").log_softmax(-1) for outputs in (DENSE, OTHER))
    expected = float(functional.kl_div(two, one, log_target=True, reduction="batchmean"))
    score = judge.score(spoiled(OTHER, np.inf))
    assert score == pytest.approx(expected, rel=1e-9)
    assert judge.score(iter(DENSE)) == pytest.approx(0, abs=1e-12)
    assert judge.kept(score) == pytest.approx(math.exp(-expected))


def test_top1() -> None:
    judge = open_judge(data_of(5, "top1"), BATCHES, spoiled(DENSE))
    one, two = (kept(outputs, "logits").argmax(-1) for outputs in (DENSE, OTHER))
    assert (judge.better, judge.dense, judge.score(spoiled(DENSE))) == ("higher", 1, 1)
    assert judge.score(OTHER) == judge.kept(judge.score(OTHER)) == float((one == two).double().mean())


@pytest.mark.parametrize("asked", ["cosine", "cosine:states", None])
def test_cosine(asked: str | None) -> None:
    dense, other = noise(7, "states"), noise(7, "states", 2)
    judge = open_judge(data_of(5, asked), BATCHES, spoiled(dense))
    expected = functional.cosine_similarity(kept(dense, "states"), kept(other, "states")).mean()
    assert (judge.metric, judge.better, judge.dense) == ("cosine", "higher", 1)
    assert judge.score(spoiled(other)) == pytest.approx(float(expected), rel=1e-9)


def test_perplexity() -> None:
    logits = noise(20, "logits")
    judge = open_judge(data_of(5, "perplexity"), BATCHES, spoiled(logits))
    losses = []
    for batch, outputs in zip(BATCHES, logits, strict=True):
        for place, ids in enumerate(batch.source.arrays["input_ids"]):
            count = int(batch.source.arrays["attention_mask"][place].sum())
            scores = torch.from_numpy(outputs["logits"][place, : count - 1]).double()
            losses.append(functional.cross_entropy(scores, torch.from_numpy(ids[1:count]), reduction="none"))
    expected = float(torch.cat(losses).mean().exp())
    assert len(torch.cat(losses)) == TOKENS - 5
    assert judge.dense == pytest.approx(expected, rel=1e-9)
    assert (judge.better, judge.kept(2 * judge.dense)) == ("lower", 0.5)


@pytest.mark.parametrize("masked", [True, False])
def test_spearman_of_pooled_tokens(masked: bool) -> None:
    batches = batches_of([[2, 5], [4, 3, 1], [4, 4, 4]], [[4, 0], [2, 1, 3], [5, 6, 7]])
    labels = [0.5, 3, 1, 2]
    states, vectors = [], np.zeros((8, 6))
    for batch in batches:
        mask = batch.source.arrays["attention_mask"].astype(bool)
        values = RANDOM.standard_normal((*mask.shape, 6))
        for place, row in enumerate(batch.rows):
            vectors[row] = values[place, mask[place]].mean(0) if masked else values[place].mean(0)
        states.append({"pooler_output": values[:, 0], "last_hidden_state": values.astype(np.float32)})
    if not masked:
        batches = [Batch(Source({}), batch.rows) for batch in batches]
    one, two = vectors[0::2], vectors[1::2]
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    judge = open_judge(data_of(4, "spearman", labels, 2), batches, states)
    assert judge.dense == pytest.approx(spearmanr(cosines, labels).statistic, abs=1e-12)
    assert (judge.metric, judge.better) == ("spearman", "higher")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("spearman", ["vector"]),
        ("spearman:vector", ["states", "vector"]),
        ("spearman", ["sentence_embedding", "states"]),
    ],
)
def test_spearman_of_vectors(asked: str, names: list[str]) -> None:
    vectors = RANDOM.standard_normal((8, 5))
    rows = np.array([6, 1, 3, 0, 2, 7, 5, 4])
    outputs = {n: RANDOM.standard_normal((8, 3, 5)) if n == "states" else vectors[rows] for n in names}
    labels = [1, 0, 2, 5]
    judge = open_judge(data_of(4, asked, labels, 2), [Batch(Source({}), rows)], [outputs])
    cosines = functional.cosine_similarity(*(torch.from_numpy(vectors[at::2]) for at in (0, 1)))
    assert judge.dense == pytest.approx(spearmanr(cosines.numpy(), labels).statistic, abs=1e-12)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_spearman_of_a_number(shape: tuple[int, ...]) -> None:
    outputs = [{"logits": np.array([3.0, 1, 4, 1.5]).reshape(shape)}]
    batch = Batch(Source({}), np.array([2, 0, 3, 1]))
    judge = open_judge(data_of(4, "spearman", [5, 1, 4, 2], 2), [batch], outputs)
    assert judge.dense == pytest.approx(spearmanr([1, 1.5, 3, 4], [5, 1, 4, 2]).statistic)


def test_accuracy() -> None:
    logits = RANDOM.standard_normal((5, 3))
    labels = np.array([0, 2, 1, 1, 0])
    outputs = [{"logits": logits[batch.rows]} for batch in BATCHES]
    judge = open_judge(data_of(5, "accuracy", labels), BATCHES, outputs)
    assert judge.dense == float((logits.argmax(1) == labels).mean())
    right = [{"logits": np.eye(3)[labels[batch.rows]]} for batch in BATCHES]
    assert (judge.better, judge.score(right)) == ("higher", 1)
    assert judge.kept(1) == (1 / judge.dense if judge.dense else 1)


def test_rows_that_fill_up_a_batch_count_once() -> None:
    batches = [Batch(Source({}), np.array([0, 1])), Batch(Source({}), np.array([2, 2]))]
    labels = [1, 1, 1]
    right, wrong = [0.0, 1.0], [1.0, 0.0]
    outputs = [{"logits": np.array([right, right])}, {"logits": np.array([wrong, wrong])}]
    assert open_judge(data_of(3, "accuracy", labels), batches, outputs).dense == pytest.approx(2 / 3)


@given(st.permutations(range(5)), st.lists(st.integers(1, 4), min_size=1, max_size=3))
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter(order: list[int], cuts: list[int]) -> None:
    logits, labels = np.random.default_rng(3).standard_normal((5, 4)), [0, 1, 2, 3, 0]
    parts = [np.array(part) for part in np.split(np.array(order), sorted(set(cuts)))]
    batches = [Batch(Source({}), part) for part in parts]
    judge = open_judge(data_of(5, "accuracy", labels), batches, ({"logits": logits[part]} for part in parts))
    assert judge.dense == float((logits.argmax(1) == labels).mean())


OWN = """
def parts(outputs, labels):
    assert outputs["logits"].shape == (5, 5, 7) and outputs["attention_mask"].sum() == 15, outputs
    return float(abs(outputs["logits"]).sum())

def shame(outputs, labels):
    return float(labels.sum())

shame.better = "lower"

def broken(outputs, labels):
    raise KeyError("no such thing")

def text(outputs, labels):
    return "good"

number = 3

def best(outputs, labels):
    return 1.0

best.better = "best"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder; its name."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


def test_own_function(own: str) -> None:
    judge = open_judge(data_of(5, f"{own}:parts"), BATCHES, DENSE)
    assert judge.dense == pytest.approx(sum(float(abs(part["logits"]).sum()) for part in DENSE), rel=1e-6)
    lower = open_judge(data_of(5, f"{own}:shame", [1, 2, 3, 4, 5]), BATCHES, DENSE)
    assert (lower.better, lower.dense, lower.kept(30)) == ("lower", 15, 0.5)
    assert math.isnan(lower.score([{"logits": np.full_like(one["logits"], np.nan)} for one in DENSE]))
    assert pickle.loads(pickle.dumps(read_metric(f"{own}:shame"))).better == "lower"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("broken", "failed: KeyError: 'no such thing'"),
        ("text", "failed: ValueError: could not convert"),
        ("missing", "cannot be imported: AttributeError"),
        ("number", "is no function, but int"),
        ("best", "its attribute `better` is 'best'"),
    ],
)
def test_own_function_that_fails(own: str, name: str, told: str) -> None:
    with pytest.raises(RunError, match=told):
        open_judge(data_of(5, f"{own}:{name}"), BATCHES, DENSE)


def test_no_module() -> None:
    with pytest.raises(RunError, match="cannot be imported: ModuleNotFoundError"):
        read_metric("no_such_module_anywhere:f")


@pytest.mark.parametrize("text", ["", "bleu", "kl:", ":f", "module:"])
def test_no_metric(text: str) -> None:
    with pytest.raises(SelectionError, match="there is no metric"):
        read_metric(text)


def test_names() -> None:
    assert read_metric("kl:scores") == Metric("kl", "lower", "scores")


PAIRS = [Batch(Source({}), np.arange(6))]
SAME = [{"vector": np.ones((6, 3))}]


@pytest.mark.parametrize("asked", ["kl", "top1", "cosine", "perplexity"])
def test_a_candidate_that_is_not_finite(asked: str) -> None:
    logits = noise(20, "logits")
    judge = open_judge(data_of(5, asked), BATCHES, logits)
    for value in (np.nan, np.inf):
        bad = [{name: array.copy() for name, array in outputs.items()} for outputs in logits]
        bad[1]["logits"][0, 1, 2] = value
        score = judge.score(bad)
        assert math.isnan(score) and judge.kept(score) == 0
        with pytest.raises(RunError, match="not sound on data: logits holds NaN or infinity"):
            open_judge(data_of(5, asked), BATCHES, bad)


def test_a_candidate_that_is_constant() -> None:
    data = data_of(3, "spearman", [1, 2, 3], 2)
    judge = open_judge(data, PAIRS, [{"vector": RANDOM.standard_normal((6, 3))}])
    assert math.isnan(judge.score(SAME))
    with pytest.raises(
        RunError, match="spearman says nothing of the model itself on data: it puts out the same"
    ):
        open_judge(data, PAIRS, SAME)


SHORT = DENSE[:1]
WIDE = [{"logits": RANDOM.standard_normal((len(b.rows), 1))} for b in BATCHES]
ROWS = [{"logits": RANDOM.standard_normal((len(b.rows), 3))} for b in BATCHES]
NAMED = [{"a": one["logits"], "b": one["logits"]} for one in ROWS]


@pytest.mark.parametrize(
    ("data", "outputs", "told"),
    [
        (data_of(5, "kl"), SHORT, "outputs for 1 batches, and there are 2"),
        (data_of(5, "kl"), DENSE * 2, "outputs for more than the 2 batches"),
        (data_of(5, "kl"), WIDE, "kl compares scores of several classes"),
        (data_of(5, "kl:scores"), DENSE, "there is no output scores: name one of logits"),
        (data_of(5, "kl"), NAMED, "puts out a, b: name one of them as kl:a"),
        (data_of(5, "accuracy", [0, 1, 2, 3, 0]), ROWS, "the label 3 is none of the model's 3 classes"),
        (data_of(5, "accuracy", [0, 1, -1, 2, 0]), ROWS, "the label -1 is none"),
        (data_of(5, "accuracy", [0, 1]), ROWS, "there are 2 labels, and rows up to number"),
        (data_of(5, "accuracy", [0] * 5), DENSE, r"logits has the shape \[2, 5, 7\]"),
        (data_of(5, "accuracy"), ROWS, "accuracy needs labels"),
        (data_of(5, "spearman", [1, 2, 3, 4, 5]), ROWS, "rows for each of the 5 labels, and there are 5"),
        (data_of(5, "perplexity"), ROWS, r"logits is \[2, 3\], and input_ids are \[2, 5\]"),
        (data_of(5, "kl"), [{"logits": np.zeros((3, 3))}] * 2, "for a batch of 2 rows"),
    ],
)  # fmt: skip
def test_what_does_not_fit(data: Data, outputs: list[Outputs], told: str) -> None:
    with pytest.raises(GraphpruneError, match=told):
        open_judge(data, BATCHES, outputs)


def test_other_outputs_than_the_dense_ones() -> None:
    judge = open_judge(data_of(5, "kl"), BATCHES, DENSE)
    with pytest.raises(RunError, match="and the dense model's are"):
        judge.score(noise(6, "logits"))
    with pytest.raises(RunError, match="no batch to judge by"):
        open_judge(data_of(5, "kl"), [], [])


@pytest.mark.parametrize(
    ("better", "dense", "score", "kept"),
    [
        ("higher", 0.8, 0.4, 0.5),
        ("higher", 0.5, 1.0, 2.0),
        ("higher", -0.1, -0.2, 0.0),
        ("higher", 0.0, 0.1, 1.0),
        ("lower", 2.0, 4.0, 0.5),
        ("lower", 0.0, 0.0, 1.0),
        ("lower", 0.0, 0.5, 0.0),
        ("higher", 0.8, math.nan, 0.0),
    ],
)
def test_kept(better: Any, dense: float, score: float, kept: float) -> None:
    judge = open_judge(data_of(5, "top1"), BATCHES, DENSE)
    assert Judge("own", better, dense, judge.questions).kept(score) == kept


def test_a_classifier_end_to_end(tmp_path: Path) -> None:
    path = bundles.write(tmp_path, "classes", config={"label2id": {"no": 0, "maybe": 1, "yes": 2}})
    texts = (("a b", "c", "the cat", "sat"), ("d", "e f g", "dog", "mat on red"))
    labels = ["no", "yes", "maybe", "yes"]
    encoder, hits = bundles.tokenizer(), 0
    for one, two, label in zip(*texts, labels, strict=True):
        encoded = encoder.encode(one, two)
        weights = np.array(encoded.type_ids) + 1
        logits = (weights[:, None] * bundles.TABLE[encoded.ids]).sum(0) @ bundles.head("classes")
        hits += int(logits.argmax() == ["no", "maybe", "yes"].index(label))
    data = Data("d", Texts(texts), np.arange(4), np.array(labels), (), read_metric("accuracy"))
    batches = data.batches(path, 3)
    assert open_judge(data, batches, bundles.outputs(path, batches)).dense == hits / 4


def test_a_decoder_end_to_end(tmp_path: Path) -> None:
    path = bundles.write(tmp_path, "bigrams", special=False)
    data = Data("d", Texts((("a b c d e f g",),)), np.arange(1), None, (), read_metric("perplexity"), 3)
    batches = data.batches(path)
    logits = torch.from_numpy(bundles.TABLE @ bundles.head("bigrams"))
    said = [(4, 5), (5, 6), (7, 8), (8, 9)]
    losses = [functional.cross_entropy(logits[a], torch.tensor(b)) for a, b in said]
    expected = float(torch.stack(losses).mean().exp())
    judge = open_judge(data, batches, bundles.outputs(path, batches))
    assert judge.dense == pytest.approx(expected, rel=1e-5)


def test_what_is_remembered_lies_on_the_disk_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spools: list[Spool] = []
    monkeypatch.setattr(questions, "Spool", lambda: spools.append(Spool(0)) or spools[-1])
    judge = open_judge(data_of(5, "kl"), BATCHES, DENSE)
    assert sum(spool._end for spool in spools) >= TOKENS * 7 * 4
    spools.clear()
    assert judge.score(OTHER) > 0
    del judge
    gc.collect()
    assert not [*tmp_path.iterdir()]
    bad = [DENSE[0], {"logits": np.full_like(DENSE[1]["logits"], np.nan)}]
    with pytest.raises(RunError):
        open_judge(data_of(5, "kl"), BATCHES, bad)
    gc.collect()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("asked", ["kl", "top1", "cosine", "perplexity"])
def test_memory_does_not_grow_with_the_data(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "Spool", partial(Spool, 0))

    def peak(count: int) -> int:
        batches = [
            Batch(Source({"input_ids": np.ones((4, 8), np.int64)}), np.arange(4 * n, 4 * n + 4))
            for n in range(count)
        ]
        tracemalloc.start()
        outputs = ({"logits": np.full((4, 8, 2000), n, np.float32)} for n in range(count))
        judge = open_judge(data_of(4 * count, asked), batches, outputs)
        judge.score({"logits": np.full((4, 8, 2000), -n, np.float32)} for n in range(count))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(30) < 1.2 * peak(3)
