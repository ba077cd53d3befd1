"""How ONNX Runtime is to run a model: on which devices, with how many threads, optimized how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from graphprune.errors import RunError

Level = Literal["disabled", "basic", "extended", "layout", "all"]
Memory = Literal["fast", "lean"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Provider:
    """An execution provider: ONNX Runtime's name for it, the package with it, the kind of its memory.

    `caches` are its own options that make it keep what it compiles, with `{}` for the folder.
    """

    name: str
    package: str
    device: str = "cpu"
    caches: Mapping[str, str] = field(default_factory=dict)


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu", "cuda"),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", "onnxruntime-gpu", "cuda",
        {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "{}"},
    ),
    "directml": Provider("DmlExecutionProvider", "onnxruntime-directml", "dml"),
    "coreml": Provider(
        "CoreMLExecutionProvider", "onnxruntime (on macOS)", caches={"ModelCacheDirectory": "{}"}
    ),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino", caches={"cache_dir": "{}"}),
    "migraphx": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx", "cuda"),
    "qnn": Provider("QNNExecutionProvider", "onnxruntime-qnn"),
    "webgpu": Provider("WebGpuExecutionProvider", "onnxruntime-webgpu"),
    "xnnpack": Provider("XnnpackExecutionProvider", "a build of onnxruntime with XNNPACK"),
}  # fmt: skip
# What `auto` tries, the first that is there and starts. TensorRT would build engines for minutes.
AUTO = ("cuda", "tensorrt", "directml", "coreml", "openvino", "cpu")


@dataclass(frozen=True)
class Settings:
    """How to run a model.

    `providers` are short names (`cuda`) or ONNX Runtime's own, the preferred one first, or `auto` alone:
    the first of CUDA, TensorRT, DirectML, CoreML, OpenVINO and CPU that is there. What none of them
    takes runs on the CPU, and that is told. `threads` 0 leaves their number to ONNX Runtime. `level` is
    how far it optimizes. `memory` "lean" goes without its arena and without repacked weights: less memory,
    slower. With `binding` inputs and outputs stay on the device between timed runs. `cache` is a folder in
    which the optimized model is kept. `provider_options` are those of each provider, by its name. `skip` are
    the blocks and layers that do not run, of models that have gates (`insert_skips`).

    Raises `RunError` for what does not exist.
    """

    providers: tuple[str, ...] = ("cpu",)
    threads: int = 0
    level: Level = "all"
    memory: Memory = "fast"
    binding: bool = False
    cache: Path | None = None
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise RunError(
                f"there is no optimization level {self.level!r}: choose one of {', '.join(LEVELS)}"
            )
        if self.memory not in get_args(Memory):
            raise RunError(f"there is no memory setting {self.memory!r}: choose fast or lean")
        if self.threads < 0:
            raise RunError("the number of threads is 0 (ONNX Runtime chooses) or more")
        if not self.providers or ("auto" in self.providers and len(self.providers) > 1):
            raise RunError("name one or more providers, or auto alone")
        for name in self.provider_options:
            if self.providers != ("auto",) and short_name(name) not in map(short_name, self.providers):
                raise RunError(f"options are given for the provider {name!r}, which is not asked for")

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is pickled: read-only mappings cannot be."""
        options = {name: dict(given) for name, given in self.provider_options.items()}
        values = (self.providers, self.threads, self.level, self.memory, self.binding, self.cache, options)
        return Settings, (*values, self.skip)

    def choices(self) -> tuple[tuple[str, ...], ...]:
        """The providers to try, in turn, by their short names.

        Raises `RunError` where one that is asked for does not exist or is not installed.
        """
        there = installed()
        if self.providers == ("auto",):
            return tuple((name,) for name in AUTO if name in there)
        asked = tuple(dict.fromkeys(map(short_name, self.providers)))
        for name in asked:
            if name not in there:
                raise RunError(_not_there(name, there))
        return (asked,)


def installed() -> tuple[str, ...]:
    """The short names of the providers that the installed ONNX Runtime has, the CPU's last."""
    import onnxruntime as ort

    return tuple(short_name(name) for name in ort.get_available_providers())


def short_name(name: str) -> str:
    """`cuda` for `CUDAExecutionProvider`; a name that is not known here, as it is."""
    lowered = name.lower()
    return next((s for s, one in PROVIDERS.items() if lowered in (s, one.name.lower())), name)


def full_name(name: str) -> str:
    """ONNX Runtime's name of a provider."""
    known = PROVIDERS.get(short_name(name))
    return known.name if known else name


def session_options(settings: Settings) -> Any:
    """ONNX Runtime's `SessionOptions`. Raises `RunError` where this version lacks a level."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4 if settings.level in ("layout", "all") else 3
    options.intra_op_num_threads = settings.threads
    options.graph_optimization_level = _level(settings.level)
    if settings.memory == "lean":
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def keep_optimized(options: Any, graph: Path, weights: str) -> None:
    """Let a session write the graph that it runs to `graph`, and its weights to a file `weights` beside it.

    Weights under 1 KiB stay in the graph.
    """
    options.optimized_model_filepath = str(graph)
    for key, value in (("file_name", weights), ("min_size_in_bytes", "1024")):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)


def _level(level: Level) -> Any:
    import onnxruntime as ort

    name = {"all": "ENABLE_ALL", "disabled": "DISABLE_ALL"}.get(level, f"ENABLE_{level.upper()}")
    known = getattr(ort.GraphOptimizationLevel, f"ORT_{name}", None)
    if known is None:
        raise RunError(f"this version of ONNX Runtime ({ort.__version__}) has no level {level!r}")
    return known


def _not_there(name: str, there: tuple[str, ...]) -> str:
    known = PROVIDERS.get(name)
    if known is None:
        return f"there is no provider {name!r}: choose among {', '.join(PROVIDERS)}, or auto"
    return (
        f"the provider {name!r} is not in the installed onnxruntime, which has {', '.join(there)}: "
        f"install {known.package} in its place"
    )
