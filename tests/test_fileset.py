"""Files of a folder that belong together, and those that cannot: signatures by hand, and real exports."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import graphprune as gp
from graphprune import surgery
from graphprune.bundle import Bundle, ModelFile, load
from graphprune.errors import LoadError
from graphprune.fileset import require_set
from graphprune.language import open_model
from graphprune.passes.drop_ffn import DropFfn
from graphprune.prunepass import Edit
from graphprune.survey import inspect
from tools import zoo

Shapes = Mapping[str, Sequence[int | str]]
TOKENS = ("batch", "sequence")
STATES = ("batch", "source", 32)
LOGITS = {"logits": ("batch", "sequence", 99)}
CACHE = ("batch", 4, "past", 8)
SEQ2SEQ = {"is_encoder_decoder": True, "use_cache": True, "architectures": ["T5ForConditionalGeneration"]}
ENCODER = ({"input_ids": TOKENS, "attention_mask": TOKENS}, {"last_hidden_state": STATES})


def value(name: str, shape: Sequence[int | str]) -> ir.Value:
    integers = any(word in name for word in ("ids", "mask"))
    kind = ir.DataType.INT64 if integers else ir.DataType.FLOAT
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind))


def file(name: str, signature: tuple[Shapes, Shapes]) -> ModelFile:
    """A file that takes and gives this; what is between is nobody's business."""
    inputs, outputs = ([value(*item) for item in part.items()] for part in signature)
    node = ir.Node("test", "Model", inputs, outputs=outputs, name="model")
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports={"": 20, "test": 1}, name=name)
    return ModelFile(Path(name), name, ir.Model(graph, ir_version=10))


def caches(kind: str, layers: int, *parts: str, shape: Sequence[int | str] = CACHE) -> Shapes:
    return {
        f"{kind}.{i}.{part}{one}": shape for i in range(layers) for part in parts for one in ("key", "value")
    }


def decoder(layers: int = 2, width: int = 32, shape: Sequence[int | str] = CACHE) -> tuple[Shapes, Shapes]:
    inputs = {"input_ids": TOKENS, "encoder_hidden_states": ("batch", "source", width)}
    return inputs, LOGITS | caches("present", layers, "decoder.", "encoder.", shape=shape)


def with_past(layers: int = 2, shape: Sequence[int | str] = CACHE) -> tuple[Shapes, Shapes]:
    inputs = {"input_ids": TOKENS, "encoder_attention_mask": TOKENS}
    pasts = caches("past_key_values", layers, "decoder.", "encoder.", shape=shape)
    return inputs | pasts, LOGITS | caches("present", layers, "decoder.", shape=shape)


def causal(layers: int = 2) -> tuple[Shapes, Shapes]:
    return {"input_ids": TOKENS} | caches("past_key_values", layers, ""), LOGITS | caches(
        "present", layers, ""
    )


def bundle(config: dict[str, Any] | None = None, **files: tuple[Shapes, Shapes]) -> Bundle:
    configs = {} if config is None else {"config.json": config}
    return Bundle(Path("folder"), tuple(file(f"{name}.onnx", one) for name, one in files.items()), configs)


WHISPER = ("key_self", "value_self", "key_cross", "value_cross")
UNRELATED = {
    "nothing but a decoder without caches": {
        "encoder_model": ENCODER,
        "decoder_model": ({"input_ids": TOKENS, "encoder_hidden_states": STATES}, LOGITS),
    },
    "two towers": {"text_model": ENCODER, "vision_model": ({"pixel_values": (1, 3, 8, 8)}, ENCODER[1])},
    "three nets of OCR": {name: ({"x": (1, 3, 8, 8)}, {"y": (1, 8, 9)}) for name in ("det", "cls", "rec")},
    "what an image is painted from": {
        "unet": (
            {"sample": (1, 4, 8, 8), "encoder_hidden_states": STATES},
            {"out_sample": (1, 4, 8, 8)},
        ),
    },
    "an encoder and a mask decoder": {
        "vision_encoder": ({"pixel_values": (1, 3, 8, 8)}, {"image_embeddings": (1, 8, 4, 4)}),
        "prompt_encoder_mask_decoder": ({"image_embeddings": (1, 8, 4, 4)}, {"pred_masks": (1, 3, 8, 8)}),
    },
    "a decoder and its draft": {"model": causal(4), "draft": causal(2)},
    "a decoder of one file": {"decoder_model_merged": causal(2)},
    "lengths that are called past": {
        "model": ({"input_ids": TOKENS, "past_sequence_length": (1,)}, LOGITS | {"present_length": (1,)})
    },
    "caches of an encoder for a decoder": {
        "encoder": (
            {"audio_features": (1, 80, 30)},
            {"hidden_states": STATES, "present_key_cross_0": CACHE, "present_value_cross_0": CACHE},
        ),
        "decoder": (
            {"input_ids": TOKENS} | dict.fromkeys((f"past_{one}_0" for one in WHISPER), CACHE),
            LOGITS | dict.fromkeys((f"present_{one}_0" for one in WHISPER[:2]), CACHE),
        ),
    },
}


