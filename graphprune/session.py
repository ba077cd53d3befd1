"""ONNX Runtime sessions for the files of a bundle, with errors that say which file and what it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import RunError
from graphprune.settings import PROVIDERS, Settings, session_options, short_name
from graphprune.slots import cache_slot
from graphprune.starting import RECORD, create, first_line, first_to_start, given_nodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

# onnxruntime's names of element types, as far as models take them as inputs
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_SHOWN_OPS = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Session:
    """One loaded file: its name in the bundle, and what it takes and gives, in graph order.

    `optional` are inputs that have defaults, and the shapes that they take; `given` is what the settings
    give such inputs at every run. `settings` are those that it was opened with, `providers` the short
    names of those that started, the CPU's last. `nodes` has for each provider how many nodes of each
    op it was given; it is empty where all run on the CPU, and where ONNX Runtime is older than 1.24,
    which does not tell.
    """

    name: str
    runtime: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Settings = field(default_factory=Settings)
    providers: tuple[str, ...] = ("cpu",)
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    optional: Mapping[str, tuple[int | str | None, ...]] = field(default_factory=dict)
    given: Feeds = field(default_factory=dict)

    @property
    def pasts(self) -> int:
        """How many KV caches it takes."""
        return sum(bool(cache_slot(name, "past")) for name in self.inputs)

    @property
    def reads_earlier(self) -> bool:
        """Whether it takes what another file may have put out: an encoder's states, a cache."""
        return self.pasts > 0 or any(name.startswith("encoder_") for name in self.inputs)

    @property
    def device(self) -> tuple[str, int]:
        """Where the preferred provider keeps tensors, by ONNX Runtime's name, and the device's number."""
        preferred = self.providers[0]
        kind = PROVIDERS[preferred].device if preferred in PROVIDERS else "cpu"
        given = {short_name(name): options for name, options in self.settings.provider_options.items()}
        number = given.get(preferred, {}).get("device_id", "0")
        return kind, int(number) if kind != "cpu" and number.isdigit() else 0

    @property
    def on_cpu(self) -> Mapping[str, int]:
        """How many nodes of each op run on the CPU although another provider is preferred."""
        return self.nodes.get("cpu", {}) if self.providers[0] != "cpu" else {}

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these inputs, ready to be repeated and timed.

        With the setting `binding` the inputs are on the device already and the outputs, `OrtValue`s, stay
        there; the run waits until they are there. Raises `RunError` where an input is missing.
        """
        given = self.taken(feeds)
        if self.settings.binding:
            return self._bound(given)
        return lambda: self.runtime.run(None, given)

    def _bound(self, feeds: Feeds) -> Callable[[], object]:
        kind, number = self.device
        binding = self.runtime.io_binding()
        try:
            for name, value in as_values(feeds, kind, number).items():
                binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, kind, number)
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.name}: cannot be bound to {kind}: {first_line(error)}") from error

        def once() -> object:
            self.runtime.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return binding.get_outputs()

        return once

    def taken(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """What of `feeds` the runtime is given: all inputs, and the optional ones that are there.

        Raises `RunError` where an input is missing, or an optional one does not fit.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise RunError(f"{self.name}: inputs without a value: {', '.join(missing)}")
        optional = [name for name in self.optional if name in feeds]
        for name in optional:
            self._require_fit(name, feeds[name])
        return {name: feeds[name] for name in self.inputs} | {
            **self.given, **{name: feeds[name] for name in optional}
        }  # fmt: skip

    def _require_fit(self, name: str, array: NDArray[Any]) -> None:
        """Raise `RunError` where an array has not the shape that an optional input takes."""
        wanted, found = self.optional[name], array.shape
        fits = len(wanted) == len(found) and all(
            a == b for a, b in zip(wanted, found, strict=True) if isinstance(a, int)
        )
        if not fits:
            takes = ", ".join("any" if one is None else str(one) for one in wanted)
            raise RunError(f"{self.name}: {name} takes [{takes}] values, and {[*found]} were given")

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Run once: all outputs by name. Inputs beyond the model's are left out.

        Raises `RunError` where an input is missing or the runtime refuses one.
        """
        given = self.taken(feeds)
        try:
            values = self.runtime.run(None, given)
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.name}: {first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def cast(self, name: str, array: NDArray[Any]) -> NDArray[np.generic]:
        """`array` in the element type that the input `name` takes."""
        return array.astype(self.element_type(name) or array.dtype, copy=False)

    def element_type(self, name: str) -> str | None:
        """Numpy's name for the element type that the input `name` takes; None where numpy has none."""
        inputs = [*self.runtime.get_inputs(), *self.runtime.get_overridable_initializers()]
        kind = next(one.type for one in inputs if one.name == name)
        return _TYPES.get(kind)


