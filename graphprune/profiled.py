"""A session whose kernels are timed, and can be followed back to the nodes of the file that it runs.

ONNX Runtime is given a copy of the model in which names are tags (`tagging.py`). It is asked for its
profile and for the graph that it made of the model; the weights in that graph are of no use here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune.attribution import attribute
from graphprune.dataflow import has_subgraph
from graphprune.errors import LoadError, RunError
from graphprune.kernels import SessionRun, distinct, read_runs
from graphprune.scopes import Scope
from graphprune.session import Session, create, first_line, opened
from graphprune.settings import session_options
from graphprune.tagging import Trail, follow, tag
from graphprune.workload import Shape, Work, work

if TYPE_CHECKING:
    from graphprune.architecture import Architecture
    from graphprune.attribution import Place
    from graphprune.bundle import ModelFile
    from graphprune.kernels import Kernel
    from graphprune.settings import Settings

_WEIGHTS = "weights"
# Weights below this stay in the saved graph.
_SMALL_BYTES = "1024"


@dataclass(frozen=True, eq=False)
class Profiled:
    """One file's session, profiled from its start, and the graph that it really runs.

    `nodes` are the optimized graph's nodes by the names that the profile calls them, `places` says
    where they belong; `blocks` are the ids of all blocks, in the model's order.
    """

    session: Session
    trail: Trail
    nodes: Mapping[str, ir.Node]
    places: Mapping[str, Place]
    blocks: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many kernels one call runs, at most, loops aside."""
        return len(self.nodes)

    def finish(self) -> Iterator[SessionRun]:
        """End the profile, and read its runs: all calls of the session so far. Raises `RunError`."""
        try:
            path = Path(self.session.runtime.end_profiling())
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.session.name}: no profile was written: {first_line(error)}") from error
        hosts = {name for name, node in self.nodes.items() if has_subgraph(node)}
        return read_runs(path, hosts)

    def work(self, kernel: Kernel, known: dict[tuple[str, tuple[Shape, ...]], Work]) -> Work:
        """What a kernel computes and moves; `known` keeps what was worked out before."""
        key = (kernel.node, (*kernel.inputs, *kernel.outputs))
        if key not in known:
            node = self.nodes.get(kernel.node)
            known[key] = Work(0, kernel.moved)
            if node is not None:
                known[key] = work(node, kernel.inputs, kernel.outputs, kernel.moved)
        return known[key]


def open_profiled(file: ModelFile, architecture: Architecture, folder: Path, settings: Settings) -> Profiled:
    """Load a copy of `file` with a profile; what ONNX Runtime writes goes to `folder`, which is made.

    `architecture` was recovered from the file's model. Raises `LoadError`, `OSError`.
    """
    folder.mkdir()
    scope = Scope.of(architecture.model)
    optimized = folder / "optimized.onnx"
    session = _open(file, _options(folder, optimized, settings), settings)
    trail = Trail.of(scope)
    order = Scope.of(_read(optimized, file)).order
    # ONNX Runtime never runs a Constant: it is an initializer by then.
    running = [node for node in order if node.op_type != "Constant"]
    nodes = dict(zip(distinct(node.name or "" for node in running), running, strict=True))
    found = follow(order, trail, attribute(architecture, scope))
    places = {name: found[node] for name, node in nodes.items() if node in found}
    blocks = tuple(dict.fromkeys(block.id for block in architecture.blocks))
    return Profiled(session, trail, nodes, places, blocks)


def _read(path: Path, file: ModelFile) -> ir.Model:
    try:
        return ir.load(path)
    except Exception as error:  # onnx_ir's and protobuf's
        raise LoadError(f"{file.path}: ONNX Runtime's optimized graph cannot be read: {error}") from error


def _options(folder: Path, optimized: Path, settings: Settings) -> Any:
    options = session_options(settings)
    options.log_severity_level = 4  # it warns that a graph in its own layouts is not portable
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(optimized)
    if os.name == "posix":  # elsewhere the weights take place for a while
        (folder / _WEIGHTS).symlink_to(os.devnull)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", _WEIGHTS),
        ("session.optimized_model_external_initializers_min_size_in_bytes", _SMALL_BYTES),
        ("session.model_external_initializers_file_folder_path", str(_anchor(folder))),
    ):
        options.add_session_config_entry(key, value)
    return options


def _anchor(path: Path) -> Path:
    """The root of the file system: external weights are named from there, since they lie anywhere."""
    return Path(path.absolute().anchor)


def _open(file: ModelFile, options: Any, settings: Settings) -> Session:
    (providers, *_) = settings.choices()
    runtime = create(file.path, options, settings=settings, providers=providers, data=_tagged(file))
    runtime._model_path = str(file.path)  # where inputs are made from what the file says of them
    return opened(runtime, file.name, settings)


def _tagged(file: ModelFile) -> bytes:
    """The model with tags for names, external weights by their paths from the root."""
    model = file.model.clone()
    tag(model)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _from_root(value.const_value)
    try:
        data: bytes = ir.to_proto(model).SerializeToString()
    except ValueError as error:
        raise LoadError(f"{file.path}: too large to be profiled with its weights inside: {error}") from error
    return data


def _from_root(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same tensor, its file named from the root of the file system."""
    path = Path(tensor.path).absolute()
    place = path.relative_to(path.anchor).as_posix()
    return ir.ExternalTensor(
        place, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
    )