@pytest.mark.parametrize("name", UNRELATED)
def test_files_that_need_no_other_are_accepted(name: str) -> None:
    require_set(bundle({"use_cache": True}, **UNRELATED[name]))


def test_a_file_by_itself_is_accepted() -> None:
    one = file("decoder_model.onnx", decoder())
    require_set(Bundle(None, (one,), {"config.json": SEQ2SEQ}))


@pytest.mark.parametrize("architecture", ["T5EncoderModel", "WhisperForAudioClassification"])
def test_an_encoder_that_was_exported_by_itself_is_accepted(architecture: str) -> None:
    require_set(bundle(SEQ2SEQ | {"architectures": [architecture]}, encoder_model=ENCODER))
    require_set(bundle(SEQ2SEQ, model=ENCODER))


def test_a_decoder_that_is_used_without_its_cache_is_accepted() -> None:
    require_set(bundle(SEQ2SEQ | {"use_cache": False}, encoder_model=ENCODER, decoder_model=decoder()))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"encoder_model": ENCODER}, "encoder_model.onnx has no decoder's file beside it"),
        (
            {"decoder_model": decoder(), "decoder_with_past_model": with_past()},
            "decoder_model.onnx takes encoder_hidden_states, and no file gives them",
        ),
        (
            {"encoder_model": ENCODER, "decoder_with_past_model": with_past()},
            r"takes past_key_values.0.encoder.key and 3 more, .* the file for the first pass is missing",
        ),
        (
            {"encoder_model": ENCODER, "decoder_model": decoder()},
            "gives present.0.decoder.key and 7 more, and no file takes that",
        ),
        (
            {"encoder_model": ENCODER, "decoder_model": decoder(2), "decoder_with_past_model": with_past(3)},
            r"takes past_key_values.2.encoder.key and 1 more, .*: decoder_model.onnx has other caches",
        ),
        (
            {"encoder_model": ENCODER, "decoder_model": decoder(3), "decoder_with_past_model": with_past(2)},
            "decoder_model.onnx gives present.2.decoder.key and 3 more, and decoder_with_past_model.onnx",
        ),
        (
            {
                "encoder_model": ENCODER,
                "decoder_model": decoder(),
                "decoder_with_past_model": with_past(shape=("batch", 2, "past", 8)),
            },
            r"gives present.* of shape .*4.*, and .* takes past.* of shape .*2",
        ),
        (
            {
                "encoder_model": ENCODER,
                "decoder_model": decoder(width=64),
                "decoder_with_past_model": with_past(),
            },
            "takes encoder_hidden_states of width 64, and last_hidden_state of the encoder has width 32",
        ),
    ],
)
def test_what_cannot_be_one_set(files: dict[str, tuple[Shapes, Shapes]], message: str) -> None:
    with pytest.raises(LoadError, match=rf"^folder: .*{message}.*: put back the files"):
        require_set(bundle(SEQ2SEQ, **files))


def test_a_causal_pair_with_unlike_caches() -> None:
    first = ({"input_ids": TOKENS}, LOGITS | caches("present", 3, ""))
    require_set(bundle(decoder_model=first, decoder_with_past_model=causal(3)))
    with pytest.raises(LoadError, match=r"gives present.2.key and 1 more"):
        require_set(bundle(decoder_model=first, decoder_with_past_model=causal(2)))


def genai(**decoder: Any) -> Bundle:
    names = {"past_key_names": "past_key_values.%d.key", "input_ids": "input_ids"}
    told = {"filename": "model.onnx", "inputs": names, "outputs": {"logits": "logits"}} | decoder
    files = (file("model.onnx", causal()),)
    return Bundle(Path("folder"), files, {"genai_config.json": {"model": {"decoder": told}}})


def test_what_genai_names() -> None:
    require_set(genai())
    require_set(genai(inputs={"position_ids": "position_ids"}))  # genai itself looks whether it is there
    for wrong, message in [
        ({"filename": "other.onnx"}, "names other.onnx .model.decoder.filename., and that is not there"),
        ({"pipeline": [{"one": {"filename": "part.onnx"}}]}, "names part.onnx .model.decoder.pipeline.0.one"),
        ({"inputs": {"past_key_names": "past.%d.key"}}, "model.onnx has past.%d.key"),
        ({"outputs": {"logits": "scores"}}, "model.onnx has scores .model.decoder.outputs.logits"),
    ]:
        with pytest.raises(LoadError, match=message):
            require_set(genai(**wrong))


# -- real exports --------------------------------------------------------------------------------

FAST = ["t5"]
FAMILIES = [*FAST, *(pytest.param(name, marks=pytest.mark.matrix) for name in ("bart", "whisper", "marian"))]
PARTS = ("encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged")


def exported(family: str) -> Path:
    return next(iter(zoo.entries(family, fast=True))).folder()


def copied(family: str, out: Path, names: Sequence[str] = PARTS) -> Path:
    """A folder with these files of a family's export, and its configs."""
    out.mkdir()
    for source in exported(family).iterdir():
        if source.suffix == ".json" or source.stem in names:
            shutil.copy(source, out)
    return out


