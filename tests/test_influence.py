from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from graphprune.bundle import load
from graphprune.influence import Influences, block_influence
from graphprune.play import Source, play
from graphprune.session import open_sessions
from graphprune.settings import Settings
from tests import graphs, tiny
from tests.oracle import Oracle
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_dialects import DIALECTS, HALF
from tools.zoo_feeds import Feeds

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
SOURCE = Source(batch=2, sequence=6)
ONE = Settings(threads=1)


def influence(before: Any, after: Any) -> float:
    """1 − cos along the last axis, the mean over all else."""
    one, two = (np.asarray(array, np.float64) for array in (before, after))
    cosines = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
    return float(1 - cosines.mean())


def test_by_hand(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 5, tiny.WIDTH), dtype=np.float32)
    found = block_influence(tiny.save(tmp_path / "m.onnx"), Source({"x": x}))
    streams = [x]
    for layer in range(3):
        cut = dict.fromkeys(range(layer, 3), "attention ffn")
        streams.append(tiny.reference(x, without=cut | {layer: "ffn"}))
        streams.append(tiny.reference(x, without={k: v for k, v in cut.items() if k != layer}))
    pairs = pairwise(streams)
    ids = [f"encoder.{layer}.{kind}" for layer in range(3) for kind in ("attention", "ffn")]
    assert found.by_block == pytest.approx(
        {name: influence(*pair) for name, pair in zip(ids, pairs, strict=True)}, abs=1e-6
    )
    layers = {f"encoder.{i}": influence(streams[2 * i], streams[2 * i + 2]) for i in range(3)}
    assert found.by_layer == pytest.approx(layers, abs=1e-6)
    assert {one.positions for one in (*found.blocks, *found.layers)} == {10}


