"""Examples split, drawn and put into batches: against sets, and against the tokenizer itself."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphprune as gp
from graphprune.data.dataset import Batch, Batches, Data, read_data
from graphprune.data.tables import lines_of
from graphprune.data.texts import Texts
from graphprune.errors import LoadError, RunError, SelectionError
from tests.data import bundles


def of_texts(*columns: tuple[str, ...], labels: list[Any] | None = None, **options: Any) -> Data:
    chosen = np.arange(len(columns[0]))
    found = None if labels is None else np.array(labels)
    return Data("data", Texts(columns), chosen, found, **options)


def metric(name: str) -> Any:
    from graphprune.data.metrics import read_metric

    return read_metric(name)


@given(st.integers(2, 700), st.floats(0.001, 0.999), st.integers(0, 9), st.booleans())
@settings(deadline=None)
def test_parts_are_disjoint(count: int, share: float, seed: int, prose: bool) -> None:
    data = Data("d", Texts((("x",) * count,), prose=prose), np.arange(count), np.arange(count) * 2)
    parts = data.split(share, seed)
    numbers = [part.chosen.tolist() for part in parts]
    assert sorted(numbers[0] + numbers[1]) == list(range(count))
    assert abs(len(numbers[0]) - share * count) <= 1 and min(map(len, numbers)) >= 1
    for part in parts:
        assert part.labels is not None and (part.labels == 2 * part.chosen).all()
        assert (np.diff(part.chosen) > 0).all()
    again = data.split(share, seed)
    assert [part.chosen.tolist() for part in again] == numbers
    inner = parts[0].take(3, seed)
    assert set(inner.chosen) <= set(numbers[0]) and inner.examples == min(3, len(numbers[0]))


def test_prose_is_drawn_in_runs() -> None:
    prose = lines_of("\n".join(f"line {number}" for number in range(4096)) + "\n\n", "d")
    data = Data("d", prose, np.arange(4096))
    taken = data.take(160, seed=3)
    assert taken.examples == 160 and (np.diff(taken.chosen) > 1).sum() < 10  # runs of 16
    plain = Data("d", lines_of("\n".join("x" * 4096), "d"), np.arange(4096))
    assert (np.diff(plain.take(160, seed=3).chosen) > 1).sum() > 100


def test_what_cannot_be_split() -> None:
    for data, share in ((of_texts(("a",)), 0.5), (of_texts(("a", "b")), 1.0)):
        with pytest.raises(SelectionError, match="cannot be split"):
            data.split(share)


def test_rows_as_the_tokenizer_makes_them(tmp_path: Path) -> None:
    texts = ("the cat sat", "a", "the big red dog ran on the mat", "b c")
    batches = of_texts(texts).batches(bundles.write(tmp_path, "states"), 3)
    encoder = bundles.tokenizer()
    assert isinstance(batches, Batches) and len(batches) == 2
    assert [batch.rows.tolist() for batch in batches] == [[1, 3, 0], [2]]
    for batch in batches:
        source = batch.source
        assert (source.batch, source.sequence) == source.arrays["input_ids"].shape
        for place, row in enumerate(batch.rows):
            ids = encoder.encode(texts[row]).ids
            filled = [*ids, *[0] * (source.sequence - len(ids))]
            assert source.arrays["input_ids"][place].tolist() == filled
            assert source.arrays["attention_mask"][place].sum() == len(ids)
    assert [batch.rows.tolist() for batch in batches[1:]] == [[2]]


def test_texts_are_cut(tmp_path: Path) -> None:
    data = of_texts(("a b c d e f g h",), length=5)
    (batch,) = data.batches(bundles.write(tmp_path, "states"))
    assert batch.source.arrays["input_ids"].tolist() == [[1, 4, 5, 6, 2]]


def test_no_more_tokens_than_positions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = bundles.write(tmp_path, "states", config={"max_position_embeddings": 4})
    (batch,) = of_texts(("a b c d e f",)).batches(path)
    assert batch.source.sequence == 4
    assert "cut at 4 tokens, not 128" in caplog.text


@pytest.mark.parametrize(
    ("kind", "asked", "rows", "chosen"),
    [
        ("states", "spearman", 4, "spearman"),
        ("states", None, 4, "cosine"),
        ("number", "spearman", 2, "spearman"),
        ("classes", "accuracy", 2, "accuracy"),
        ("classes", None, 2, "kl"),
        ("masked", None, 2, "kl"),
        ("classes", "top1", 2, "top1"),
    ],
)
def test_pairs_are_one_input_or_two_rows(
    tmp_path: Path, kind: str, asked: str | None, rows: int, chosen: str
) -> None:
    data = of_texts(("a b", "c"), ("d", "e f g"), labels=[1, 2], metric=asked and metric(asked))
    batches = data.batches(bundles.write(tmp_path, kind), 1)
    found = {int(batch.rows[0]): batch.source.arrays for batch in batches}
    assert sorted(found) == list(range(rows)) and batches[0].task is not None
    assert batches[0].task.metric.name == chosen
    together, apart = ([1, 4, 5, 2, 7, 2], [0, 0, 0, 0, 1, 1]), ([1, 4, 5, 2], [0, 0, 0, 0])
    expected = together if rows == 2 else apart
    assert (found[0]["input_ids"][0].tolist(), found[0]["token_type_ids"][0].tolist()) == expected
    if rows == 4:
        assert found[1]["input_ids"][0].tolist() == [1, 7, 2]
        assert found[3]["input_ids"][0].tolist() == [1, 8, 9, 10, 2]


@pytest.mark.parametrize("asked", [None, "perplexity", "top1", "cosine"])
def test_a_decoder_reads_windows(tmp_path: Path, asked: str | None) -> None:
    path = bundles.write(tmp_path, "bigrams", special=False)
    data = of_texts(("a b c", "d e", "f g h"), length=3, metric=asked and metric(asked))
    (batch,) = data.batches(path)
    assert batch.source.arrays["input_ids"].tolist() == [[4, 5, 6], [7, 8, 9]]
    assert batch.source.arrays["attention_mask"].all() and batch.rows.tolist() == [0, 1]
    assert batch.task is not None and batch.task.metric.name == (asked or "kl")


def test_windows_begin_as_texts_do(tmp_path: Path) -> None:
    path = bundles.write(tmp_path, "bigrams")
    (batch,) = of_texts(("a b c", "d e f g h"), length=3).batches(path)
    assert batch.source.arrays["input_ids"].tolist() == [[1, 4, 5], [1, 6, 7], [1, 8, 9], [1, 10, 11]]


def test_windows_of_a_file_keep_its_line_ends(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    path = bundles.write(tmp_path / "m", "bigrams", special=False)
    lines = bundles.tokenizer(special=False)
    lines.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+"), "isolated")
    lines.save(str(path / "tokenizer.json"))
    (tmp_path / "d.txt").write_text("a b\n\nc\n")
    (batch,) = read_data(tmp_path / "d.txt", length=7).batches(path)
    unknown = 3  # spaces and line ends
    assert batch.source.arrays["input_ids"].tolist() == [[4, unknown, 5, unknown, unknown, 6, unknown]]


@pytest.mark.parametrize("length", [9, 100])
def test_too_little_text_for_a_window(tmp_path: Path, length: int) -> None:
    path = bundles.write(tmp_path, "bigrams", special=False)
    with pytest.raises(RunError, match="a text of 8 tokens gives no window of"):
        of_texts(("a b c d e f g h",), length=length).batches(path)


@pytest.mark.parametrize("kind", ["masked", "classes", "states"])
def test_perplexity_is_for_models_that_make_text(tmp_path: Path, kind: str) -> None:
    data = of_texts(("a b c d",), metric=metric("perplexity"))
    with pytest.raises(RunError, match="makes no text, so it has no perplexity"):
        data.batches(bundles.write(tmp_path, kind))


def test_a_file_of_one_shape(tmp_path: Path) -> None:
    import onnx

    path = bundles.write(tmp_path, "states")
    model = onnx.load(path / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate((2, 7)):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, path / "model.onnx")
    batches = of_texts(("a", "b c", "d")).batches(path)
    assert [batch.source.arrays["input_ids"].shape for batch in batches] == [(2, 7), (2, 7)]
    assert [batch.rows.tolist() for batch in batches] == [[0, 2], [1, 1]]
    assert len(list(bundles.outputs(path, batches))) == 2


@pytest.mark.parametrize(
    ("data", "kind", "told"),
    [
        (of_texts(("a",) * 3, labels=[1, 2, 3], metric=metric("spearman")), "states", "the two texts of a"),
        (of_texts(("a",) * 3, labels=["x", "no", "z"], metric=metric("accuracy")), "classes", "no class x"),
        (of_texts(("a", "b"), labels=[1.5, 2], metric=metric("accuracy")), "classes", "numbers, not 1.5"),
        (of_texts(("a",), ("b",), ("c",), metric=metric("kl")), "classes", "takes two texts together"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path: Path, data: Data, kind: str, told: str) -> None:
    path = bundles.write(tmp_path, kind, config={"label2id": {"No": 0, "yes": 1}})
    with pytest.raises((SelectionError, RunError), match=told):
        data.batches(path)
    with pytest.raises(SelectionError, match="batches of 0 rows"):
        data.batches(path, 0)


def test_names_of_classes(tmp_path: Path) -> None:
    path = bundles.write(tmp_path, "classes", config={"label2id": {"No": 2, "yes": 1}})
    data = of_texts(("a", "b", "c"), labels=["yes", "no", "No"], metric=metric("accuracy"))
    labels = data.batches(path)[0].labels
    assert labels is not None and labels.tolist() == [1, 2, 2]
    (path / "config.json").unlink()
    with pytest.raises(SelectionError, match=r"config\.json names no classes"):
        data.batches(path)


def test_no_tokenizer(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "in", "states")
    (path / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"no tokenizer\.json"):
        of_texts(("a",)).batches(path)


def test_data_goes_to_other_processes(tmp_path: Path) -> None:
    path = bundles.write(tmp_path, "classes")
    data = of_texts(("a", "b c"), labels=[0, 1], metric=metric("accuracy"))
    copy = pickle.loads(pickle.dumps(data))
    batches = pickle.loads(pickle.dumps([*copy.batches(path)]))
    assert isinstance(batches[0], Batch) and batches[0].rows.tolist() == [0, 1]


def test_public() -> None:
    assert gp.read_data is read_data and gp.Data is Data


def test_fingerprints_tell_data_apart(tmp_path: Path) -> None:
    def read(content: str, name: str = "d.csv", **options: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return read_data(path, **{"label": 1, **options}).fingerprint

    base = "a b,1\nc d,2\ne f,3\ng h,4\n"
    known = read(base)
    assert read(base, "moved/e.csv") == known == read(base)
    others = [
        read(base.replace("c d", "c e")),
        read(base.replace("2", "0")),
        read(base, label=None),
        read(base, metric="accuracy"),
        read(base, metric="accuracy:logits"),
        read(base, length=7),
        read(base, limit=2, seed=1),
    ]
    assert len({known, *others}) == 1 + len(others)


def test_fingerprints_of_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(6))
    before = read_data(tmp_path).fingerprint
    np.savez(tmp_path / "d.npz", x=np.arange(1, 7))
    assert read_data(tmp_path).fingerprint != before
