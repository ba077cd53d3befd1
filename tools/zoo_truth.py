"""What is true of a zoo model, told from its torch modules and never from an exported graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

PartKind = Literal["attention", "cross_attention", "ffn", "conv"]
BlockKind = Literal["attention", "cross_attention", "ffn", "conv", "parallel"]
Placement = Literal["pre", "post", "sandwich", "none"]


@dataclass(frozen=True)
class Part:
    """One branch of a block. All paths are torch submodules, relative to the layer.

    `output` puts out what the branch adds to the stream; `roles` names the linear maps
    (q, k, v, qkv, o, up, gate, up_gate, down); `act` is the activation's module, where it is one;
    """

    kind: PartKind
    output: str
    roles: dict[str, str] = field(default_factory=dict)
    act: str = ""


@dataclass(frozen=True)
class Block:
    """One join: its parts (two where attention and FFN are parallel), and its norms.

    `norm` is the norm before (pre, sandwich) or after the join (post); `branch_norm` the one on
    the branch's output (sandwich, or alone as in OLMo 2). `placement` None is not compared.
    """

    parts: tuple[Part, ...]
    placement: Placement | None
    norm: str = ""
    branch_norm: str = ""
    droppable: bool = True

    @property
    def kind(self) -> BlockKind:
        """The kind that recovery must report."""
        return self.parts[0].kind if len(self.parts) == 1 else "parallel"


@dataclass(frozen=True)
class Layer:
    """One layer: the torch path of its module and its blocks in the order of the stream.

    `call` counts the module's uses where layers share one (ALBERT), else 0.
    """

    path: str
    blocks: tuple[Block, ...]
    call: int = 0


@dataclass(frozen=True)
class Stack:
    """A run of layers; `files` are the exported files (by stem) that hold it."""

    name: str
    layers: tuple[Layer, ...]
    files: tuple[str, ...] = ("model",)


@dataclass(frozen=True)
class Family:
    """One architecture at a tiny size: what to build, how to export it, and what is true of it.

    `config` and `model` are class names of transformers; `tasks` optimum's task names, the first
    one for the fast suite; `ort_type` the `model_type` of ORT's transformer optimizer. `listed`
    families must work; the others show how far structure alone carries.
    """

    name: str
    config: str
    model: str
    options: dict[str, Any]
    stacks: tuple[Stack, ...]
    tasks: tuple[str, ...] = ("feature-extraction",)
    ort_type: str = "bert"
    modality: Literal["text", "seq2seq", "image", "audio", "clip", "speech"] = "text"
    listed: bool = True


def beyond(*families: Family) -> list[Family]:
    """Families that are not promised."""
    return [replace(family, listed=False) for family in families]


def repeat(name: str, path: str, count: int, *blocks: Block, files: tuple[str, ...] = ("model",)) -> Stack:
    """A stack of `count` equal layers; `{}` in `path` is the layer's number (none: weights are shared)."""
    shared = "{}" not in path
    layers = tuple(Layer(path.format(i), blocks, call=i if shared else 0) for i in range(count))
    return Stack(name, layers, files)


def stages(name: str, path: str, depths: tuple[int, ...], *blocks: Block) -> Stack:
    """Equal layers in several stages; both `{}` in `path` are filled: the stage, and the layer in it."""
    numbers = [(stage, i) for stage, depth in enumerate(depths) for i in range(depth)]
    return Stack(name, tuple(Layer(path.format(*number), blocks) for number in numbers))


def one(part: Part, placement: Placement | None, norm: str = "", branch_norm: str = "") -> Block:
    """A block of one branch."""
    return Block((part,), placement, norm, branch_norm)


def parallel(attention: Part, ffn: Part, norm: str) -> Block:
    """Attention and FFN that read one norm (or two) and meet the stream in one join."""
    return Block((attention, ffn), "pre", norm)


def heads(module: str, projections: str, out: str, kind: PartKind = "attention", output: str = "") -> Part:
    """An attention branch: the names of q, k and v (or of all in one) and of o, below `module`.

    `output` where something comes after o, such as a layer scale.
    """
    names = projections.split()
    roles = dict(zip(("q", "k", "v") if len(names) == 3 else ("qkv",), names, strict=True)) | {"o": out}
    return Part(kind, output or f"{module}.{out}", {role: f"{module}.{name}" for role, name in roles.items()})


def ffn(linears: str, act: str = "", output: str = "") -> Part:
    """An FFN branch from `"up=fc1 down=fc2"`."""
    roles = dict(pair.split("=") for pair in linears.split())
    return Part("ffn", output or roles["down"], roles, act)
