"""The model zoo: tiny random-weight models of many families, exported in many ways, with the truth.

    python -m tools.zoo list
    python -m tools.zoo build [FAMILY …]

Built once a machine and kept under `$GRAPHPRUNE_ZOO`, or the user's cache folder; the key of an
export is what it was made from: its configuration, the exporter's source and the versions of the
libraries. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tools import zoo_decoders, zoo_encoders, zoo_seq2seq, zoo_vision
from tools.zoo_dialects import treat
from tools.zoo_truth import Family, Stack

if TYPE_CHECKING:
    import torch

EXPORTERS = ("optimum", "optimum@11", "optimum@17", "dynamo", "dynamo@23")
REFUSAL = "not_exportable.txt"
LIBRARIES = ("torch", "transformers", "optimum-onnx", "onnx", "onnxscript", "onnxruntime")
OPTIMIZERS = ("onnx", "onnxruntime", "onnxslim", "onnxsim")


class NotExportableError(Exception):
    """An exporter refuses this family; the message is the exporter's own reason."""


@dataclass(frozen=True)
class Entry:
    """One export of one family: a folder with one ONNX file or more."""

    family: Family
    exporter: str
    task: str

    @property
    def id(self) -> str:
        """A short name, also the folder's."""
        return f"{self.family.name}-{self.exporter}-{self.task}"

    @property
    def main(self) -> bool:
        """Whether this is the exporter's first task at its default opset."""
        return "@" not in self.exporter and self.task == _tasks(self.family, self.exporter)[0]

    def stacks(self, file: str) -> tuple[Stack, ...]:
        """The truth about the file of this stem."""
        return tuple(stack for stack in self.family.stacks if file in stack.files)

    def torch_model(self) -> torch.nn.Module:
        """The torch model that was exported, weight for weight."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers' own modules
            from tools.zoo_export import attention, build, opset_of

            return build(self.family, attention(opset_of(self.exporter)))

    def folder(self) -> Path:
        """The exported files, built at the first call. Raises `NotExportableError`."""
        key = _digest(self.family, self.exporter, self.task)
        return _built(home() / f"{self.id}-{key}", self._export)

    def _export(self, folder: Path) -> None:
        from tools.zoo_export import export

        export(self.family, self.exporter, self.task, folder)

    def files(self) -> tuple[Path, ...]:
        """The ONNX files of the export, by name. Raises `NotExportableError`."""
        return tuple(sorted(self.folder().glob("*.onnx")))

    def dialect(self, file: Path, name: str) -> Path:
        """`file` after the treatment `name` of `zoo_dialects`, or as it is ("exported").

        Raises `NotExportableError` with the tool's own reason where it cannot do this file.
        """
        if name == "exported":
            return file
        sources = ("zoo_dialects.py", "zoo_quantized.py")
        key = _hash("".join(_environment(source, OPTIMIZERS) for source in sources))
        folder = file.parent / f"{name}-{key}" / file.stem
        return _built(folder, lambda out: treat(name, file, out / file.name, self.family)) / file.name


@cache
def families() -> dict[str, Family]:
    """All families by name, the listed ones first."""
    listed = [
        *zoo_encoders.text_encoders(),
        *zoo_decoders.causal(),
        *zoo_seq2seq.seq2seq(),
        *zoo_vision.vision(),
        *zoo_decoders.parallels(),
    ]
    beyond = [
        *zoo_encoders.more_encoders(),
        *zoo_decoders.more_decoders(),
        *zoo_seq2seq.more_seq2seq(),
        *zoo_vision.more_vision(),
    ]
    return {family.name: family for family in (*listed, *beyond)}


def home() -> Path:
    """The folder of all exports."""
    named = os.environ.get("GRAPHPRUNE_ZOO")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "graphprune" / "zoo"


def entries(*names: str, fast: bool = False) -> Iterator[Entry]:
    """The entries of these families (all, where none is named); `fast`: one export a family."""
    known = families()
    for name in names or known:
        family = known[name]
        if fast:
            yield Entry(family, "optimum", family.tasks[0])
            continue
        for exporter in EXPORTERS:
            for task in _tasks(family, exporter):
                yield Entry(family, exporter, task)


def _tasks(family: Family, exporter: str) -> tuple[str, ...]:
    """The tasks that are worth exporting: all at the default opset, one at the others.

    Families beyond the list are exported by dynamo, which is slow, in one way only.
    """
    slow = exporter.startswith("dynamo")
    tasks = family.tasks
    if slow and family.modality in {"seq2seq", "audio"}:
        tasks = tuple(task for task in tasks if not task.endswith("-with-past"))
    if slow and not family.listed:
        return () if "@" in exporter else tasks[:1]
    return tasks if "@" not in exporter else tasks[:1]


@cache
def _environment(source: str, libraries: tuple[str, ...]) -> str:
    """The text of a source file beside this one, and the versions of the libraries that it uses."""
    text = Path(__file__).with_name(source).read_text(encoding="utf-8")
    return text + " ".join(f"{name}={version(name)}" for name in libraries)


def _digest(family: Family, exporter: str, task: str) -> str:
    made_from = [
        family.config,
        family.model,
        family.options,
        exporter,
        task,
        _environment("zoo_export.py", LIBRARIES),
    ]
    return _hash(json.dumps(made_from, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _built(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write` in one step, so that parallel processes never see half of it.

    Where `write` fails, its reason is kept in the folder and raised from now on.
    """
    if not folder.exists():
        from tools.zoo_export import quiet

        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as building:
            target = Path(building) / folder.name
            target.mkdir()
            with quiet():
                try:
                    write(target)
                except Exception as error:
                    shutil.rmtree(target)
                    target.mkdir()
                    reason = f"{type(error).__name__}: {str(error).strip()[:600]}"
                    (target / REFUSAL).write_text(reason, encoding="utf-8")
                gc.collect()  # tools leave temporary folders behind, and warn of them when these go
            _move(target, folder)
    refusal = folder / REFUSAL
    if refusal.exists():
        raise NotExportableError(refusal.read_text(encoding="utf-8"))
    return folder


def _move(source: Path, target: Path) -> None:
    """Put `source` in place; another process may have been faster, which is as good."""
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build or list the model zoo.")
    parser.add_argument("command", choices=("build", "list"))
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--fast", action="store_true", help="one export a family")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.families if name not in families()]
    if unknown:
        parser.error(f"unknown families {unknown}; known: {', '.join(families())}")
    for entry in entries(*options.families, fast=options.fast):
        if options.command == "list":
            print(entry.id)
            continue
        start = time.perf_counter()
        try:
            state = ", ".join(file.name for file in entry.files())
        except NotExportableError as error:
            state = "not exportable: " + str(error).splitlines()[0][:150]
        print(f"{entry.id:55} {time.perf_counter() - start:5.1f} s  {state}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
