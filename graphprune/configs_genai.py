"""Keep onnxruntime-genai's `genai_config.json` in step with the caches that a model still has.

genai finds caches by the names of inputs and outputs; versions before it did so counted them by
`num_hidden_layers`. So that number is the number of caches where a model has any, and
`sliding_window.layers` are the numbers in their names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from graphprune.configs import Kept
from graphprune.perlayer import follow_layers

# Where a section tells how the inputs of its caches are called: `past_key_values.%d.key`.
PAST_NAMES = ("past_key_names", "past_names")
# Of the inputs and outputs that a section names, those without which genai cannot do.
_NEEDED = {
    *("input_ids", "logits", *PAST_NAMES, "past_value_names", "cross_past_key_names"),
    *("cross_past_value_names", "present_names", "present_key_names", "present_value_names"),
}


def follow_genai(
    config: Mapping[str, Any], stacks: Sequence[Kept], inputs: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """`genai_config.json` with the layers and caches of `stacks`; `inputs` are the names of each file's."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        return dict(config)
    sections = {key: value for key, value in model.items() if isinstance(value, Mapping)}
    followed = {key: _section(value, stacks, inputs) for key, value in sections.items()}
    return dict(config) | {"model": dict(model) | followed}


def _section(
    section: Mapping[str, Any], stacks: Sequence[Kept], inputs: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """The part of the config that tells of one file (`decoder`, `encoder`, …)."""
    stack = _stack(section, stacks)
    if stack is None:
        return dict(section)
    changed = follow_layers(section, stack.layers, stack.order)
    if section.get("num_hidden_layers") in (stack.layers, stack.cached):
        changed["num_hidden_layers"] = len(stack.caches) or len(stack.order)
    window = section.get("sliding_window")
    if isinstance(window, Mapping) and isinstance(window.get("layers"), list):
        numbers = cache_numbers(section, inputs.get(str(section.get("filename")), ()))
        places = numbers if len(numbers) == len(stack.caches) else range(len(stack.caches))
        layers = [new for new, old in zip(places, stack.caches, strict=True) if old in window["layers"]]
        changed["sliding_window"] = dict(window) | {"layers": layers}
    return dict(section) | changed


def _stack(section: Mapping[str, Any], stacks: Sequence[Kept]) -> Kept | None:
    """The stack of the file that a section names: where that has several, the one with caches."""
    held = [stack for stack in stacks if section.get("filename") in stack.files]
    cached = [stack for stack in held if stack.cached]
    found = held if len(held) == 1 else cached
    return found[0] if len(found) == 1 else None


def cache_numbers(section: Mapping[str, Any], names: Collection[str]) -> list[int]:
    """The numbers of the caches among a file's inputs, by the section's pattern for their names."""
    known = section.get("inputs")
    patterns = [known.get(key) for key in PAST_NAMES] if isinstance(known, Mapping) else []
    pattern = next((one for one in patterns if isinstance(one, str) and "%d" in one), "")
    before, _, after = pattern.partition("%d")
    found = (re.fullmatch(re.escape(before) + r"(\d+)" + re.escape(after), name) for name in names)
    return sorted(int(match[1]) for match in found if pattern and match)


def broken_names(
    config: Mapping[str, Any], files: Mapping[str, tuple[Collection[str], Collection[str]]]
) -> Iterator[str]:
    """What `genai_config.json` names and the folder lacks; `files` are each file's inputs and outputs."""
    for place, section in _named_files(config.get("model"), "model"):
        name = section["filename"]
        if name not in files:
            yield f"genai_config.json names {name} ({place}.filename), and that is not there"
            continue
        for side, names in zip(("inputs", "outputs"), files[name], strict=True):
            told = section.get(side)
            for key, value in told.items() if isinstance(told, Mapping) else ():
                if key in _NEEDED and isinstance(value, str) and not _is_there(value, names):
                    yield (
                        f"genai_config.json says that {name} has {value} ({place}.{side}.{key}), "
                        "and there is none of that name"
                    )


def _named_files(config: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All parts of the config that name an .onnx file, and where they stand."""
    if isinstance(config, list):
        for number, part in enumerate(config):
            yield from _named_files(part, f"{place}.{number}")
    elif isinstance(config, Mapping):
        if str(config.get("filename", "")).endswith(".onnx"):
            yield place, config
        for key, part in config.items():
            yield from _named_files(part, f"{place}.{key}")


def _is_there(pattern: str, names: Collection[str]) -> bool:
    """Whether a name, or one of a pattern, is among `names`; what has no caches needs no names for them."""
    before, numbered, after = pattern.partition("%d")
    if not numbered:
        return pattern in names
    if not any(name.startswith(("past", "present")) for name in names):
        return True
    return any(re.fullmatch(re.escape(before) + r"\d+" + re.escape(after), name) for name in names)
