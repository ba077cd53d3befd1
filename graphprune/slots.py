"""Names of KV caches: inputs and outputs of one cache have a slot in common, such as `0.key`.

Exporters and loaders agree on these names (`past_key_values.0.key` / `present.0.key`,
`past_0` / `present_0`, `past_key_self_0` / `present_key_self_0`): they are the models' interface.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

_CACHES = {kind: re.compile(rf"{kind}(?:_key_values)?[._]?(.+)") for kind in ("past", "present")}


def cache_slot(name: str, kind: Literal["past", "present"]) -> str:
    """Which cache an input ("past") or output ("present") is: `0.key`; empty where it is none."""
    match = _CACHES[kind].fullmatch(name)
    return match[1] if match else ""


def slot_of(value: ir.Value, kind: Literal["past", "present"]) -> str:
    """The slot of a cache; lengths and the like, which may be called so too, are none."""
    rank = 4 if value.shape is None else len(value.shape)
    return cache_slot(value.name or "", kind) if rank >= 4 else ""
