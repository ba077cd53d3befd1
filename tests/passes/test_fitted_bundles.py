"""Fitted values through the whole pipeline: files of a bundle, sizes, configs, provenance, command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphprune as gp
from graphprune.cli import run_line
from graphprune.errors import RecipeError, SelectionError
from graphprune.outcomes import ask
from graphprune.prunepass import Edit
from graphprune.recipe import parse
from graphprune.surgery import fingerprint
from tests.graphs import attention, ffn, norm, written
from tests.passes.fitted import drawn, stored
from tests.surgery.test_signature import with_ffn
from tools.zoo import entries

POST = f"""
{attention("x", "a")} s = Add (x, a) {norm("s", "h")} {ffn("h", "f")} t = Add (h, f) {norm("t", "z")}
{attention("z", "c")} o = Add (z, c) {norm("o", "p")} {ffn("p", "e")} q = Add (p, e) {norm("q", "y")}
"""
WIDTH = 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    ir.save(written(POST), path)
    return path


@pytest.fixture
def values(tmp_path: Path) -> str:
    return stored(
        tmp_path / "v.npz",
        encoder_0_ffn__linear=drawn(WIDTH, WIDTH), encoder_0_ffn__constant=drawn(WIDTH),
        encoder_0_ffn__scale=drawn(WIDTH), encoder_0_ffn__shift=drawn(WIDTH),
        encoder_1_attention__linear_a=drawn(WIDTH, 2), encoder_1_attention__linear_b=drawn(2, WIDTH),
    )  # fmt: skip


def test_parameters_and_macs_of_what_stands_instead(model: Path, values: str, tmp_path: Path) -> None:
    bundle = gp.load(model)
    pruned = gp.prune(
        bundle,
        replace_linear={"blocks": "encoder.0.ffn,encoder.1.attention", "values": values},
        refit={"values": values},
    )
    attention_size, ffn_size = 4 * 64, 2 * 8 * 24
    assert pruned.plan.before.parameters - pruned.after.parameters == (
        ffn_size - 64 - 8 + attention_size - 2 * 16
    )
    tokens = dict(batch=2, sequence=3)
    before, after = (sizes.macs.at(**tokens) for sizes in (pruned.plan.before, pruned.after))
    mixing = 2 * 8 * 3
    assert before - after == 6 * (ffn_size - 64 + attention_size + mixing - 32)
    again = gp.inspect(gp.load(pruned.save(tmp_path / "out.onnx")))[0].architecture
    assert sum(len(stack.layers) for stack in again.stacks)


def test_the_recipe_in_the_file_names_the_values_and_their_hash(
    model: Path, values: str, tmp_path: Path
) -> None:
    pruned = gp.prune(gp.load(model), replace_mean={"blocks": "encoder.0.ffn", "values": values})
    out = pruned.save(tmp_path / "out.onnx")
    known = {prop.key: prop.value for prop in onnx.load(out).metadata_props}
    recipe = json.loads(next(value for key, value in known.items() if key.endswith("recipe")))
    (step,) = recipe["passes"]
    assert step["replace_mean"]["sha256"] == fingerprint(values)
    assert parse(recipe) == parse(json.loads(json.dumps(parse(recipe).to_json())))
    assert parse(recipe).passes == pruned.plan.recipe.passes
    stored(Path(values), encoder_0_ffn__constant=drawn(WIDTH, seed=9))
    with pytest.raises(RecipeError, match="other values than the recipe was made with"):
        gp.prune(gp.load(model), recipe=parse(recipe))


def test_values_that_are_not_there_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.npz: the fitted values cannot be read: No such file"):
        gp.prune(gp.load(model), refit=str(tmp_path / "none.npz"))


def test_a_layer_with_a_linear_in_it_still_counts(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    ir.save(written(POST), folder / "model.onnx")
    (folder / "config.json").write_text('{"num_hidden_layers": 2, "model_type": "bert"}')
    linear = drawn(WIDTH, WIDTH)
    path = stored(tmp_path / "v.npz", encoder_0_ffn__linear=linear, encoder_0_attention__linear=linear)
    both = gp.prune(gp.load(folder), replace_linear={"blocks": "0", "values": path})
    assert both.bundle.configs["config.json"]["num_hidden_layers"] == 2
    one = gp.prune(
        gp.load(folder), replace_linear={"blocks": "encoder.0.ffn", "values": path}, drop_attention="0"
    )
    assert one.bundle.configs["config.json"]["num_hidden_layers"] == 2
    every = stored(
        tmp_path / "all.npz",
        **{f"encoder_{i}_{kind}__linear": linear for i in range(2) for kind in ("attention", "ffn")},
    )
    assert gp.prune(gp.load(folder), replace_linear={"blocks": "all", "values": every}).plan.edits
    merged = gp.prune(gp.load(folder), merge_layers="1")
    assert merged.bundle.configs["config.json"]["num_hidden_layers"] == 1
    with pytest.raises(SelectionError, match="leave at least one"):
        gp.prune(gp.load(folder), drop_layers="0-1", refit=path)


def test_caches_go_with_what_is_replaced_and_the_last_one_stays(tmp_path: Path) -> None:
    ir.save(with_ffn(), tmp_path / "decoder.onnx")
    bundle = gp.load(tmp_path / "decoder.onnx")
    ids = [b.id for b in gp.inspect(bundle)[0].architecture.blocks if b.kind == "attention"]
    path = tmp_path / "v.npz"
    np.savez(path, **{f"{id}/linear": drawn(WIDTH, WIDTH) for id in ids})
    one = gp.prune(bundle, replace_linear={"blocks": ids[0], "values": str(path)})
    every = gp.prune(bundle, replace_linear={"blocks": ",".join(ids), "values": str(path)})
    dropped = [gp.prune(bundle, drop_attention=which) for which in ("0", "all")]
    for replaced, plain in zip((one, every), dropped, strict=True):
        names = [
            [v.name for v in (*p.bundle.files[0].model.graph.inputs, *p.bundle.files[0].model.graph.outputs)]
            for p in (replaced, plain)
        ]
        assert names[0] == names[1]
        count = sum(isinstance(o.answer, Edit) for o in replaced.plan.outcomes)
        tokens = dict(batch=1, sequence=1, past=0)
        assert replaced.after.macs.at(**tokens) == plain.after.macs.at(**tokens) + count * WIDTH**2
        replaced.save(tmp_path / "out.onnx", overwrite=True)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_all_files_of_a_bundle_change_together(family: str, tmp_path: Path) -> None:
    (entry,) = entries(family, fast=True)
    bundle = gp.load(entry.folder())
    files = gp.inspect(bundle)
    blocks = [
        block for file in files for block in file.architecture.blocks if block.id.startswith("decoder.1.")
    ]
    names = list(dict.fromkeys(block.id for block in blocks))
    width = 32
    arrays = {f"{name}/{key}": drawn(width, seed=1) for name in names for key in ("bias", "scale", "shift")}
    arrays |= {f"{name}/linear": drawn(width, width) for name in names}
    path = tmp_path / "v.npz"
    np.savez(path, **arrays)
    recipe = {"replace_linear": {"blocks": names[0], "values": str(path)}, "refit": str(path)}
    plan = gp.plan(bundle, parse({"passes": [{name: value} for name, value in recipe.items()]}))
    targets = [(o.answer.target, o.file) for o in plan.edits]
    holders = {file.name for file in files if any(b.id == names[0] for b in file.architecture.blocks)}
    assert {file for target, file in targets if target == names[0]} == holders and len(holders) > 1
    pruned = gp.prune(bundle, recipe=plan.recipe)
    merged = next(file for file in pruned.bundle.files if "merged" in file.name)
    linears = [n for g in merged.model.graphs() for n in g.initializers if n.startswith(f"{names[0]}/linear")]
    assert linears == [f"{names[0]}/linear"], "both branches read one copy"
    pruned.save(tmp_path / "out")


def test_norms_of_copies_are_refitted_together_or_not_at_all(tmp_path: Path) -> None:
    (entry,) = entries("bart", fast=True)
    files = gp.inspect(gp.load(entry.folder()))
    path = tmp_path / "v.npz"
    np.savez(path, **{"decoder.1.ffn/scale": drawn(32), "decoder.1.attention/scale": drawn(32)})
    step = parse({"passes": [{"drop_attention": "decoder.1"}, {"refit": str(path)}]}).passes
    edits = [o for o in ask(step, files) if isinstance(o.answer, Edit)]
    holders = {file.name for file in files if any(b.id == "decoder.1.ffn" for b in file.architecture.blocks)}
    for target in ("decoder.1.attention", "decoder.1.attention.norm", "decoder.1.ffn.norm"):
        assert {o.file for o in edits if o.answer.target == target} == holders


def test_by_command_line(
    model: Path, values: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    options = ["--replace-linear", "encoder.0.ffn", "--replace-linear-values", values]
    options += ["--replace-linear-rank", "2", "--refit", values]
    assert run_line(["prune", str(model), str(out), *options]) == 0, capsys.readouterr()
    tensors = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(out).graph.initializer}
    assert tensors["encoder.0.ffn/linear.0"] == (8, 2) and tensors["encoder.0.ffn/linear.1"] == (2, 8)
    assert "encoder.0.ffn/scale" in tensors
    capsys.readouterr()
    assert run_line(["prune", str(model), str(tmp_path / "b.onnx"), "--refit", str(tmp_path / "no.npz")]) == 2
    assert "no.npz" in "".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b.onnx").exists()
