"""Jobs for the passes, and what torch says must come out of each: `compare` runs a job both ways.

A job is a recipe, the same change told to the oracle, and what becomes of the KV caches. Which
blocks and layers it is about is drawn at random, from a seed.
"""

from __future__ import annotations

import copy
import functools
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

import graphprune as gp
from graphprune.pipeline import Pruned
from graphprune.prunepass import Skipped
from graphprune.recipe import parse
from tests.oracle import Oracle
from tools.zoo import NotExportableError
from tools.zoo_feeds import SLOT, Feeds, make_feeds

if TYPE_CHECKING:
    from graphprune.architecture import Architecture
    from graphprune.architecture import Block as FoundBlock
    from tools.zoo import Entry
    from tools.zoo_truth import Block, Stack

TOLERANCE = 1e-4
PAST = 3
# In the oracle a hook sees what the hooks before it left: what zeroes a module comes last.
CHANGES = (
    "refit_output", "refit_norm", "drop_bias", "drop_norm_bias", "drop_norm", "drop_activation",
    "drop_residual", "replace", "beside", "merge", "drop", "drop_layer", "order",
)  # fmt: skip
Change = tuple[str, tuple[object, ...], Mapping[str, object]]
CacheOf = tuple[int, str]  # a layer, and the attention whose cache it is
NOT_REORDERED = {"t5"}
# Here torch scales what a branch puts out after the module that the zoo names.
SCALED_BRANCHES = {"granite", "beit"}


@dataclass(frozen=True)
class Job:
    """Steps of a recipe, and the same in torch.

    `gone` are the KV caches that must be gone, `order` the layers as they run afterwards.
    """

    name: str
    steps: tuple[Mapping[str, object], ...]
    changes: tuple[Change, ...]
    gone: frozenset[CacheOf] = frozenset()
    order: tuple[int, ...] = ()

    def __add__(self, other: Job) -> Job:
        """Both in one recipe."""
        return Job(
            f"{self.name} + {other.name}", self.steps + other.steps, self.changes + other.changes,
            self.gone | other.gone, self.order or other.order,
        )  # fmt: skip

    @property
    def passes(self) -> list[str]:
        return [name for step in self.steps for name in step]


@dataclass(frozen=True)
class Site:
    """A block: where torch has it, and what recovery calls it."""

    stack: str
    layer: int
    truth: Block
    found: FoundBlock

    @property
    def id(self) -> str:
        return self.found.id

    @property
    def at(self) -> tuple[str, int]:
        return self.stack, self.layer

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(part.kind for part in self.truth.parts)


def sites(architecture: Architecture, stack: Stack) -> list[list[Site]]:
    """The blocks of a stack, layer by layer; stages of convolutions are read as one run of blocks."""
    named = [found for found in architecture.stacks if found.name == stack.name]
    chosen = named[:1] or [s for s in architecture.stacks if s.path == architecture.stacks[0].path]
    ids = iter([block for found in chosen for block in found.blocks])
    return [
        [Site(stack.name, number, block, next(ids)) for block in layer.blocks]
        for number, layer in enumerate(stack.layers)
    ]


