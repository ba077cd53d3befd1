"""Texts that go through a decoder side by side, and the caches that go along with them.

Caches never leave the runtime: each call's outputs are bound as the next call's inputs
(ONNX Runtime's IO binding), in whatever type the model keeps them.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import RunError
from graphprune.starting import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.language import Decoder, LanguageModel

    Scores = NDArray[np.float32]
    Ids = NDArray[np.int64]

_BFLOAT16 = 16  # of onnx.TensorProto, which numpy lacks


class Lane:
    """Texts that have one length, or are filled up to one; the state of their decoding.

    `prompts` are ids, `others` the inputs that stay the same at every step, by name.
    Raises `RunError` where the model takes an input that has no value.
    """

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], others: Mapping[str, NDArray[Any]]
    ) -> None:
        self._model = model
        self._calls = [_Call(one, others) for one in (model.first, model.step or model.first)]
        self._lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self._width = int(self._lengths.max())
        self._fill = self._width - self._lengths if model.padding == "left" else np.zeros_like(self._lengths)
        self._even = bool((self._lengths == self._width).all())
        self._ids = np.full((len(prompts), self._width), model.rules.pad, np.int64)
        for row, prompt, fill in zip(self._ids, prompts, self._fill, strict=True):
            row[fill : fill + len(prompt)] = prompt
        self._cache: dict[str, Any] = {}

    @property
    def length(self) -> int:
        """The tokens of the longest text so far."""
        return self._width

    @property
    def cache_bytes(self) -> int:
        """What the caches take now."""
        return sum(_bytes(value) for value in self._cache.values())

    def begin(self) -> Scores:
        """Read the prompts: the scores [texts, vocabulary] of the token after each."""
        first, ids = self._calls[0], self._ids
        self._cache = first.empty(len(ids))
        if not first.ports.single:
            return self._run(first, ids)
        scores = [self._run(first, ids[:, place : place + 1], place + 1) for place in range(self._width)]
        return scores[-1]

    def advance(self, tokens: Sequence[int]) -> Scores:
        """Take one more token for each text: the scores of the one after it."""
        column = np.array(tokens, np.int64)[:, None]
        self._width += 1
        self._lengths += 1
        if self._model.step is not None:
            return self._run(self._calls[1], column)
        self._ids = np.concatenate([self._ids, column], axis=1)
        return self._run(self._calls[0], self._ids)

    def _run(self, call: _Call, ids: Ids, width: int = 0) -> Scores:
        width = width or self._width
        mask = self._mask(width) if call.ports.mask else None
        places = self._places(ids.shape[1], width) if call.ports.positions else None
        scores, cache = call.run(ids, mask, places, width - ids.shape[1], self._cache)
        self._cache |= cache
        return self._last(call, scores, ids.shape[1])

    def _mask(self, width: int) -> NDArray[np.bool_]:
        """Which columns are tokens of the text."""
        if self._even:
            return np.ones((len(self._lengths), width), np.bool_)
        columns = np.arange(width)
        if self._model.padding == "right":
            return columns < self._lengths[:, None]
        return columns >= self._fill[:, None]

    def _places(self, count: int, width: int) -> Ids:
        """The positions of the last `count` columns in their texts; 0 where there is no text."""
        if self._model.padding == "right" and count == 1:
            return self._lengths[:, None] - 1
        places: Ids = np.maximum(np.arange(width - count, width) - self._fill[:, None], 0)
        return places

    def _last(self, call: _Call, scores: NDArray[Any], count: int) -> Scores:
        """The scores after each text's last token, as float32."""
        if scores.ndim == 2:
            last = scores
        elif self._even or count == 1 or self._model.padding != "right":
            last = scores[:, -1]
        elif scores.shape[1] == count:
            last = scores[np.arange(len(scores)), self._lengths - 1]
        else:
            raise RunError(f"{call.name} gives scores after the last column only: give prompts of one length")
        return last.astype(np.float32, copy=False)


