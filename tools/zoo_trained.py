"""The trained demo models of `models/` as ONNX bundles, exported once and kept with the zoo.

python -m tools.zoo_trained [gpt2|llama|vit …]

Tests and benchmarks call `trained`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tools import zoo

MODELS = Path(__file__).parent.parent / "models"
FOLDERS = {"gpt2": "gpt2-shakespeare", "llama": "llama-shakespeare", "vit": "vit-digits"}


def checkpoint(name: str) -> Path:
    """The transformers folder of a trained model: "gpt2", "llama" or "vit"."""
    if name not in FOLDERS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(FOLDERS)}")
    return MODELS / FOLDERS[name]


@cache
def trained(name: str) -> Path:
    """The bundle that `graphprune export` makes of a trained model; decoders have a KV cache.

    Raises `zoo.NotExportableError` where the exporter fails.
    """
    source = checkpoint(name)
    return zoo._built(zoo.home() / f"trained-{name}-{_key(source)}", lambda out: _export(source, out))


def _export(source: Path, folder: Path) -> None:
    from graphprune.exporter import export

    export(source, folder, overwrite=True)


def _key(source: Path) -> str:
    """What the export is made from: the files of the model and the versions of the libraries."""
    digest = hashlib.sha256(" ".join(f"{name}={version(name)}" for name in zoo.LIBRARIES).encode())
    for file in sorted(source.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def main(arguments: list[str]) -> int:
    """The command line: export these models (all, where none is named) and say where they are."""
    parser = argparse.ArgumentParser(description="Export the trained demo models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FOLDERS))
    for name in parser.parse_args(arguments).names or FOLDERS:
        print(name, trained(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