@dataclass(frozen=True)
class Jobs:
    """Jobs on one stack, over layers and blocks that `random` draws."""

    oracle: Oracle
    layers: list[list[Site]]
    random: random.Random

    def every(self) -> list[Job]:
        """One job of each kind that the stack has something for."""
        layer = self.random.choice(self.layers)
        found = [job for site in layer for job in self.of_block(site)]
        return [*found, *self.of_layers()]

    def of_block(self, site: Site) -> Iterator[Job]:
        if site.truth.droppable:
            for kind in site.kinds:
                yield from self.drops(site, kind)
            scaled = self.oracle.entry.family.name in SCALED_BRANCHES
            if len(site.kinds) == 1 and site.kinds[0] != "conv" and site.truth.norm and not scaled:
                change = ("drop_residual", (*site.at, site.truth.kind), {})
                yield Job(f"drop_residual {site.id}", ({"drop_residual": site.id},), (change,))
        yield from self.norms(site)
        yield from self.parts(site)

    def drops(self, site: Site, kind: str) -> Iterator[Job]:
        name, options = _dropping(kind)
        if not name:
            return
        gone = frozenset({(site.layer, kind)})
        for norm in ("keep", "drop") if site.truth.placement == "post" else ("keep",):
            step = {name: {"blocks": site.id, "post_norm": norm, **options}}
            change = ("drop", (*site.at, kind), {"keep_norm": norm == "keep"})
            yield Job(f"{name} {site.id} {kind}, {norm} the norm", (step,), (change,), gone)

    def norms(self, site: Site) -> Iterator[Job]:
        """The norms of a block, if the zoo names all of them (parallel blocks may have two)."""
        if len(site.kinds) > 1 and self._norm_count(site) > 1:
            return
        for path, which, branch in (
            (site.truth.norm, "post" if site.truth.placement == "post" else "pre", False),
            (site.truth.branch_norm, "post", True),
        ):
            if path and not self._is_identity(site, path) and site.truth.placement is not None:
                step = {"drop_norm": {"blocks": site.id, "which": which}}
                change = ("drop_norm", (*site.at, site.truth.kind), {"branch": branch})
                yield Job(f"drop_norm {which} {site.id}", (step,), (change,))
        if site.truth.norm and not site.truth.branch_norm and self._bias(site, site.truth.norm):
            step = {"drop_bias": {"blocks": site.id, "roles": ["norm"]}}
            change = ("drop_norm_bias", (*site.at, site.truth.kind), {})
            yield Job(f"drop_bias norm {site.id}", (step,), (change,))

    def parts(self, site: Site) -> Iterator[Job]:
        for part in (part for part in site.truth.parts if part.kind != "conv"):
            if part.act:
                step = {"drop_activation": site.id}
                yield Job(f"drop_activation {site.id}", (step,), (("drop_activation", site.at, {}),))
            for role, path in part.roles.items():
                for one in _separable(site, role) if self._bias(site, path) else ():
                    step = {"drop_bias": {"blocks": site.id, "roles": [one]}}
                    change = ("drop_bias", (*site.at, one, part.kind), {})
                    yield Job(f"drop_bias {one} {site.id}", (step,), (change,))

    def of_layers(self) -> Iterator[Job]:
        """Whole layers go (one at random, the first, the last), change places, or run twice."""
        count = len(self.layers)
        if self.layers[0][0].truth.kind == "conv":
            yield from self.of_stages()
            return
        for number in dict.fromkeys((self.random.randrange(count), 0, count - 1)):
            yield self.drop_layer(number)
        name = self.layers[0][0].stack
        order = [*range(count)]
        while order == sorted(order):
            self.random.shuffle(order)
        if self.oracle.entry.family.name not in NOT_REORDERED:
            step = {"reorder_layers": {"order": ",".join(map(str, order)), "stack": name}}
            yield Job(f"reorder {order}", (step,), (("order", (name, order), {}),), order=tuple(order))
        twice = self.random.randrange(count)
        runs = sorted([*range(count), twice])
        step = {"repeat_layers": f"{name}.{twice}"}
        yield Job(f"repeat {twice}", (step,), (("order", (name, runs), {}),), order=tuple(runs))

    def drop_layer(self, number: int) -> Job:
        name = self.layers[0][0].stack
        step = {"drop_layers": f"{name}.{number}"}
        gone = frozenset({(number, "attention"), (number, "cross_attention")})
        return Job(f"drop_layers {number}", (step,), (("drop_layer", (name, number), {}),), gone)

    def of_stages(self) -> Iterator[Job]:
        """A layer of a convolutional net goes: recovery says which blocks make one."""
        by_layer: dict[str, list[Site]] = {}
        for site in (site for row in self.layers for site in row):
            by_layer.setdefault(site.id.rpartition(".")[0], []).append(site)
        stages = [layer.partition(".")[0] for layer in by_layer]
        for layer, inside in by_layer.items():
            alone = stages.count(layer.partition(".")[0]) == 1
            if not alone and all(site.truth.droppable for site in inside):
                changes = tuple(("drop", (*site.at, "conv"), {}) for site in inside)
                yield Job(f"drop_layers {layer}", ({"drop_layers": layer},), changes)

    def mixed(self) -> Iterator[Job]:
        """A recipe of many passes, each about blocks of its own: the numbers mean the model as it was."""
        if self.layers[0][0].truth.kind == "conv":
            last = {job.name.split(".")[0]: job for job in self.of_stages()}
            yield from [_together([*last.values()])] if last else []
            return
        layers = self.random.sample(self.layers, len(self.layers))
        jobs = [self.drop_layer(layers.pop()[0].layer)] if len(layers) > 2 else []
        chosen = [self.random.choice(layer) for layer in layers]
        drops = [job for site in chosen[:1] for kind in site.kinds[:1] for job in self.drops(site, kind)]
        others = [site for layer in layers for site in layer if site is not chosen[0]]
        rest = [job for site in others for job in self.of_block(site)]
        small = [job for job in rest if job.passes[0] not in {"drop_ffn", "drop_attention"}]
        jobs += [self.random.choice(drops), *self.random.sample(small, min(3, len(small)))]
        self.random.shuffle(jobs)
        yield _together(jobs)

    def _module(self, site: Site, path: str) -> Any:
        layer = next(s for s in self.oracle.entry.family.stacks if s.name == site.stack).layers[site.layer]
        return self.oracle.model.get_submodule(f"{layer.path}.{path}".rstrip("."))

    def _norm_count(self, site: Site) -> int:
        return sum("Norm" in type(module).__name__ for module in self._module(site, "").children())

    def _bias(self, site: Site, path: str) -> bool:
        return getattr(self._module(site, path), "bias", None) is not None

    def _is_identity(self, site: Site, path: str) -> bool:
        return type(self._module(site, path)).__name__ == "Identity"


