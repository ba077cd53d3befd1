"""A session whose kernels are timed, and can be followed back to the nodes of the file that it runs.

ONNX Runtime is given a copy of the model in which names are tags (`tagging.py`). It is asked for its
profile and for the graph that it made of the model; the weights in that graph are of no use here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune.attribution import UNREAD, Place, attribute
from graphprune.changed import open_bytes, serialized
from graphprune.compiled import Regions
from graphprune.dataflow import has_subgraph
from graphprune.errors import GraphpruneError, LoadError, RunError
from graphprune.kernels import SessionRun, distinct, read_runs
from graphprune.scopes import Scope
from graphprune.session import Session
from graphprune.settings import PROVIDERS, keep_optimized, session_options
from graphprune.starting import create, first_line, first_to_start
from graphprune.tagging import Trail, follow, tag
from graphprune.weights import weight_bytes
from graphprune.workload import Shape, Work, work

if TYPE_CHECKING:
    from graphprune.architecture import Architecture
    from graphprune.bundle import ModelFile
    from graphprune.kernels import Kernel
    from graphprune.settings import Settings

_WEIGHTS = "weights"
# A model with more than so many bytes of weights is not loaded a second time.
_TWICE = 1 << 30


@dataclass(frozen=True, eq=False)
class Profiled:
    """One file's session, profiled from its start, and the graph that it really runs.

    `bare` is a session of the same file without the profiler, if there is one. `nodes` are the optimized
    graph's nodes by the names that the profile calls them, `places` says where they belong; both are
    empty where a provider compiles, and ONNX Runtime does not give its graph away. `regions` has what was
    compiled; `blocks` are the ids of all blocks, in the model's order.
    """

    session: Session
    bare: Session | None
    trail: Trail
    nodes: Mapping[str, ir.Node]
    places: Mapping[str, Place]
    regions: Regions
    blocks: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many kernels one call runs, at most, loops aside."""
        return len(self.nodes) or len(self.trail.scope.order)

    def place(self, kernel: str) -> Place:
        """Where the kernel of this name belongs."""
        found = self.places.get(kernel) or self.regions.place(kernel)
        named = () if found or self.nodes else self.trail.named(kernel)
        places = (place for origin in named if (place := self.regions.places.get(origin)))
        return found or next(places, Place(UNREAD))

    def readable(self, kernel: str) -> str:
        """The kernel's name, with the original's names of nodes, and what was compiled into it."""
        return self.trail.readable(self.regions.described(kernel))

    def finish(self) -> Iterator[SessionRun]:
        """End the profile, and read its runs: all calls of the session so far. Raises `RunError`."""
        try:
            path = Path(self.session.runtime.end_profiling())
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.session.name}: no profile was written: {first_line(error)}") from error
        hosts = {name for name, node in self.nodes.items() if has_subgraph(node)}
        try:
            yield from read_runs(path, hosts)
        except RunError as error:
            raise RunError(f"{self.session.name}: {error}") from error

    def work(self, kernel: Kernel, known: dict[tuple[str, tuple[Shape, ...]], Work]) -> Work:
        """What a kernel computes and moves; `known` keeps what was worked out before."""
        key = (kernel.node, (*kernel.inputs, *kernel.outputs))
        if key not in known:
            node = self.nodes.get(kernel.node) or self._origin(kernel)
            known[key] = Work(0, kernel.moved)
            if node is not None:
                known[key] = work(node, kernel.inputs, kernel.outputs, kernel.moved)
        return known[key]

    def _origin(self, kernel: Kernel) -> ir.Node | None:
        """The original node that a kernel runs unchanged, where the optimized graph is not known."""
        named = () if self.nodes else self.trail.named(kernel.node)
        return next((node for node in named if node.op_type == kernel.op), None)


def open_profiled(file: ModelFile, architecture: Architecture, folder: Path, settings: Settings) -> Profiled:
    """Load a copy of `file` with a profile; what ONNX Runtime writes goes to `folder`, which is made.

    `architecture` was recovered from the file's model. Raises `LoadError`, `OSError`.
    """
    folder.mkdir()
    scope = Scope.of(architecture.model)
    trail, places = Trail.of(scope), attribute(architecture, scope)
    try:
        session, saved = _open(file, folder, settings)
    except LoadError as error:
        raise LoadError(trail.readable(str(error))) from error
    bare = _bare(file, session) if saved and weight_bytes(file.model) <= _TWICE else None
    nodes, found = _running(saved, file), dict[str, Place]()
    if nodes:
        placed = follow(tuple(nodes.values()), trail, places)
        found = {name: placed[node] for name, node in nodes.items() if node in placed}
    regions = Regions({}, places) if saved else Regions.of(session.runtime, trail, places)
    blocks = tuple(dict.fromkeys(block.id for block in architecture.blocks))
    return Profiled(session, bare, trail, nodes, found, regions, blocks)


def _running(saved: Path | None, file: ModelFile) -> dict[str, ir.Node]:
    """The nodes of the optimized graph by the names that they run under, in the order of `Scope`."""
    order = Scope.of(_read(saved, file)).order if saved else ()
    # ONNX Runtime never runs a Constant: it is an initializer by then.
    running = [node for node in order if node.op_type != "Constant"]
    return dict(zip(distinct(node.name or "" for node in running), running, strict=True))


def _read(path: Path, file: ModelFile) -> ir.Model:
    try:
        return ir.load(path)
    except Exception as error:  # onnx_ir's and protobuf's
        raise LoadError(f"{file.path}: ONNX Runtime's optimized graph cannot be read: {error}") from error


def _open(file: ModelFile, folder: Path, settings: Settings) -> tuple[Session, Path | None]:
    """The session of the tagged copy, and the graph that it runs, unless a provider compiles that."""
    tagged = file.model.clone()
    tag(tagged)
    data = serialized(file, tagged)

    def begin(providers: tuple[str, ...]) -> tuple[Session, Path | None]:
        graph = folder / "optimized.onnx"
        if not any(one in PROVIDERS and PROVIDERS[one].caches for one in providers):
            try:
                return open_bytes(file, data, _options(folder, settings, graph), settings, providers), graph
            except LoadError as error:
                if providers == ("cpu",):
                    raise _cause(file, folder, settings, error) from error
        # ONNX Runtime refuses to write a graph with compiled nodes.
        return open_bytes(file, data, _options(folder, settings, None), settings, providers), None

    return first_to_start(settings, file.name, begin)


def _cause(file: ModelFile, folder: Path, settings: Settings, error: LoadError) -> GraphpruneError:
    """Why a session with a profile does not load: where one without does, its files cannot be written."""
    try:
        create(file.path, session_options(settings), settings=settings, providers=("cpu",))
    except LoadError:
        return error
    place = folder.parent.parent
    return RunError(
        f"{file.path}: ONNX Runtime cannot write temporary files: see that {place} has room for them"
    )


def _bare(file: ModelFile, like: Session) -> Session:
    """A session of the same file and providers without the profiler."""
    options = session_options(like.settings)
    runtime = create(file.path, options, settings=like.settings, providers=like.providers)
    return replace(like, runtime=runtime)


def _options(folder: Path, settings: Settings, optimized: Path | None) -> Any:
    options = session_options(settings)
    options.log_severity_level = 4  # it warns that a graph in its own layouts is not portable
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    if optimized:
        keep_optimized(options, optimized, _WEIGHTS)
        weights = folder / _WEIGHTS
        if os.name == "posix" and not weights.is_symlink():  # elsewhere the weights take place for a while
            weights.symlink_to(os.devnull)
    return options
