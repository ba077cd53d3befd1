"""How to repeat it: the recipe, the commands, the files by their hashes, the machine."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.report.numbers import NONE
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.subject import Subject

_COLUMNS = (
    ("File", ""),
    ("SHA-256", "hash"),
    ("Made from", ""),
    ("SHA-256 of that", "hash"),
    ("By version", ""),
)
_PACKAGES = ("graphprune", "onnxruntime", "onnx", "onnx-ir", "numpy")


def repeat(subject: Subject) -> Section:
    """All that another person needs to come to the same page."""
    origin = subject.origin
    html = render(
        "repeat.html",
        recipe=_yaml(origin.recipe) if origin.recipe is not None else "",
        commands="\n".join(_commands(subject)),
        earlier=origin.earlier,
        columns=_COLUMNS,
        files=[
            (one.name, one.sha256, one.source or NONE, one.source_sha256 or NONE, one.version or NONE)
            for one in origin.files
        ],
        facts=[*_environment(), *_settings(subject)],
    )
    return Section("repeat", "How to repeat it", html)


def _yaml(recipe: object) -> str:
    import yaml

    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _commands(subject: Subject) -> Iterator[str]:
    if subject.origin.recipe is not None:
        dense = str(subject.dense.path) if subject.dense else "DENSE"
        yield shlex.join(["graphprune", "prune", dense, str(subject.model.path), "--recipe", "recipe.yaml"])
    if subject.command:
        yield subject.command


def _environment() -> Iterator[tuple[str, str]]:
    yield "Processor", f"{_processor()}, {os.cpu_count()} cores"
    yield "System", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "Python", platform.python_version()
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # run from a checkout, or from another build of onnxruntime
            yield name, NONE


def _processor() -> str:
    """The processor's own name: Linux keeps it in a file, elsewhere Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _settings(subject: Subject) -> Iterator[tuple[str, str]]:
    settings = subject.settings
    yield "Provider", ", ".join(settings.providers)
    yield "Threads", str(settings.threads) if settings.threads else "as ONNX Runtime chooses"
    yield "Optimization level", settings.level
    yield "Memory", settings.memory