def _together(jobs: Sequence[Job]) -> Job:
    return functools.reduce(operator.add, jobs)


def _separable(site: Site, role: str) -> tuple[str, ...]:
    """The roles of a packed projection: q, k and v, unless each head has its own three (GPT-NeoX, Falcon)."""
    if role != "qkv":
        return (role,)
    found = {bias.role for branch in site.found.branches for bias in branch.biases}
    return ("qkv",) if "qkv" in found else ("q", "k", "v")


def _dropping(kind: str) -> tuple[str, Mapping[str, object]]:
    if kind == "ffn":
        return "drop_ffn", {}
    if kind == "attention":
        return "drop_attention", {"which": "self"}
    if kind == "cross_attention":
        return "drop_attention", {"which": "cross"}
    return "", {}


@dataclass(frozen=True)
class Agreement:
    """How far the pruned file is from the changed torch model: |Δ| over max(1, |expected|), the worst output.

    `skipped` are the reasons why steps of the recipe did nothing; `moved` says how far the
    outputs are from those of the dense model.
    """

    worst: float
    skipped: tuple[str, ...] = ()
    moved: float = 0.0


@dataclass(frozen=True)
class Subject:
    """One exported file (or a dialect of one) and its torch model, untouched; `stem` is the file's name."""

    stem: str
    bundle: gp.Bundle
    oracle: Oracle
    session: ort.InferenceSession
    feeds: Feeds = field(repr=False)
    dense: Feeds = field(repr=False)

    @staticmethod
    def of(entry: Entry, file: Path) -> Subject:
        """Load the file and run it once. Raises `NotExportableError` where ONNX Runtime cannot run it.

        Some fused ops take one sequence at a time only.
        """
        problem = ""
        for batch in (2, 1):
            try:
                session = open_session(file)
                past = PAST if any(SLOT.match(value.name) for value in session.get_inputs()) else 0
                feeds = make_feeds(session, batch=batch, past=past)
                dense = run(session, feeds)
            except Exception as error:  # the runtime's own exceptions share no public base
                problem = str(error)
            else:
                return Subject(file.stem, gp.load(file), Oracle(entry), session, feeds, dense)
        raise NotExportableError(f"it does not run: {problem}")

    def jobs(self, stack: Stack, seed: int) -> Jobs:
        """Jobs on one of its stacks."""
        architecture = gp.inspect(self.bundle)[0].architecture
        return Jobs(self.oracle, sites(architecture, stack), random.Random(seed))

    def compare(self, job: Job, folder: Path) -> Agreement:
        """Prune the file, change the torch model, and compare all that both put out."""
        planned = gp.plan(self.bundle, parse({"passes": [dict(step) for step in job.steps]}))
        skipped = tuple(o.answer.reason for o in planned.outcomes if isinstance(o.answer, Skipped))
        if not planned.edits or skipped:  # then torch was asked for more than was done
            return Agreement(0.0, skipped)
        pruned = Pruned(planned.apply(), planned)
        session = open_session(pruned.save(folder / "pruned.onnx", run=False, overwrite=True))
        feeds = self._feeds(job)
        got = run(session, {v.name: feeds[self._before(v.name, job)] for v in session.get_inputs()})
        self._same_signature(job, session)
        expected = self._expected(job)
        pairs = [(v, expected.get(self._before(n, job))) for n, v in got.items() if self._comparable(n)]
        return Agreement(
            max(_distance(value, wanted) for value, wanted in pairs),
            skipped,
            max(float(np.abs(self.dense[n] - v).max()) for n, v in got.items() if not SLOT.match(n)),
        )

    def _expected(self, job: Job) -> Feeds:
        oracle = copy.deepcopy(self.oracle)
        for name, arguments, options in sorted(job.changes, key=lambda change: CHANGES.index(change[0])):
            getattr(oracle, name)(*arguments, **options)
        return oracle.run(self.stem, self._feeds(job))

    def _feeds(self, job: Job) -> Feeds:
        """The feeds, with pasts for layers that run once more."""
        feeds = dict(self.feeds)
        count = 1 + max((layer for name in feeds if (layer := _layer_of(name)) is not None), default=0)
        for name, value in self.feeds.items():
            layer = _layer_of(name)
            if layer is not None and layer + count < len(job.order):
                feeds[_numbered(name, layer + count)] = value[::-1] * np.asarray(0.7, value.dtype)
        return feeds

    def _before(self, name: str, job: Job) -> str:
        """The name that an input or output would have if no cache were gone."""
        layer = _layer_of(name)
        return name if layer is None else _numbered(name, self._left(job)[layer])

    def _left(self, job: Job) -> list[int]:
        """Of the layers as they run, the positions of those that have a cache left."""
        names = [value.name for value in (*self.session.get_inputs(), *self.session.get_outputs())]
        caches = {cache for name in names if (cache := _cache_of(name))}
        kept = {layer for layer, _ in caches - job.gone}
        order = job.order or range(1 + max((layer for layer, _ in caches), default=0))
        return [position for position, layer in enumerate(order) if layer in kept]

    def _same_signature(self, job: Job, session: ort.InferenceSession) -> None:
        """The inputs and outputs are those of before, in the same order, less the caches that are gone."""
        for before, after in (
            (self.session.get_inputs(), session.get_inputs()),
            (self.session.get_outputs(), session.get_outputs()),
        ):
            expected = self._in_order([v.name for v in before], job)
            assert [self._before(v.name, job) for v in after] == expected, job.name

    def _in_order(self, names: Sequence[str], job: Job) -> list[str]:
        """The signature that is to be, by the names of before: caches layer by layer, as these run."""
        caches = [name for name in names if _layer_of(name) == 0]
        order = job.order or range(1 + max((_layer_of(name) or 0 for name in names), default=0))
        runs = [
            _numbered(name, position)
            for position, layer in enumerate(order)
            for name in caches
            if _cache_of(_numbered(name, layer)) not in job.gone
        ]
        first = next((place for place, name in enumerate(names) if _layer_of(name) == 0), 0)
        others = [name for name in names if _layer_of(name) is None]
        return [*others[:first], *runs, *others[first:]]

    def _comparable(self, name: str) -> bool:
        """With a past, a merged decoder puts out dummies for the caches of cross-attention."""
        return not (self.stem.endswith("merged") and ".encoder." in name)


def _cache_of(name: str) -> CacheOf | None:
    """Which cache an input or output is of, if of any."""
    slot = SLOT.match(name)
    if slot is None:
        return None
    return int(slot[2]), "cross_attention" if slot[3].startswith("encoder.") else "attention"


def _layer_of(name: str) -> int | None:
    """The number of the layer whose cache an input or output is, if it is one."""
    slot = SLOT.match(name)
    return int(slot[2]) if slot else None


def _numbered(name: str, layer: int) -> str:
    """The same cache of another layer."""
    slot = SLOT.match(name)
    return f"{slot[1]}.{layer}.{slot[3]}" if slot else name


def _distance(value: np.ndarray, expected: np.ndarray | None) -> float:
    if expected is None:
        return 0.0
    if value.shape != expected.shape:
        return float("inf")
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def open_session(path: Path) -> ort.InferenceSession:
    """A quiet session of one thread, the graph run as it was written."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, feeds: Feeds) -> Feeds:
    """The outputs by name."""
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))
