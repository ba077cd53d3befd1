"""What recovery finds in a graph: stacks of layers of blocks, as frozen dataclasses.

Everything here points at live `onnx_ir` nodes and values of the graph that was read; nothing
is copied, and nothing here changes a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.macs import Macs

BlockKind = Literal["attention", "cross_attention", "ffn", "conv", "parallel", "other"]
ALL_KINDS: tuple[BlockKind, ...] = ("attention", "cross_attention", "ffn", "conv", "parallel", "other")
# Which program loads the result: it decides what may become of a KV cache.
Loader = Literal["optimum", "genai", "plain"]
NormPlacement = Literal["pre", "post", "sandwich", "none"]
NormKind = Literal["layer", "rms", "batch", "group", "other"]
NormRole = Literal["pre", "post", "branch_post", "q", "k", "inner"]
Role = Literal["q", "k", "v", "qkv", "o", "up", "gate", "up_gate", "down", "linear"]


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalization, one op or many.

    `input` is the value that is normalized, `output` the result. `scale` (γ) and `bias` (β)
    are the initializers of shape [width], where the norm has them. `fused_join` says that the
    norm sits in a `SkipLayerNormalization`, whose sum `input` then is (None where the sum is
    not an output of the node).
    """

    kind: NormKind
    role: NormRole
    nodes: tuple[ir.Node, ...]
    input: ir.Value | None
    output: ir.Value
    scale: ir.Value | None = None
    bias: ir.Value | None = None
    fused_join: bool = False


@dataclass(frozen=True, eq=False)
class Bias:
    """Where the bias of a linear enters: operand `index` of `node` (an Add, Gemm, BiasGelu, Attention, …).

    `start` and `stop` bound the elements of the last axis that belong to this role where the
    bias is packed for several (q, k and v in one vector); both None where it is all of it.
    """

    role: Role
    node: ir.Node
    index: int
    value: ir.Value
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True, eq=False)
class Linear:
    """A parametric linear map of a branch: MatMul, Gemm, Conv, or a quantized or packed form."""

    role: Role
    node: ir.Node
    weights: tuple[ir.Value, ...]


@dataclass(frozen=True, eq=False)
class Activation:
    """The nonlinearity of an FFN: `output` is an elementwise function of `input` alone.

    `bias` is set where one fused op (BiasGelu, FastGelu) adds it before the nonlinearity.
    """

    nodes: tuple[ir.Node, ...]
    input: ir.Value
    output: ir.Value
    bias: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class Cache:
    """One KV pair (or one stacked tensor) that a block reads and writes.

    The names are those that its graph inputs and outputs had when they were found.
    """

    kind: Literal["self", "cross"]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Branch:
    """One way from the stream back to it.

    `terms` are the operands that the branch adds to the sum at the join (mostly one value;
    a bias that is added after the join is a second one). `cache_macs` are those of its `macs` that
    are still done where the branch goes and the keys and values that it caches stay.
    """

    kind: BlockKind
    terms: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    linears: tuple[Linear, ...]
    biases: tuple[Bias, ...]
    activations: tuple[Activation, ...]
    norms: tuple[Norm, ...]
    macs: Macs
    cache_macs: Macs
    gated: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """A branch (two in a parallel block) with its join and its norms.

    `sums` are the Add-like nodes of the join: the one that meets the stream, and those that
    bring parallel branches together. `stream_in` is what the join adds to; `stream_out` what
    the next block reads: the join's output (pre-norm), or its norm's or activation's (post).
    `nodes` is all that goes when the block is dropped (norms that stay by default excluded).
    `tokens` are the sizes that number the tokens of its stream; empty where it has none.
    """

    id: str
    kind: BlockKind
    join: ir.Node
    sums: tuple[ir.Node, ...]
    stream_in: ir.Value
    stream_out: ir.Value
    branches: tuple[Branch, ...]
    norms: tuple[Norm, ...]
    placement: NormPlacement
    nodes: tuple[ir.Node, ...]
    parameters: int
    macs: Macs
    caches: tuple[Cache, ...] = ()
    droppable: bool = True
    reason: str = ""
    tokens: tuple[str | int, ...] = ()


@dataclass(frozen=True, eq=False)
class Layer:
    """The blocks that the model repeats as one, numbered from 0 in its stack."""

    index: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Stack:
    """A run of layers in one graph.

    `path` is "" for the main graph, else the way to the subgraph, such as
    `optimum::if/then_branch`. Copies of one stack (both branches of a merged decoder, the two
    bodies of a GreedySearch) carry the same `name`.
    """

    name: str
    path: str
    graph: ir.Graph
    layers: tuple[Layer, ...]

    @property
    def blocks(self) -> Iterator[Block]:
        """All blocks, in the order of the stream."""
        return (block for layer in self.layers for block in layer.blocks)

    @property
    def reads_another(self) -> bool:
        """Whether it has cross-attention: it reads what another stack (an encoder) puts out."""
        return any(block.kind == "cross_attention" for block in self.blocks)


@dataclass(frozen=True, eq=False)
class Declined:
    """A region that looked like a block and was not taken for one, and why."""

    nodes: tuple[ir.Node, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Architecture:
    """What was recovered from one model.

    `shared_weights` are initializers that more than one block reads; `shared_nodes` compute
    what more than one block reads and does not come out of the stream (masks, rotary tables,
    position biases). `numbering` are the stacks that selections count, where they are more than
    this file's: those of all files of a bundle, in the bundle's order. `loader` is the program that
    is to load what passes make of the model.
    """

    model: ir.Model
    stacks: tuple[Stack, ...]
    declined: tuple[Declined, ...] = ()
    final_norms: tuple[Norm, ...] = ()
    shared_weights: tuple[ir.Value, ...] = ()
    shared_nodes: tuple[ir.Node, ...] = ()
    numbering: tuple[Stack, ...] = ()
    loader: Loader = "plain"

    @property
    def blocks(self) -> Iterator[Block]:
        """All blocks of all stacks, copies included."""
        return (block for stack in self.stacks for block in stack.blocks)

    def stack_of(self, block: Block) -> Stack:
        """The stack that a block is in."""
        return next(stack for stack in self.stacks if any(block is one for one in stack.blocks))
