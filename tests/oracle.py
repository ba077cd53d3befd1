"""The torch side: what an exported zoo model must put out after a change, by hooks on its modules.

An oracle holds the very model that was exported, and is changed one call at a time::

    oracle = Oracle(entry)
    oracle.drop("encoder", 1, "ffn")
    expected = oracle.run("model", feeds)

Nothing here reads an ONNX graph. Layers that share one module (ALBERT) are told apart by the
number of the call: every change takes effect in one call of its module in each run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache

from tools.zoo_feeds import SLOT, Feeds

if TYPE_CHECKING:
    from tools.zoo import Entry
    from tools.zoo_truth import Block, Layer, Stack

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LAYER_COUNTS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers", "num_layers")


class Oracle:
    """One torch model of the zoo, and the changes made to it."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.model: Any = entry.torch_model()
        self.rehearsals = 1
        self._calls: list[list[int]] = []

    # -- changes -------------------------------------------------------------------------------

    def drop(self, stack: str, layer: int, kind: str, *, keep_norm: bool = True) -> None:
        """Zero what a block adds to the stream; `kind` may name one branch of a parallel block.

        `keep_norm` False takes the norm after the join away too.
        """
        where, block = self._block(stack, layer, kind)
        for part in block.parts:
            if kind in {part.kind, "parallel"}:
                self._change(where, block.branch_norm or part.output, _zero)
        if not keep_norm and block.placement == "post":
            self._change(where, block.norm, _same)

    def drop_layer(self, stack: str, layer: int) -> None:
        """Make a whole layer the identity."""
        for block in self._layer(stack, layer).blocks:
            self.drop(stack, layer, block.kind, keep_norm=False)

    def drop_bias(self, stack: str, layer: int, role: str, kind: str = "") -> None:
        """Take a linear's bias away; q, k and v of a packed map too, where they lie one after another.

        `kind` says in which branch, where several have linears of that role.
        """
        where = self._layer(stack, layer)
        for part in (part for block in where.blocks for part in block.parts if kind in {"", part.kind}):
            if role in part.roles:
                bias = self._module(where, part.roles[role]).bias
                self._change(where, part.roles[role], partial(_less, bias))
            elif role in {"q", "k", "v"} and "qkv" in part.roles:
                bias = self._module(where, part.roles["qkv"]).bias
                third = _only_third(bias, "qkv".index(role))
                self._change(where, part.roles["qkv"], partial(_less, third))

    def drop_norm(self, stack: str, layer: int, kind: str, *, branch: bool = False) -> None:
        """Make a block's norm (or the one on its branch's output) the identity."""
        where, block = self._block(stack, layer, kind)
        self._change(where, block.branch_norm if branch else block.norm, _same)

    def drop_norm_bias(self, stack: str, layer: int, kind: str) -> None:
        """Take β of a block's norm away."""
        where, block = self._block(stack, layer, kind)
        bias = self._module(where, block.norm).bias
        self._change(where, block.norm, partial(_less, bias))

    def drop_activation(self, stack: str, layer: int) -> None:
        """Make the activation of the FFN the identity: a linear FFN, or a bilinear one where it is gated."""
        where = self._layer(stack, layer)
        for part in (part for block in where.blocks for part in block.parts if part.act):
            self._change(where, part.act, _same)

    def drop_residual(self, stack: str, layer: int, kind: str) -> None:
        """Keep the branch and take the skip away: the stream becomes what the branch puts out."""
        where, block = self._block(stack, layer, kind)
        seen: list[torch.Tensor] = []

        def remember(given: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            seen[:] = [given]
            return out

        part = block.parts[0]
        if block.placement == "post":
            self._change(where, part.output, lambda _, out: remember(out, out))
            self._before(where, block.norm, lambda _: seen[0])
        else:
            self._change(where, block.norm, remember)
            self._change(
                where, block.branch_norm or part.output, lambda _, out: out - seen[0].reshape(out.shape)
            )

    def replace(
        self, stack: str, layer: int, kind: str, linear: np.ndarray | None, constant: np.ndarray
    ) -> None:
        """Add `reads @ linear + constant` to the stream in the place of a block.

        What is read is the block's norm of the stream (pre-norm), or the stream (post-norm).
        """
        where, block = self._block(stack, layer, kind)
        shift = torch.from_numpy(constant)
        matrix = torch.zeros(len(shift), len(shift)) if linear is None else torch.from_numpy(linear)
        seen: list[torch.Tensor] = []

        def remember(_: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            seen[:] = [out]
            return out

        output = block.branch_norm or block.parts[0].output
        if block.placement == "post":

            def exchange(given: torch.Tensor) -> torch.Tensor:
                stream = given - seen[0].reshape(given.shape)
                return stream + stream @ matrix + shift

            self._change(where, output, remember)
            self._before(where, block.norm, exchange)
            return
        self._change(where, block.norm, remember)
        self._change(where, output, lambda _, out: (seen[0] @ matrix + shift).reshape(out.shape))
        for part in block.parts[1:]:
            self._change(where, part.output, _zero)

    def refit_norm(self, stack: str, layer: int, kind: str, scale: np.ndarray, shift: np.ndarray) -> None:
        """Give a block's norm another γ and β."""
        where, block = self._block(stack, layer, kind)
        norm = self._module(where, block.norm)
        gamma, beta = torch.from_numpy(scale), torch.from_numpy(shift)
        self._change(where, block.norm, lambda _, out: (out - norm.bias) / norm.weight * gamma + beta)

    def refit_output(
        self, stack: str, layer: int, kind: str, weights: Sequence[np.ndarray], bias: np.ndarray
    ) -> None:
        """Give the last linears of a block other weights [inputs, width], and one bias for all of them."""
        where, block = self._block(stack, layer, kind)
        for number, (part, weight) in enumerate(zip(block.parts, weights, strict=True)):
            matrix = torch.from_numpy(weight)
            shift = torch.from_numpy(bias) if number == 0 else 0.0
            self._change(
                where, part.output,
                lambda given, out, m=matrix, s=shift: (given @ m + s).reshape(out.shape),
            )  # fmt: skip

    def merge(self, stack: str, layers: Sequence[int], into: int) -> None:
        """Add to the parameters of layer `into` what sets those of `layers` apart, and drop these."""
        found = [self.model.get_submodule(layer.path) for layer in self._stack(stack).layers]
        own = {name: value.detach().clone() for name, value in found[into].named_parameters()}
        with torch.no_grad():
            for name, parameter in found[into].named_parameters():
                for theirs in (dict(found[layer].named_parameters()) for layer in layers):
                    parameter += theirs[name] - own[name] if name in theirs else 0.0
        for layer in layers:
            self.drop_layer(stack, layer)

    def beside(self, stack: str, *layers: int) -> None:
        """Run the blocks of one layer side by side, or those of two layers, kind by kind.

        What a module must read before it is computed comes from a rehearsal.
        """
        where = [self._layer(stack, layer) for layer in layers]
        groups = (
            list(zip(*(layer.blocks for layer in where), strict=True))
            if len(where) > 1
            else [where[0].blocks]
        )
        self.rehearsals = max(self.rehearsals, len(groups))
        start: list[torch.Tensor] = []
        done: dict[tuple[int, int], torch.Tensor] = {}

        def read(group: int, member: int, given: torch.Tensor) -> torch.Tensor:
            if (group, member) == (0, 0):
                start[:] = [given]
            before = (out.reshape(start[0].shape) for (other, _), out in done.items() if other < group)
            return sum(before, start[0]).reshape(given.shape)

        def wrote(key: tuple[int, int], out: torch.Tensor) -> torch.Tensor:
            done[key] = out
            return out

        for i, group in enumerate(groups):
            for j, block in enumerate(group):
                layer = where[j if len(where) > 1 else 0]
                self._before(layer, block.norm, partial(read, i, j))
                for part in block.parts:
                    output = block.branch_norm or part.output
                    self._change(layer, output, lambda _, out, k=(i, j): wrote(k, out))

    def order(self, stack: str, layers: Sequence[int]) -> None:
        """Run these layers, in this order; a number may come twice."""
        paths = [layer.path for layer in self._stack(stack).layers]
        if len(set(paths)) > 1:
            parent, _, _ = paths[0].rpartition(".")
            owner_path, _, name = parent.rpartition(".")
            old = self.model.get_submodule(parent)
            new = torch.nn.ModuleList(_numbered(old[j], i) for i, j in enumerate(layers))
            setattr(self.model.get_submodule(owner_path), name, new)
        for module in self.model.modules():
            config = getattr(module, "config", None)
            for count in LAYER_COUNTS:
                if hasattr(config, count):
                    setattr(config, count, len(layers))
            kinds = getattr(config, "layer_types", None)  # full or sliding attention
            if kinds and max(layers) < len(kinds) != len(layers):
                config.layer_types = [kinds[layer] for layer in layers]

    # -- running -------------------------------------------------------------------------------

    def run(self, file: str, feeds: Feeds) -> Feeds:
        """The outputs of the exported file of this stem, by their ONNX names."""
        for _ in range(self.rehearsals):
            result = self._run(file, feeds)
        return result

    def _run(self, file: str, feeds: Feeds) -> Feeds:
        for calls in self._calls:
            calls[0] = 0
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in feeds.items()}
        with torch.no_grad():
            if file == "encoder_model":
                result = self.model.get_encoder()(**tensors)
            elif file.startswith("decoder"):
                result = self.model(**_decoder_inputs(self.model, tensors))
            else:
                result = self.model(**_model_inputs(tensors))
        return _outputs(result)

    # -- finding -------------------------------------------------------------------------------

    def _stack(self, name: str) -> Stack:
        return next(stack for stack in self.entry.family.stacks if stack.name == name)

    def _layer(self, stack: str, layer: int) -> Layer:
        return self._stack(stack).layers[layer]

    def _block(self, stack: str, layer: int, kind: str) -> tuple[Layer, Block]:
        where = self._layer(stack, layer)
        for block in where.blocks:
            if block.kind == kind or any(part.kind == kind for part in block.parts):
                return where, block
        raise KeyError(f"{stack}.{layer} has no {kind}")

    def _module(self, layer: Layer, path: str) -> Any:
        return self.model.get_submodule(f"{layer.path}.{path}")

    def _change(self, layer: Layer, path: str, change: Change) -> None:
        """Put `change(input, output)` in place of the module's output, in this layer's call."""
        calls = self._count()

        def hook(_: Any, given: Any, out: Any) -> Any:
            calls[0] += 1
            if calls[0] - 1 != layer.call:
                return None
            if isinstance(out, tuple):
                return (change(given[0], out[0]), *out[1:])
            return change(given[0], out)

        self._module(layer, path).register_forward_hook(hook)

    def _before(self, layer: Layer, path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put `change(input)` in place of the module's input, in this layer's call."""
        calls = self._count()

        def hook(_: Any, given: Any) -> Any:
            calls[0] += 1
            return (change(given[0]), *given[1:]) if calls[0] - 1 == layer.call else None

        self._module(layer, path).register_forward_pre_hook(hook)

    def _count(self) -> list[int]:
        self._calls.append([0])
        return self._calls[-1]


def _zero(_: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(out)


def _same(given: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return given


def _less(bias: torch.Tensor, _: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`out` without the bias of its channels: the last axis, or axis 1 after a convolution."""
    return out - (bias if out.shape[-1] == len(bias) else bias.reshape(-1, *[1] * (out.ndim - 2)))


def _only_third(bias: torch.Tensor, which: int) -> torch.Tensor:
    third = torch.zeros_like(bias)
    width = len(bias) // 3
    third[which * width : (which + 1) * width] = bias[which * width : (which + 1) * width]
    return third


def _numbered(layer: torch.nn.Module, number: int) -> torch.nn.Module:
    """A copy of the layer that reads and writes the cache of layer `number`."""
    twin = copy.deepcopy(layer)
    for module in twin.modules():
        for name in ("layer_idx", "layer_id"):
            if hasattr(module, name):
                setattr(module, name, number)
    return twin


def _cache(tensors: dict[str, torch.Tensor], part: str = "") -> DynamicCache:
    """The cache of `past_key_values.<i>.<part>key` and `…value`."""
    layers = sorted(
        int(slot[2]) for name in tensors if (slot := SLOT.match(name)) and slot[3] == f"{part}key"
    )
    past = [f"past_key_values.{i}.{part}" for i in layers]
    return DynamicCache([(tensors[f"{name}key"], tensors[f"{name}value"]) for name in past])


def _model_inputs(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    inputs: dict[str, Any] = {name: value for name, value in tensors.items() if not SLOT.match(name)}
    if len(inputs) < len(tensors):
        inputs |= {"past_key_values": _cache(tensors), "use_cache": True}
    return inputs


def _decoder_inputs(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    ids = tensors["input_ids"]
    inputs: dict[str, Any] = {
        "decoder_input_ids": ids,
        "attention_mask": tensors.get("encoder_attention_mask"),
    }
    hidden = tensors.get("encoder_hidden_states")
    past = _cache(tensors, "decoder.")
    cross = _cache(tensors, "encoder.")
    if past.layers and past.get_seq_length():
        length = cross.get_seq_length()
        hidden = torch.zeros(len(ids), length, model.config.d_model) if hidden is None else hidden
        inputs["past_key_values"] = EncoderDecoderCache(past, cross)
    return inputs | {"encoder_outputs": (hidden,), "use_cache": True}


def _outputs(result: Any) -> Feeds:
    """Every tensor of a torch result, caches as `present.<i>.…`, as numpy."""
    outputs: dict[str, Any] = {
        name: value for name, value in result.items() if isinstance(value, torch.Tensor)
    }
    cache = result.get("past_key_values")
    if isinstance(cache, EncoderDecoderCache):
        outputs |= _present(cache.self_attention_cache, "decoder.") | _present(
            cache.cross_attention_cache, "encoder."
        )
    elif cache is not None:
        outputs |= _present(cache)
    return {name: value.numpy() for name, value in outputs.items()}


def _present(cache: Any, part: str = "") -> dict[str, torch.Tensor]:
    return {
        f"present.{i}.{part}{name}": tensor
        for i, layer in enumerate(cache.layers)
        for name, tensor in (("key", layer.keys), ("value", layer.values))
        if tensor is not None  # a layer of the configuration that did not run
    }