def is_accepted(folder: Path) -> bool:
    try:
        require_set(load(folder))
    except LoadError:
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_of_a_bundle_works_or_is_refused(family: str, tmp_path: Path) -> None:
    """optimum needs the encoder, and the merged decoder or both others."""
    for count in range(1, len(PARTS) + 1):
        for names in combinations(PARTS, count):
            folder = copied(family, tmp_path / "-".join(names), names)
            encoder, first, step, merged = (part in names for part in PARTS)
            works = encoder and (merged or (first and step))
            assert is_accepted(folder) == works, names
            if works and count < 4:
                assert gp.run(folder, gp.Source(sequence=4), steps=1)


def test_whatever_takes_a_folder_refuses_it(tmp_path: Path) -> None:
    folder = copied("t5", tmp_path / "bundle", ("encoder_model", "decoder_model"))

    def pruned(path: Path) -> object:
        return gp.prune(load(path), drop_layers=0)

    for refusing in (
        gp.run,
        pruned,
        open_model,
        lambda path: gp.verify(path, path),
        lambda path: gp.bench([path]),
    ):
        with pytest.raises(LoadError, match="put back the files"):
            refusing(folder)
    assert inspect(load(folder))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("what", ["layer", "ffn", "weights"])
def test_a_file_that_was_changed_apart_from_the_others(
    family: str, part: str, what: str, tmp_path: Path
) -> None:
    folder = copied(family, tmp_path / "bundle")
    changed = change(folder / f"{part}.onnx", what, tmp_path / "changed.onnx")
    shutil.copy(changed, folder / f"{part}.onnx")
    speech = family == "whisper"  # its encoder reads no tokens
    assert is_accepted(folder) == (part == "encoder_model" and (what != "weights" or speech))
    if part == "encoder_model" and what == "layer":
        assert gp.run(folder, gp.Source(sequence=4), steps=1)


def test_the_encoder_of_another_model(tmp_path: Path) -> None:
    """T5's has BART's inputs, outputs, width, number of layers and number of tokens."""
    folder = copied("bart", tmp_path / "bundle")
    change(exported("t5") / "encoder_model.onnx", "weights", folder / "encoder_model.onnx")
    with pytest.raises(
        LoadError, match=r"encoder_model.onnx has another table of tokens than the decoder \(deco"
    ):
        require_set(load(folder))


def change(path: Path, what: str, out: Path) -> Path:
    if what == "weights":
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.ndim > 1:
                tensor.CopyFrom(numpy_helper.from_array(array * np.float32(1.5), tensor.name))
        onnx.save(model, out)
        return out
    options: dict[str, Any] = {"drop_layers": 1} if what == "layer" else {"drop_ffn": 1}
    return gp.prune(load(path), **options).save(out, run=False)


@pytest.mark.parametrize("loader", ["plain", "optimum"])
@pytest.mark.parametrize("which", ["self", "cross"])
def test_what_prune_makes_is_a_set_again(loader: Any, which: str) -> None:
    pruned = gp.prune(
        load(exported("t5")),
        loader=loader,
        drop_attention={"blocks": "decoder.1", "which": which},
        drop_layers=0,
    )
    require_set(pruned.bundle)


def test_branches_that_were_changed_apart(tmp_path: Path) -> None:
    folder = copied("t5", tmp_path / "bundle", ("encoder_model", "decoder_model_merged"))
    changed = load(folder)
    (merged,) = (one for one in inspect(changed) if "merged" in one.name)
    first = next(one for one in DropFfn("decoder.1").plan(merged.architecture) if isinstance(one, Edit))
    first.apply()
    surgery.sweep(merged.architecture.model)
    with pytest.raises(LoadError, match=r"has 3 layers .* and .* has .* they are not one decoder"):
        require_set(changed)


@pytest.mark.parametrize("name", [*("bert", "gpt2", "clip"), pytest.param("", marks=pytest.mark.matrix)])
def test_exports_are_accepted(name: str) -> None:
    for entry in zoo.entries(*([name] if name else []), fast=bool(name)):
        try:
            folder = entry.folder()
        except zoo.NotExportableError:
            continue
        require_set(load(folder))


KEYS = st.sampled_from(
    [
        "model",
        "decoder",
        "filename",
        "inputs",
        "past_key_names",
        "architectures",
        "use_cache",
        "is_encoder_decoder",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["model.onnx", "past.%d", "%d%d"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


@given(st.dictionaries(KEYS, JSON, max_size=4), st.sets(st.sampled_from(PARTS), min_size=1))
def test_any_configs_are_survived(config: dict[str, Any], names: set[str]) -> None:
    known = {PARTS[0]: ENCODER, PARTS[1]: decoder(), PARTS[2]: with_past()}
    files = tuple(file(f"{name}.onnx", known.get(name, causal())) for name in sorted(names))
    configs = {"config.json": config, "genai_config.json": config}
    with contextlib.suppress(LoadError):
        require_set(Bundle(Path("folder"), files, configs))
