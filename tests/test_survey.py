from __future__ import annotations

from pathlib import Path

from graphprune.bundle import load
from graphprune.survey import inspect
from tests import tiny
from tools.zoo import entries


def bundle(folder: Path, **files: tuple[int, int]) -> list[list[str]]:
    """The stacks' names in each file of a folder of tiny models, given as (layers, seed)."""
    for name, (layers, seed) in files.items():
        tiny.save(folder / f"{name}.onnx", layers=layers, seed=seed)
    return [[stack.name for stack in file.architecture.stacks] for file in inspect(load(folder))]


def test_equal_stacks_are_copies_and_others_are_told_apart(tmp_path: Path) -> None:
    ((name,),) = bundle(tmp_path, a=(3, 0))
    assert bundle(tmp_path, a=(3, 0), b=(3, 0)) == [[name], [name]]
    assert bundle(tmp_path, a=(3, 0), b=(3, 1)) == [[f"a/{name}"], [f"b/{name}"]]
    assert bundle(tmp_path, a=(3, 0), b=(2, 0)) == [[f"a/{name}"], [f"b/{name}"]]
    for file in inspect(load(tmp_path)):
        (stack,) = file.architecture.stacks
        assert all(block.id.startswith(f"{stack.name}.") for block in stack.blocks)
        assert [one.name for one in file.architecture.numbering] == [f"a/{name}", f"b/{name}"]


def test_the_files_of_a_real_bundle_share_their_decoder_and_count_the_encoder_first() -> None:
    entry = next(entry for entry in entries("t5") if entry.task.endswith("-with-past"))
    files = inspect(load(entry.folder()))
    names = [{stack.name for stack in file.architecture.stacks} for file in files]
    assert sorted(file.name for file in files)[-1] == "encoder_model.onnx"
    encoder = names[[file.name for file in files].index("encoder_model.onnx")]
    decoders = {name for one in names for name in one} - encoder
    assert len(encoder) == len(decoders) == 1
    counted = list(dict.fromkeys(stack.name for stack in files[0].architecture.numbering))
    assert counted == [*encoder, *decoders]
