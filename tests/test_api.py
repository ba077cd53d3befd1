"""`import graphprune` is free, and what it promises is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import graphprune as gp

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy", "torch", "scipy", "pydantic")


@pytest.mark.parametrize("name", gp.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(gp, name)
    assert callable(found), f"{name} is {found!r}: is a module hiding it?"
    assert name in dir(gp)


def test_no_module_hides_a_function_of_its_name() -> None:
    code = """import graphprune.cli, graphprune.pipeline, graphprune as g
assert all(callable(getattr(g, name)) for name in dir(g))"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gp.nothing


@pytest.mark.parametrize(
    "statement", ["import graphprune", "from graphprune.cli import run_line; run_line(['--help'])"]
)
def test_heavy_libraries_are_not_imported_before_they_are_needed(statement: str) -> None:
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