class _Call:
    """One decoder file, bound: inputs that stay are bound once, the others for every run."""

    def __init__(self, decoder: Decoder, others: Mapping[str, NDArray[Any]]) -> None:
        session, self.ports = decoder.session, decoder.ports
        self.name = session.name
        self._runtime = session.runtime
        self._inputs = {one.name: one for one in session.runtime.get_inputs()}
        self._types = {name: session.element_type(name) for name in session.inputs}
        self._binding = session.runtime.io_binding()
        self._device = session.device
        self._slots = list(self.ports.presents)
        missing = [name for name in self.ports.others if name not in others]
        if missing:
            raise RunError(f"{self.name}: inputs without a value: {', '.join(missing)}")
        for name in self.ports.others:
            self._bind(name, session.cast(name, others[name]))

    def empty(self, rows: int) -> dict[str, Any]:
        """Caches of no tokens, as the file takes them. Raises `RunError` where their size is not known."""
        heads = self.ports.heads
        return {slot: self._empty(name, rows, heads.get(slot)) for slot, name in self.ports.pasts.items()}

    def run(
        self,
        ids: Ids,
        mask: NDArray[np.bool_] | None,
        places: Ids | None,
        past: int,
        cache: Mapping[str, Any],
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Run once: the scores, and the caches by their slots."""
        ports, binding = self.ports, self._binding
        self._bind(ports.ids, ids)
        if mask is not None:
            self._bind(ports.mask, mask)
        if places is not None:
            self._bind(ports.positions, places)
        if ports.place:
            self._bind(ports.place, np.arange(past, past + ids.shape[1]))
        if ports.branch:
            self._bind(ports.branch, np.array([past > 0]))
        for slot, name in ports.pasts.items():
            binding.bind_ortvalue_input(name, cache[slot])
        binding.bind_output(ports.logits)
        for slot in self._slots:
            binding.bind_output(ports.presents[slot], *self._device)
        try:
            self._runtime.run_with_iobinding(binding)
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.name}: {first_line(error)}") from error
        scores, *values = binding.get_outputs()
        return _numpy(scores), self._kept(dict(zip(self._slots, values, strict=True)), past)

    def _kept(self, given: dict[str, Any], past: int) -> dict[str, Any]:
        """The caches but for empty ones: a merged decoder's second branch puts such out for what stays."""
        if not self.ports.branch or past == 0 or not any(0 in value.shape() for value in given.values()):
            return given
        kept = {slot: value for slot, value in given.items() if 0 not in value.shape()}
        self._slots = list(kept)
        self._binding.clear_binding_outputs()
        return kept

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        array = np.ascontiguousarray(array, self._types[name])
        self._binding.bind_cpu_input(name, array)

    def _empty(self, name: str, rows: int, head: int | None) -> Any:
        import onnxruntime as ort
        from onnx import TensorProto

        *stacked, _, count, past, size = self._inputs[name].shape
        shape = [*stacked, rows, count, past if isinstance(past, int) else 0, head or size]
        if shape[-2] or not all(isinstance(one, int) for one in shape):
            raise RunError(f"{self.name}: {name} {self._inputs[name].shape} cannot begin without tokens")
        kind = self._inputs[name].type.removeprefix("tensor(").removesuffix(")")
        element = TensorProto.DataType.Value(kind.upper())
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, element, *self._device)


def _bytes(value: Any) -> int:
    from onnx import helper

    size: int = helper.tensor_dtype_to_np_dtype(value.element_type()).itemsize
    return math.prod((size, *value.shape()))


def _numpy(value: Any) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which numpy lacks, as float32."""
    if value.element_type() != _BFLOAT16:
        array: NDArray[Any] = value.numpy()
        return array
    count = math.prod(value.shape())
    raw = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    wide: NDArray[np.float32] = (raw.astype(np.uint32) << 16).view(np.float32)
    return wide.reshape(tuple(value.shape()))
