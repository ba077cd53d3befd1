"""Where exits can stand: the streams between layers, the samples, and what heads read of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import itemgetter

import onnx_ir as ir

from graphprune.architecture import Architecture, Stack
from graphprune.constants import constant_shape, small_integers
from graphprune.dataflow import SKIP_NORMS
from graphprune.errors import EditError
from graphprune.shapes import Shapes
from graphprune.surgery.excerpt import Batch, Excerpt
from graphprune.surgery.exitfile import Heads, Pool
from graphprune.surgery.layers import LAYOUTS, layer_end
from graphprune.surgery.shapetrace import ELEMENTWISE, MATRIX_PRODUCTS
from graphprune.surgery.sizes import release_shapes
from graphprune.surgery.surety import as_float, pooled, token_weights
from graphprune.surgery.values import current, sort
from graphprune.surgery.writing import Writer

RANK = 3
_LATEST = 2**31 - 1
# Inputs that are 0 where there is padding, by the names that exporters give them.
_MASKS = ("attention_mask", "input_mask")
_TOKENWISE = ELEMENTWISE | MATRIX_PRODUCTS | SKIP_NORMS | {"Constant"}


def why_no_exits(architecture: Architecture, stack: Stack, *, by_rows: bool) -> str:
    """Why a stack can have no exits; empty where it can. Changes nothing."""
    model = architecture.model
    if stack.graph is not model.graph:
        return "it is in a subgraph, and exits stand in the main graph"
    if model.graph.opset_imports.get("", 1) < 11:
        return f"exits need opset 11, and the model has {model.graph.opset_imports.get('', 1)}"
    shapes = Shapes(model)
    dims = {shapes.of(layer.blocks[-1].stream_out) for layer in stack.layers} - {None}
    if any(dim is not None and len(dim) != RANK for dim in dims):
        return f"its stream has not the axes [batch, tokens, width], but {list(dims.pop() or ())}"
    widths = {constant_shape(norm.scale) for block in stack.blocks for norm in block.norms}
    if any(dim is not None and (dim[1],) in widths and isinstance(dim[2], str) for dim in dims):
        return "its stream has the width before the tokens, and not behind them"
    batch = _batch_of(model.graph)
    if by_rows and not isinstance(batch, str):
        return (
            f"the model has no batch axis that is free: its first is {batch}; the batch mode 'all' needs none"
        )
    if by_rows and any(dim is not None and dim[0] != batch for dim in dims):
        return f"its stream begins with '{(dims.pop() or ('',))[0]}', and not with the batch axis '{batch}'"
    return ""


def _batch_of(graph: ir.Graph) -> str | int | None:
    """What the batch axis is called: the first of the first input."""
    first = next(
        (v for v in graph.inputs if not v.is_initializer() and v.shape is not None and len(v.shape)), None
    )
    if first is None or first.shape is None:
        return None
    dim = first.shape[0]
    return dim if isinstance(dim, int) else dim.value


@dataclass(frozen=True, eq=False)
class Site:
    """A stack that gets exits. `streams[k]` is the stream when k layers have run.

    `main` are the new nodes of the main graph, `weights` among them what tokens count for in pooling, where
    heads have no If of their own.
    """

    model: ir.Model
    stack: Stack
    heads: Heads
    streams: tuple[ir.Value, ...]
    batch: Batch
    mask: ir.Value | None
    scores: ir.Value | None
    main: Writer
    weights: dict[Pool, ir.Value] = field(default_factory=dict)

    @staticmethod
    def of(architecture: Architecture, stack: Stack, heads: Heads) -> Site:
        """Prepare a stack: fused norms at the ends of layers come apart, sizes are read off what stays."""
        graph = architecture.model.graph
        for block in stack.blocks:
            release_shapes(block.nodes, block)
        streams = (current(next(stack.blocks).stream_in), *(layer_end(layer) for layer in stack.layers))
        turned = next(
            (v.producer() for v in streams if (m := v.producer()) is not None and m.op_type in LAYOUTS), None
        )
        if turned is not None:
            raise EditError(
                f"the stream of '{stack.name}' has not the axes [batch, tokens, width] everywhere: node "
                f"'{turned.name}' ({turned.op_type}) turns them"
            )
        sort(graph)
        batch = _batch_of(graph)
        scores = next((v for v in graph.outputs if v.name == "logits"), None)
        return Site(
            architecture.model, stack, heads, streams,
            Batch.of(graph, batch if isinstance(batch, str) else ""), _mask_of(graph, stack), scores,
            Writer(graph.opset_imports.get("", 1)),
        )  # fmt: skip

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @property
    def layers(self) -> int:
        """How many layers the stack has."""
        return len(self.streams) - 1

    @property
    def by_rows(self) -> bool:
        """Whether samples leave a batch one by one."""
        return self.heads.batch_mode == "per-sample"

    @cached_property
    def kind(self) -> ir.DataType:
        """What the stream is made of: stated, or the same as the scale of a norm of it."""
        scales = (norm.scale for block in self.stack.blocks for norm in block.norms)
        kinds = (value.dtype for value in (*self.streams, *scales) if value is not None)
        return next((kind for kind in kinds if kind is not None), ir.DataType.FLOAT)

    def writer(self) -> Writer:
        """Nodes for a subgraph."""
        return Writer(self.main.opset)

    def excerpt(self, write: Writer, after: int, stream: ir.Value, rows: ir.Value | None) -> Excerpt:
        """What runs behind `after` layers on a given stream."""
        start = self.streams[after]
        left = f"{self.batch.name}_after_{after}"
        alike = {*self._alike(after)} - {start}
        found = Excerpt(self.graph, self.batch, write, {start: stream}, stream, alike, rows, left)
        if stream.shape is None and rows is not None:
            stream.type, stream.shape = start.type, found.shape(start.shape)
        return found

    def presents(self, after: int, until: int) -> list[tuple[int, ir.Value]]:
        """The keys and values that these layers put out, each with the number of its layer."""
        blocks = (
            (place, block) for place in range(after, until) for block in self.stack.layers[place].blocks
        )
        outputs = ((place, v) for place, block in blocks for cache in block.caches for v in cache.outputs)
        found = ((place, current(value)) for place, value in outputs)
        return [(place, value) for place, value in found if value.is_graph_output()]

    def passed(
        self, write: Writer, stream: ir.Value, presents: Iterable[tuple[int, ir.Value]]
    ) -> list[ir.Value]:
        """The keys and values of layers that a stream is passed by, and reaches as it is."""
        found: list[ir.Value] = []
        for place, values in groupby(presents, key=itemgetter(0)):
            known = dict.fromkeys(self._alike(place + 1), stream)
            found += Excerpt(self.graph, self.batch, write, known, stream)(*(value for _, value in values))
        return found

    def _alike(self, after: int) -> Iterator[ir.Value]:
        """The streams that there are up to a boundary."""
        blocks = (block for layer in self.stack.layers[:after] for block in layer.blocks)
        inner = (current(value) for block in blocks for value in (block.stream_in, block.stream_out))
        for value in (*self.streams[: after + 1], *inner):
            maker = value.producer()
            if maker is None or maker.op_type not in LAYOUTS:
                yield value

    def pooled(self, excerpt: Excerpt, stream: ir.Value, pool: Pool | None) -> ir.Value:
        """One vector for each sample of a value [n, tokens, d]."""
        pool = pool or "mean"
        if self.mask is None:
            return pooled(excerpt.write, stream, None, pool)
        if self.heads.guarded:
            return pooled(excerpt.write, stream, self._weights(excerpt, pool), pool)
        if pool not in self.weights:
            start = self.excerpt(self.main, self.heads.exits[0].after, self._first, None)
            self.weights[pool] = self._weights(start, pool)
        weights = self.weights[pool]
        if excerpt.rows is not None:
            weights = excerpt.write("Gather", weights, excerpt.rows)
        return pooled(excerpt.write, stream, weights, pool)

    @property
    def _first(self) -> ir.Value:
        return self.streams[self.heads.exits[0].after]

    def _weights(self, excerpt: Excerpt, pool: Pool) -> ir.Value:
        """What tokens count for; a mask that tells of past ones, too, ends with those of the stream."""
        assert self.mask is not None
        write, mask = excerpt.write, excerpt.input(self.mask)
        if any(block.caches for block in self.stack.blocks):
            start = write("Neg", write.sizes(excerpt.stream, 1, 2))
            mask = write("Slice", mask, start, write.constant([_LATEST]), write.constant([1]))
        return token_weights(write, mask, pool)

    def own_scores(self, excerpt: Excerpt, stream: ir.Value, pool: Pool | None) -> ir.Value:
        """What the model's own final norm and head make of a stream: float [n, C].

        Of scores of each token, those of one token are taken. Raises `EditError` where there are none.
        """
        if self.scores is None:
            raise EditError(
                "the model has no scores (an output 'logits') that could tell how sure it is: give the exits "
                "classifiers, or take the criterion 'saturation'"
            )
        write = excerpt.write
        tail = self.excerpt(write, self.layers, stream, excerpt.rows)
        tail.known.update((value, one) for value, one in excerpt.known.items() if value in self.batch.axes)
        dims = self.scores.shape
        if dims is None or len(dims) not in {RANK - 1, RANK}:
            raise EditError(
                f"the output '{self.scores.name}' has no axes [batch, classes], or a third for tokens"
            )
        if len(dims) == RANK - 1:
            return as_float(write, tail(self.scores)[0])
        if pool == "mean":
            raise EditError(
                f"'{self.scores.name}' has scores for each token: a pool of 'last' or 'first' is needed"
            )
        pool = pool or "last"
        if all(_is_tokenwise(node) for node in tail.needed([self.scores])):
            one = write.shaped(self.pooled(excerpt, stream, pool), 0, 1, -1)
            picked = one if self.kind == ir.DataType.FLOAT else write("Cast", one, to=self.kind)
            tail = self.excerpt(write, self.layers, picked, excerpt.rows)
            return write.shaped(as_float(write, tail(self.scores)[0]), 0, -1)
        return self.pooled(excerpt, tail(self.scores)[0], pool)


def _is_tokenwise(node: ir.Node) -> bool:
    """Whether a node makes each token's result of this token alone."""
    if node.op_type == "ReduceMean":
        axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else None
        given = small_integers(node.inputs[1]) if len(node.inputs) > 1 else None
        return list(axes or given or ()) in ([-1], [RANK - 1])
    return node.op_type in _TOKENWISE


def _mask_of(graph: ir.Graph, stack: Stack) -> ir.Value | None:
    """The input that tells which tokens of the stack are padding."""
    names = tuple(f"decoder_{name}" for name in _MASKS) if stack.reads_another else _MASKS
    known = {value.name: value for value in graph.inputs}
    mask = next((known[name] for name in names if name in known), None)
    return mask if mask is not None and mask.shape is not None and len(mask.shape) == RANK - 1 else None
