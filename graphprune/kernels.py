"""Read what ONNX Runtime's profiler wrote: the runs of a session, and the kernels in each.

The file is a list of trace events in JSON (Google's Trace Event Format): `model_run` events, and
before each of them the kernels that it ran, times in microseconds. A node with subgraphs contains
their kernels; what is counted here is the time that a kernel itself takes. For `If`, `Loop` and
`Scan` that is none: what they take beside their subgraphs is the runtime's work between kernels.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphprune.errors import RunError
from graphprune.settings import short_name
from graphprune.workload import Shape

_KERNEL = "_kernel_time"
_ROOM = "see that there is room for temporary files"
CONTROL = {"If", "Loop", "Scan"}


@dataclass(frozen=True)
class Kernel:
    """One run of one node: microseconds since the profiler started, `us` without the kernels inside.

    `inputs` and `outputs` are shapes, as far as the profile has them; `moved` the bytes of the
    activations read and written. `depth` counts the kernels around it, `inside` those right
    within it; `type` is ONNX Runtime's name of the
    first input's element type. `provider` is the short name of the provider that ran it. What a kernel took
    on a device of its own (`device`) is its `us` where ONNX Runtime was built to tell; else its `us` there is
    the time to start it.
    """

    node: str
    op: str
    start: int
    span: int
    us: int
    inputs: tuple[Shape, ...] = ()
    outputs: tuple[Shape, ...] = ()
    moved: int = 0
    depth: int = 0
    type: str = ""
    provider: str = "cpu"
    device: int = 0
    inside: int = 0


@dataclass(frozen=True)
class SessionRun:
    """One call of a session: when it began, how long it took, and its kernels in the order of their ends."""

    start: int
    us: int
    kernels: tuple[Kernel, ...]


def read_runs(path: Path, hosts: Container[str] = ()) -> Iterator[SessionRun]:
    """The runs in a profile, in order; `hosts` are the names of nodes with subgraphs.

    Raises `RunError` where the profile is empty, damaged or cut off.
    """
    kernels: list[Kernel] = []
    runs = 0
    for event in _events(path):
        try:
            if event["name"] == "model_run":
                start, us = _time(event)
                pairs = zip(kernels, distinct(kernel.node for kernel in kernels), strict=True)
                named = [kernel if kernel.node else replace(kernel, node=name) for kernel, name in pairs]
                yield SessionRun(start, us, tuple(_nested(named, hosts)))
                kernels.clear()
                runs += 1
            else:
                _collect(kernels, event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, f"an event is not as expected: {str(event)[:80]}") from error
    if not runs:
        raise _damaged(path, "it holds no run")


def _collect(kernels: list[Kernel], event: Mapping[str, Any]) -> None:
    """Add a kernel; events of category Kernel are what the one before them ran on its device."""
    if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
        kernels.append(_kernel(event))
    elif event.get("cat") == "Kernel" and kernels:
        kernels[-1] = replace(kernels[-1], device=kernels[-1].device + _time(event)[1])


def distinct(names: Iterable[str]) -> Iterator[str]:
    """Names, each missing one after the last that was there: `a`, `a+1`, `a+2`, `b`.

    ONNX Runtime leaves nodes unnamed that it makes of an operator's definition. It runs nodes in the
    order in which it writes them, so both the graph and a run's kernels number them alike.
    """
    last, missing = "", 0
    for name in names:
        last, missing = (name, 0) if name else (last, missing + 1)
        yield name or f"{last}+{missing}"


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path.name}: ONNX Runtime's profile cannot be read: {what}")


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The events one after another; ONNX Runtime writes one a line, which keeps the memory small."""
    try:
        with path.open(encoding="utf-8") as lines:
            ended = False
            for line in lines:
                text = line.strip()
                ended = text.endswith("]") or (ended and not text)
                for event in _parsed(text.removeprefix("[").removesuffix(",")):
                    if not isinstance(event, dict):
                        raise _damaged(path, f"no event: {str(event)[:80]}")
                    yield event
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8, or lists in lists without end
        raise _damaged(path, f"it is damaged or cut off; {_ROOM}") from error
    if not ended:
        raise _damaged(path, f"it is empty or cut off; {_ROOM}")


def _parsed(text: str) -> Sequence[Any]:
    if text in {"", "]"}:
        return ()
    if not text.endswith("]"):
        return (json.loads(text),)
    found = json.loads(f"[{text}")
    assert isinstance(found, list)
    return found


def _time(event: Mapping[str, Any]) -> tuple[int, int]:
    start, us = event["ts"], event["dur"]
    if not isinstance(start, int) or not isinstance(us, int) or us < 0:
        raise ValueError("times are whole microseconds")
    return start, us


def _kernel(event: Mapping[str, Any]) -> Kernel:
    start, us = _time(event)
    args = event["args"]
    moved = int(args.get("activation_size") or 0) + int(args.get("output_size") or 0)
    inputs, outputs = (_shapes(args.get(key)) for key in ("input_type_shape", "output_type_shape"))
    op, provider = str(args["op_name"]), short_name(str(args.get("provider") or "cpu"))
    kind = _type(args.get("input_type_shape"))
    name: str = event["name"].removesuffix(_KERNEL)
    if name == f"{op}_{args.get('node_index')}":  # what newer versions call a node without a name
        name = ""
    return Kernel(name, op, start, us, us, inputs, outputs, moved, type=kind, provider=provider)


def _type(listed: Any) -> str:
    """`float` of `[{"float": [1, 16]}, …]`."""
    return next((str(name) for one in listed or () for name in one), "")


def _shapes(listed: Any) -> tuple[Shape, ...]:
    """`[{"float": [1, 16]}, …]` without the types."""
    return tuple(tuple(int(dim) for dim in dims) for one in listed or () for dims in one.values())


def _nested(kernels: Sequence[Kernel], hosts: Container[str]) -> Iterator[Kernel]:
    """Kernels in the order in which they ended, each host's time without that of the kernels inside.

    A host ends right after those that it ran, and began before them.
    """
    own = [kernel.span for kernel in kernels]
    depths, inside = [0] * len(kernels), [0] * len(kernels)
    for i, host in enumerate(kernels):
        if host.node in hosts or host.op in CONTROL:
            j = i - 1
            while j >= 0 and kernels[j].start >= host.start:
                own[i] -= 0 if depths[j] else kernels[j].span
                inside[i] += not depths[j]
                depths[j] += 1
                j -= 1
            own[i] = 0 if host.op in CONTROL else own[i]
    for kernel, us, depth, count in zip(kernels, own, depths, inside, strict=True):
        us = kernel.device or max(us, 0)
        changed = depth or count or us != kernel.span
        yield replace(kernel, us=us, depth=depth, inside=count) if changed else kernel
