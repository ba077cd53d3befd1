"""A bundle: the ONNX files that belong together, their configs, and what lies beside them.

A bundle is read from one `.onnx` file, or from a folder as optimum lays it out (`model.onnx`,
or `encoder_model.onnx` with its decoders, in the folder or in `onnx/` below it) or as
onnxruntime-genai does (`model.onnx` with `genai_config.json`).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphprune import storage, weights
from graphprune.errors import LoadError, RunError, SaveError
from graphprune.gates import GATES
from graphprune.ortformat import SUFFIX, packaged
from graphprune.reading import read_model

CONFIGS = ("config.json", "generation_config.json", "genai_config.json")

# What a folder holds of the unpruned model in other forms: it would no longer belong.
_OTHER_WEIGHTS = (
    *("*.onnx", "*.onnx_data*", "*.onnx.data*", "*.ort", "*required_operators*.config", "openvino_model*"),
    *(
        "*.safetensors",
        "*.safetensors.index.json",
        "pytorch_model*.bin*",
        "tf_model*.h5",
        "flax_model*.msgpack",
    ),
)

_KEY = "graphprune."
_PACKAGED = (
    "is in ONNX Runtime's own format, which can be run, verified and timed: "
    "for everything else name the .onnx file that it was made from"
)


@dataclass(frozen=True, eq=False)
class ModelFile:
    """One ONNX file: where it was read from, its name relative to the bundle, its graph."""

    path: Path
    name: str
    model: ir.Model


@dataclass(frozen=True, eq=False)
class Bundle:
    """ONNX files that change together or not at all.

    `folder` is None for a single file. `configs` maps the names in `CONFIGS` that exist to
    their content: change it and `save` writes it. `others` are the files, relative to the
    folder, that `save` copies along. `repairs` says what was mended in the files to read them.
    """

    folder: Path | None
    files: tuple[ModelFile, ...]
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    others: tuple[Path, ...] = ()
    repairs: tuple[str, ...] = ()

    def only(self, done: str) -> ModelFile:
        """Its one model. Raises `RunError` where it has several, of which one is to be `done` something."""
        if len(self.files) != 1:
            names = ", ".join(file.name for file in self.files)
            raise RunError(
                f"{self.folder} holds several models, and one is {done} at a time: name one of {names}"
            )
        return self.files[0]

    def clone(self) -> Bundle:
        """A copy whose graphs and configs can be changed; the (lazy) tensors are shared."""
        files = tuple(replace(file, model=file.model.clone()) for file in self.files)
        return replace(self, files=files, configs=copy.deepcopy(dict(self.configs)))

    def save(
        self,
        out: str | Path,
        *,
        external: storage.External = "auto",
        overwrite: bool = False,
        provenance: Mapping[str, str] | None = None,
        check: Callable[[ModelFile, Path], None] | None = None,
        check_bundle: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write the bundle to `out`: a file to a file, a folder to a folder; return its path.

        `external` keeps the weights where they are ("auto"), puts them all outside of the
        model ("always") or inside ("never"); over 1.8 GB they are always outside. `provenance`
        goes into the files' `metadata_props` as `graphprune.<key>`, beside the tool's version
        and the hash of the source; what stood there moves into `graphprune.history`.
        `check` is called with each file and the path where it was written, `check_bundle` with
        the path of the whole once all is there, before anything is moved to `out`: if one raises,
        nothing is written.

        Raises `SaveError` where `out` is the source or exists (unless `overwrite`), or cannot
        be written.
        """
        target = Path(out)
        self._check_target(target)
        storage.refuse_source(target, self.sources())
        with storage.replacing(target, overwrite=overwrite) as folder:
            self.write_beside(folder)
            for file in self.files:
                path = folder / (file.name if self.folder else target.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                metadata = with_provenance(file, provenance or {})
                storage.write_model(file.model, path, external=external, metadata=metadata)
                if check is not None:
                    check(file, path)
            if check_bundle is not None:
                check_bundle(folder if self.folder else folder / target.name)
        return target

    def sources(self) -> set[Path]:
        """Every file that the models are read from."""
        return {p for file in self.files for p in (file.path, *weights.external_files(file.model))}

    def _check_target(self, target: Path) -> None:
        if self.folder is None and target.suffix != ".onnx":
            raise SaveError(
                f"{target}: the source is one file, so the target must be a file too, named *.onnx"
            )
        if self.folder is None and target.is_dir():
            raise SaveError(f"{target} is a folder: name a file in it, such as {target / 'model.onnx'}")
        if self.folder is not None and (target.suffix == ".onnx" or target.is_file()):
            raise SaveError(f"{target}: the source is a folder, so the target must be a folder too")

    def write_beside(self, folder: Path) -> None:
        """Write to `folder` what lies beside the models: configs as they are now, the other files copied.

        A bundle of a single file has nothing beside it.
        """
        if self.folder is None:
            return
        storage.copy_files(self.folder, self.others, folder)
        for name, config in self.configs.items():
            if config == read_config(self.folder / name):
                storage.copy_files(self.folder, [Path(name)], folder)
            else:
                text = json.dumps(config, indent=2, ensure_ascii=False)
                (folder / name).write_text(text + "\n", encoding="utf-8")


def load(path: str | Path) -> Bundle:
    """Read a `.onnx` file or a folder of them; weights stay on the disk until they are used.

    Raises `LoadError` where there is nothing to read or the files are damaged, and
    `GraphError` where a graph is invalid or its opset too new.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise LoadError(f"{path} does not exist: name an .onnx file, or a folder that holds one")
    if path.suffix == SUFFIX:
        raise LoadError(f"{path} {_PACKAGED}")
    model, repairs = read_model(path)
    return Bundle(None, (ModelFile(path, path.name, model),), repairs=repairs)


def _load_folder(folder: Path) -> Bundle:
    found = (path for pattern in ("*.onnx", "onnx/*.onnx") for path in folder.glob(pattern))
    paths = sorted(path for path in found if _is_visible(path, folder))
    if packages := packaged(folder):
        raise LoadError(f"{folder / packages[0][1]} {_PACKAGED}")
    if not paths:
        raise LoadError(f"{folder} holds no .onnx file, and neither does {folder / 'onnx'}: name another one")
    files, repairs = [], []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        model, mended = read_model(path)
        files.append(ModelFile(path, name, model))
        repairs += [f"{name}: {note}" for note in mended]
    configs = {name: read_config(folder / name) for name in CONFIGS if (folder / name).is_file()}
    others = tuple(_others(folder, files, skip=set(configs)))
    return Bundle(folder, tuple(files), configs, others, tuple(repairs))


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `LoadError`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise LoadError(f"{path} holds no JSON object: it cannot be a model's configuration")
    return config


def _others(folder: Path, files: list[ModelFile], skip: set[str]) -> Iterator[Path]:
    """Files that go along unchanged: tokenizers and the like, no weights, nothing hidden."""
    weight_files = {path for file in files for path in weights.external_files(file.model)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or not _is_visible(path, folder) or name.as_posix() in skip:
            continue
        if path.resolve() not in weight_files and not any(name.match(pattern) for pattern in _OTHER_WEIGHTS):
            yield name


def _is_visible(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def with_provenance(file: ModelFile, given: Mapping[str, str]) -> dict[str, str]:
    """The `metadata_props` to write: the model's own, and where this file comes from.

    What an earlier run of graphprune said moves, oldest first, into the list
    `graphprune.history`; what is about the graph itself, such as its gates, stays.
    """
    props = dict(file.model.metadata_props)
    about = {key: props.pop(key) for key in (GATES,) if key in props}
    own = {key.removeprefix(_KEY): value for key, value in props.items() if key.startswith(_KEY)}
    history = _history(own.pop("history", "[]"))
    if own:
        history.append(own)
    entries = {"version": _tool_version(), **fingerprint(file), **given}
    if history:
        entries["history"] = json.dumps(history)
    kept = {key: value for key, value in props.items() if not key.startswith(_KEY)}
    return kept | about | {_KEY + key: value for key, value in entries.items()}


def _history(text: str) -> list[Any]:
    try:
        history = json.loads(text)
    except ValueError:
        return [text]
    return history if isinstance(history, list) else [history]


def fingerprint(file: ModelFile) -> dict[str, str]:
    """What a file made from this one says of its source.

    `source` is its name, `source_sha256` the hash of the .onnx file, `source_data` fingerprints of the
    weight files beside it, in JSON.
    """
    with file.path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    entries = {"source": file.path.name, "source_sha256": digest.hexdigest()}
    data = {path.name: weights.sampled_sha256(path) for path in sorted(weights.external_files(file.model))}
    return entries | ({"source_data": json.dumps(data)} if data else {})


def _tool_version() -> str:
    try:
        return version("graphprune")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "uninstalled"
