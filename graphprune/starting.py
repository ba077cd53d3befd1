"""Start ONNX Runtime on a model, with the providers that are asked for and no others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from graphprune.errors import LoadError
from graphprune.settings import PROVIDERS, Settings, full_name, short_name

# With it set to "1", ONNX Runtime 1.24 and later tells which nodes each provider was given.
RECORD = "session.record_ep_graph_assignment_info"
# Messages of the runtime up to so many characters are said whole.
_SHORT = 400

T = TypeVar("T")

log = logging.getLogger(__name__)


def first_to_start(settings: Settings, name: str, begin: Callable[[tuple[str, ...]], T]) -> T:
    """What `begin` makes of the first of the settings' choices of providers that starts.

    Those that do not are logged. Raises what `begin` raises for the last one, and `RunError`.
    """
    choices = settings.choices()
    for providers in choices[:-1]:
        try:
            return begin(providers)
        except LoadError as error:
            log.warning("%s: the provider %s does not start: %s", name, providers[0], error)
    return begin(choices[-1])


def create(
    path: Path, options: Any, *, settings: Settings, providers: tuple[str, ...], data: bytes | None = None
) -> Any:
    """ONNX Runtime's session of a file, or of `data` made from it.

    Raises `LoadError` where it does not load, or a provider does not start.
    """
    import onnxruntime as ort

    try:
        runtime = ort.InferenceSession(
            data or str(path), options, providers=_with_options(settings, providers), enable_fallback=0
        )
    except Exception as error:  # the runtime's own exceptions share no public base
        raise LoadError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
    runtime.disable_fallback()
    started = {short_name(one) for one in runtime.get_providers()}
    for one in providers:
        if one not in started:
            raise LoadError(
                f"{path}: the provider {one!r} is installed and does not start: see that its driver and "
                "libraries are there, in the versions that this onnxruntime was built for"
            )
    return runtime


def _with_options(settings: Settings, providers: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """The providers by their full names, with the options that are given and those of the cache."""
    given = {short_name(name): options for name, options in settings.provider_options.items()}
    found = []
    for one in providers:
        options = dict(given.get(one, {}))
        if settings.cache is not None and one in PROVIDERS:
            caches = PROVIDERS[one].caches
            options = {key: value.format(settings.cache) for key, value in caches.items()} | options
        found.append((full_name(one), options))
    return found


def given_nodes(runtime: Any) -> dict[str, dict[str, int]]:
    """How many nodes of each op every provider was given."""
    asked = runtime.get_session_options().get_session_config_entry
    try:
        recorded = asked(RECORD) == "1" and hasattr(runtime, "get_provider_graph_assignment_info")
    except RuntimeError:  # it was not set
        recorded = False
    found: dict[str, Counter[str]] = {}
    for part in runtime.get_provider_graph_assignment_info() if recorded else ():
        found.setdefault(short_name(part.ep_name), Counter()).update(n.op_type for n in part.get_nodes())
    return {provider: dict(ops.most_common()) for provider, ops in found.items()}


def first_line(error: Exception) -> str:
    """What an exception of the runtime says, in one line: all of it if it is short, else its first line."""
    text = str(error).strip()
    whole = " ".join(text.split())
    return (whole if len(whole) <= _SHORT else next(iter(text.splitlines()), "")) or type(error).__name__