def as_values(feeds: Feeds, kind: str = "cpu", number: int = 0) -> dict[str, Any]:
    """Arrays as ONNX Runtime's own values on a device.

    An optional input cannot be bound but as such a value: by its name alone the runtime does not find it.
    """
    import numpy as np
    import onnxruntime as ort

    make = ort.OrtValue.ortvalue_from_numpy
    return {name: make(np.ascontiguousarray(array), kind, number) for name, array in feeds.items()}


def open_session(path: Path, name: str, settings: Settings | None = None) -> Session:
    """Load one file, called `name`; what does not run on the provider that is asked for is logged.

    Raises `LoadError`, `RunError` where a provider or a level does not exist, `SaveError` where the
    optimized model cannot be kept.
    """
    settings = settings or Settings()
    return first_to_start(settings, name, lambda providers: start(path, name, settings, providers))


def start(path: Path, name: str, settings: Settings, providers: tuple[str, ...]) -> Session:
    """As `open_session`, with just these providers."""
    from graphprune.optimized import optimized

    options, model = session_options(settings), path
    compiles = any(one in PROVIDERS and PROVIDERS[one].caches for one in providers)
    if settings.cache is not None and not compiles and path.suffix == ".onnx":
        bound = partial(create, settings=settings, providers=providers)
        model = optimized(path, settings, settings.cache, providers, bound)
        options.graph_optimization_level = session_options(
            replace(settings, level="disabled")
        ).graph_optimization_level
    if providers != ("cpu",):
        options.add_session_config_entry(RECORD, "1")
    runtime = create(model, options, settings=settings, providers=providers)
    runtime._model_path = str(path)  # inputs are made from what the original says of them
    return opened(runtime, name, settings)


def opened(runtime: Any, name: str, settings: Settings) -> Session:
    """The `Session` around a runtime; logs which nodes fell to the CPU."""
    session = Session(
        name,
        runtime,
        tuple(one.name for one in runtime.get_inputs()),
        tuple(one.name for one in runtime.get_outputs()),
        settings,
        tuple(short_name(one) for one in runtime.get_providers()),
        given_nodes(runtime),
        {one.name: tuple(one.shape) for one in runtime.get_overridable_initializers()},
        _given(runtime, settings),
    )
    if session.providers[0] != "cpu":
        _tell(session)
    return session


def _given(runtime: Any, settings: Settings) -> Feeds:
    """The mask of a model with gates where the settings name blocks that do not run."""
    if not settings.skip:
        return {}
    import numpy as np

    from graphprune.gates import MASK, mask_without, read_gates

    gates = read_gates(runtime.get_modelmeta().custom_metadata_map)
    return {MASK: np.array(mask_without(gates, settings.skip))} if gates else {}


def _tell(session: Session) -> None:
    preferred = session.providers[0]
    if not session.nodes:
        log.warning(
            "%s runs on %s; which of its nodes fell to the CPU is told by onnxruntime 1.24 and later only",
            session.name, preferred,
        )  # fmt: skip
    elif session.on_cpu:
        count, total = sum(session.on_cpu.values()), sum(sum(ops.values()) for ops in session.nodes.values())
        ops = [f"{count} {op}" for op, count in session.on_cpu.items()]
        more = f" and {len(ops) - _SHOWN_OPS} more kinds" if len(ops) > _SHOWN_OPS else ""
        log.warning(
            "%s: %d of %d nodes run on the CPU, not on %s: %s%s",
            session.name, count, total, preferred, ", ".join(ops[:_SHOWN_OPS]), more,
        )  # fmt: skip


def open_sessions(path: str | Path, settings: Settings | None = None) -> tuple[Session, ...]:
    """Sessions for every file of a bundle, those first whose outputs others take as inputs.

    Raises `LoadError`, also where the files do not belong together.
    """
    return in_turn(open_session(file, name, settings) for file, name in runnable(path))


def runnable(path: str | Path) -> tuple[tuple[Path, str], ...]:
    """The files of a bundle that can be opened, with their names: `.onnx` files, or packaged `.ort` ones.

    Raises `LoadError`, also where they do not belong together.
    """
    from graphprune.bundle import load
    from graphprune.fileset import require_set
    from graphprune.ortformat import packaged

    files = packaged(path)
    if files:
        return files
    bundle = load(path)
    require_set(bundle)
    return tuple((file.path, file.name) for file in bundle.files)


def in_turn(sessions: Iterable[Session]) -> tuple[Session, ...]:
    """The sessions of a bundle's files, those first whose outputs others take as inputs."""
    return tuple(sorted(sessions, key=_turn))


def _turn(session: Session) -> tuple[bool, int]:
    """Encoders run before what reads their output, a decoder without past before one with it."""
    return session.reads_earlier, session.pasts