def streams_of(entry: Entry, feeds: Feeds) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The stream before and after every block, by hooks on torch modules: (stack, layer, block) → pair."""
    oracle = Oracle(entry)
    given: dict[str, torch.Tensor] = {}
    put: dict[str, torch.Tensor] = {}

    def hook(path: str) -> Any:
        def keep(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            given[path] = args[0] if args else kwargs.get("hidden_states")
            put[path] = out[0] if isinstance(out, tuple) else out

        return keep

    layers = [(s, i, layer) for s in entry.stacks("model") for i, layer in enumerate(s.layers)]
    for _, _, layer in layers:
        for path in (layer.path, *_outputs(layer)):
            oracle.model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True)
    oracle.run("model", feeds)
    pairs = {}
    for stack, i, layer in layers:
        stream = given[layer.path]
        for block, outputs in zip(layer.blocks, _by_block(layer), strict=True):
            before = stream
            after = put[outputs[0]] if block.placement == "post" else sum((put[o] for o in outputs), before)
            stream = after
            pairs[f"{stack.name}.{i}.{block.kind}"] = before, after
    return pairs


def _by_block(layer: Any) -> list[list[str]]:
    """For every block the modules whose outputs are added to the stream, or its norm where that is post."""
    found = []
    for block in layer.blocks:
        names = [block.norm] if block.placement == "post" else [block.branch_norm]
        found.append(
            [f"{layer.path}.{n}" for n in names if n] or [f"{layer.path}.{p.output}" for p in block.parts]
        )
    return found


def _outputs(layer: Any) -> list[str]:
    return [path for paths in _by_block(layer) for path in paths]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "gptj", "gemma2", "vit"])
def test_what_torch_computes(family: str) -> None:
    (entry,) = entries(family, fast=True)
    feeds = dict(play(open_sessions(entry.folder(), ONE), SOURCE)[0].feeds)
    found = block_influence(entry.folder(), SOURCE, settings=ONE)
    expected = {name: influence(*pair) for name, pair in streams_of(entry, feeds).items()}
    assert found.by_block == pytest.approx(expected, abs=2e-6)


def test_hidden_states_and_padding() -> None:
    (entry,) = entries("bert", fast=True)
    ids = np.random.default_rng(0).integers(1, 50, (2, 6))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])

    def measured(rows: slice, length: int) -> Influences:
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        arrays = {name: array[rows, :length] for name, array in given.items()}
        return block_influence(entry.folder(), Source(arrays, len(arrays["input_ids"]), length))

    found = measured(slice(2), 6)
    with torch.no_grad():
        model = entry.torch_model()
        states = model(*map(torch.from_numpy, (ids, mask)), output_hidden_states=True).hidden_states
    kept = torch.from_numpy(mask).bool()
    pairs = pairwise(state[kept] for state in states)
    expected = {f"encoder.{i}": influence(*pair) for i, pair in enumerate(pairs)}
    assert found.by_layer == pytest.approx(expected, abs=2e-6)
    assert {one.positions for one in found.blocks} == {10}
    first, second = measured(slice(1), 6).by_block, measured(slice(1, 2), 4).by_block
    both = {name: 0.6 * first[name] + 0.4 * second[name] for name in first}
    assert found.by_block == pytest.approx(both, abs=2e-6)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
def test_a_mask_by_another_name() -> None:
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    found = block_influence(SHARED / "bert_toy_5l.onnx", Source({"input_mask": mask}, 2, 4))
    assert {one.positions for one in found.blocks} == {5}


def test_all_files_of_a_bundle_and_both_branches() -> None:
    (entry,) = entries("bart", fast=True)
    found = block_influence(entry.folder(), SOURCE)
    assert not [one.reason for one in (*found.blocks, *found.layers) if one.value is None]
    by_file: dict[str, dict[str, float]] = {}
    for one in found.blocks:
        by_file.setdefault(one.file, {})[one.id] = one.value or 0.0
    merged, plain = by_file["decoder_model_merged.onnx"], by_file["decoder_model.onnx"]
    assert merged == pytest.approx(plain, abs=1e-6)
    assert found.by_block == by_file["encoder_model.onnx"] | plain
    with_past = {one.positions for one in found.blocks if one.file == "decoder_with_past_model.onnx"}
    assert with_past == {2}  # a token for each row


def test_a_decoder_that_reads_padded_texts() -> None:
    (entry,) = entries("bart", fast=True)
    ids = np.random.default_rng(0).integers(3, 50, (2, 6))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])
    arrays = {"input_ids": ids, "attention_mask": mask}
    found = block_influence(entry.folder(), Source(arrays, 2, 6))
    positions = {one.file: one.positions for one in found.blocks}
    assert positions["encoder_model.onnx"] == positions["decoder_model.onnx"] == 10
    other = Source(arrays | {"decoder_attention_mask": np.ones((2, 6), np.int64)}, 2, 6)
    assert {
        f.positions for f in block_influence(entry.folder(), other).blocks if "encoder" not in f.file
    } >= {12}


def difference(one: Influences, two: Influences) -> float:
    assert [b.id for b in one.blocks] == [b.id for b in two.blocks]
    return max(abs(two.by_block[name] - value) for name, value in one.by_block.items())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "squeezebert"])
def test_fused_graphs(family: str) -> None:
    (entry,) = entries(family, fast=True)
    (file,) = entry.files()
    exported = block_influence(file, SOURCE, settings=ONE)
    assert difference(exported, block_influence(entry.dialect(file, "fused"), SOURCE, settings=ONE)) < 1e-6


# What rounding to 8 and to 4 bits makes of tiny models.
ROUGH = {"int4": 0.1, "qdq": 0.1, "qoperator": 0.1, "int8": 0.1, "weight": 0.02}


@pytest.mark.matrix
@pytest.mark.parametrize("dialect", sorted(set(DIALECTS) - {"bf16"}))
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "bart", "vit", "swin", "convnext", "gptj"])
def test_every_dialect(family: str, dialect: str) -> None:
    (entry,) = entries(family, fast=True)
    file = entry.files()[0]
    try:
        treated = entry.dialect(file, dialect)
    except NotExportableError as reason:
        pytest.skip(str(reason)[:200])
    exported = block_influence(file, SOURCE, settings=ONE)
    found = block_influence(treated, SOURCE, settings=ONE)
    if dialect == "ort-all" and any("NCHWc" in one.reason for one in found.blocks):
        pytest.skip("ONNX Runtime has put it into blocked layouts")
    rough = max((v for name, v in ROUGH.items() if name in dialect), default=1e-5)
    assert difference(exported, found) < (2e-3 if dialect in HALF else rough)


@pytest.mark.matrix
def test_every_family() -> None:
    for entry in entries(fast=True):
        try:
            folder = entry.folder()
        except NotExportableError:
            continue
        found = block_influence(folder, SOURCE, settings=ONE)
        assert found.blocks and found.layers, entry.id
        assert not [one.reason for one in (*found.blocks, *found.layers) if one.value is None], entry.id
        assert all(0 < value < 2 for value in found.by_block.values()), entry.id


def run_text(tmp_path: Path, body: str, x: Any, **options: Any) -> Influences:
    onnx.save(graphs.proto(body, **options), tmp_path / "m.onnx")
    return block_influence(tmp_path / "m.onnx", Source({"x": np.asarray(x, np.float32)}))


def test_a_sum_that_no_node_puts_out(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8), dtype=np.float32)
    start = graphs.norm("x", "n") + graphs.ffn("n", "a")
    skip = "SkipLayerNormalization (x, a, g1_8, b1_8)"
    hidden = f"{start}\ny, mean, inv, s = com.microsoft.{skip}\n" + graphs.ffn("y", "b")
    end = "y2 = com.microsoft.SkipLayerNormalization (s, b, g2_8, b2_8)"
    plain = "t = Add (s, b)\ny2 = LayerNormalization (t, g2_8, b2_8)"
    outputs = f"{graphs.STREAM} y2"
    one = run_text(tmp_path, f"{hidden}\n{end}", x, outputs=outputs)
    two = run_text(tmp_path, f"{hidden}\n{plain}", x, outputs=outputs)
    assert len(one.by_block) == 2 and one.by_block == pytest.approx(two.by_block, abs=1e-6)


def test_a_quantized_stream(tmp_path: Path) -> None:
    (entry,) = entries("resnet", fast=True)
    (file,) = entry.files()
    exported = block_influence(file, Source(batch=2))
    assert difference(exported, block_influence(entry.dialect(file, "qdq"), Source(batch=2))) < 0.02


def test_channels_in_blocks_are_told() -> None:
    (entry,) = entries("resnet", fast=True)
    found = block_influence(entry.dialect(entry.files()[0], "ort-all"), Source(batch=2))
    reasons = {one.reason for one in found.blocks}
    assert all("NCHWc" in reason for reason in reasons if reason)
    if not any(reasons):
        pytest.skip("ONNX Runtime does not use blocked layouts on this machine")
    assert not found.by_block


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
def test_other_subgraphs_are_told() -> None:
    found = block_influence(SHARED / "gpt2_greedy_two_subgraphs.onnx", Source(sequence=4))
    assert found.blocks and not found.by_block and not found.by_layer
    assert all("only the main graph" in one.reason for one in found.blocks)


def test_streams_without_a_cosine(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "m.onnx", layers=1)
    nothing = block_influence(path, Source({"x": np.zeros((1, 2, 8), np.float32)}))
    assert nothing.by_block == {"encoder.0.attention": 0, "encoder.0.ffn": 0}
    broken = block_influence(path, Source({"x": np.full((1, 2, 8), np.nan, np.float32)}))
    assert {one.reason for one in broken.blocks} == {"the stream is not finite"}
    (entry,) = entries("bert", fast=True)
    arrays = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.zeros((1, 3), np.int64)}
    padding = block_influence(entry.folder(), Source(arrays, 1, 3))
    assert {one.reason for one in padding.blocks} == {"all of its positions are padding"}


def test_the_files_own_names_are_left_alone(tmp_path: Path) -> None:
    body = "graphprune.stream.0 = Identity (x)\n" + graphs.ffn("graphprune.stream.0", "a")
    body += "\ny = Add (graphprune.stream.0, a)"
    model = graphs.proto(body.replace("graphprune.stream.0", "named"))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("named", "graphprune.stream.0") for name in names]
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((1, 2, 8), dtype=np.float32)
    assert len(block_influence(tmp_path / "m.onnx", Source({"x": x})).by_block) == 1


def test_weights_outside_of_the_file(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "m.onnx")
    inside = block_influence(path, SOURCE)
    load(path).save(tmp_path / "out" / "m.onnx", external="always")
    assert (tmp_path / "out" / "m.onnx_data").exists()
    assert block_influence(tmp_path / "out" / "m.onnx", SOURCE).by_block == inside.by_block
    assert isinstance(load(path).files[0].model, ir.Model)
