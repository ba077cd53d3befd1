"""One decoder file and what is bound to it: caches never leave the runtime.

Each call's outputs are bound as the next call's inputs (ONNX Runtime's IO binding), in whatever type the
model keeps them.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import RunError
from graphprune.starting import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.language import Decoder
    from graphprune.speculation import Shortcut

    Ids = NDArray[np.int64]

_BFLOAT16 = 16  # of onnx.TensorProto, which numpy lacks


class DecoderCall:
    """A decoder file, bound: inputs that stay are bound once, the others for every run.

    With a `shortcut` every run takes it, and only the caches that are right then come back.
    Raises `RunError` where the file takes an input that has no value.
    """

    def __init__(
        self, decoder: Decoder, others: Mapping[str, NDArray[Any]], shortcut: Shortcut | None = None
    ) -> None:
        session, self.ports = decoder.session, decoder.ports
        self.name = session.name
        self._runtime = session.runtime
        self._inputs = {one.name: one for one in session.runtime.get_inputs()}
        self._types = {name: session.element_type(name) for name in session.inputs}
        self._binding = session.runtime.io_binding()
        self._device = session.device
        self._bound: dict[str, Any] = {}
        empty = shortcut.empty if shortcut else frozenset()
        self._slots = [slot for slot, name in self.ports.presents.items() if name not in empty]
        missing = [name for name in self.ports.others if name not in others]
        if missing:
            raise RunError(f"{self.name}: inputs without a value: {', '.join(missing)}")
        for name in self.ports.others:
            self._bind(name, session.cast(name, others[name]))
        for name, array in {**session.given, **(shortcut.inputs if shortcut else {})}.items():
            self._bind_optional(name, array)

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
            if cache[slot] is not self._bound.get(slot):  # what a shortcut passes by stays as it is
                self._bound[slot] = cache[slot]
                binding.bind_ortvalue_input(name, cache[slot])
        binding.bind_output(ports.logits)
        for slot in self._slots:
            binding.bind_output(ports.presents[slot], *self._device)
        try:
            self._runtime.run_with_iobinding(binding)
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.name}: {first_line(error)}") from error
        scores, *values = binding.get_outputs()
        return as_array(scores), self._kept(dict(zip(self._slots, values, strict=True)), past)

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

    def _bind_optional(self, name: str, array: NDArray[Any]) -> None:
        """`bind_cpu_input` knows none but required inputs."""
        import onnxruntime as ort

        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))

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


def bytes_of(value: Any) -> int:
    """The size of a tensor of the runtime."""
    from onnx import helper

    size: int = helper.tensor_dtype_to_np_dtype(value.element_type()).itemsize
    return math.prod((size, *value.shape()))


def as_array(value: Any) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which numpy lacks, as float32."""
    if value.element_type() != _BFLOAT16:
        array: NDArray[Any] = value.numpy()
        return array
    wide: NDArray[np.float32] = (_halves(value).astype(np.uint32) << 16).view(np.float32)
    return wide


def cropped(value: Any, length: int) -> Any:
    """A cache [..., tokens, size] with its first `length` tokens alone."""
    import onnxruntime as ort

    kind, place = value.element_type(), (value.device_name(), 0)
    if kind == _BFLOAT16:
        kept = np.ascontiguousarray(_halves(value)[..., :length, :])
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(kept, kind)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.numpy()[..., :length, :]), *place)


def _halves(value: Any) -> NDArray[np.uint16]:
    """The raw bits of a bfloat16 tensor of the CPU."""
    shape = tuple(value.shape())
    count = math.prod(shape)
    raw: NDArray[np.uint16] = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return raw.reshape(shape)
