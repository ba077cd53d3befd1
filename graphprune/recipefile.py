"""What a recipe file holds, and on which line each key stands: for messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from graphprune.errors import RecipeError

Lines: TypeAlias = "Mapping[tuple[Any, ...], int]"


def read_json(path: Path, text: str) -> tuple[object, dict[tuple[Any, ...], int]]:
    """What a JSON text holds, and the lines of its keys. Raises `RecipeError`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid JSON: {error or 'nested too deeply'}") from error
    return data, read_yaml(path, text.replace("\t", " "))[1]  # JSON is YAML, but for tabs


def read_yaml(path: Path, text: str) -> tuple[object, dict[tuple[Any, ...], int]]:
    """What a YAML text holds, and the line of every key down to a pass's options. Raises `RecipeError`."""
    import yaml

    try:
        lines: dict[tuple[Any, ...], int] = {}
        _note_lines(yaml.compose(text, Loader=yaml.SafeLoader), (), lines)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]  # PyYAML lets such errors out of bad scalars
        raise RecipeError(f"{path}: not valid YAML: {reason or type(error).__name__}") from error


def _note_lines(node: Any, keys: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    import yaml

    if node is None or len(keys) > 4:
        return
    lines[keys] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*keys, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*keys, key.value) if isinstance(key, yaml.ScalarNode) else keys
            _note_lines(value, inner, lines)
            lines[inner] = key.start_mark.line + 1
