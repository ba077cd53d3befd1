"""How much of a model the accelerators of phones could take, by ONNX Runtime's own check.

`onnxruntime.tools.mobile_helpers.usability_checker` goes by the types of operators, and on request by whether
shapes are fixed; what else an operator must fulfil it only lists (as caveats). It knows NNAPI and CoreML;
XNNPACK is told it by `xnnpack`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphprune.errors import GraphError
from graphprune.ortformat import as_library
from graphprune.xnnpack import Xnnpack, graphs

if TYPE_CHECKING:
    import onnx

    Check = Callable[..., Any]

Verdict = Literal["yes", "maybe", "no"]

# The tool's tables of CoreML's operators, for the two forms that CoreML knows.
_COREML = {
    "CoreML NeuralNetwork": "coreml_supported_neuralnetwork_ops.md",
    "CoreML MLProgram": "coreml_supported_mlprogram_ops.md",
}


@dataclass(frozen=True)
class Partitions:
    """What one accelerator could run of a model's `nodes`, subgraphs included.

    `supported` nodes in `partitions` runs, whose sizes are `sizes`; between two runs data go to the CPU and
    back. `unsupported` are the operators that it lacks, `open_shapes` how many nodes it would take
    if their shapes were fixed. `verdict` is whether it is worth a try; None for XNNPACK, which runs on
    the CPU itself. `if_fixed` is the same with all shapes fixed, where some are open.
    """

    provider: str
    nodes: int
    supported: int
    partitions: int
    sizes: tuple[int, ...]
    unsupported: tuple[str, ...]
    open_shapes: int
    verdict: Verdict | None
    if_fixed: Partitions | None = None


def partitions(path: Path) -> tuple[Partitions, ...]:
    """Check the model at `path`, after ONNX Runtime's basic optimization, for NNAPI, CoreML and XNNPACK.

    Empty where no node is left. Raises `GraphError` where the check fails.
    """
    try:
        with as_library():
            model = _optimized(path)
            if not model.graph.node:
                return ()
            return tuple(_checked(model))
    except Exception as error:  # of onnx, onnxruntime and its tool, which share no base
        why = " ".join(str(error).split()) or type(error).__name__
        raise GraphError(f"{path.name}: the check for mobile devices fails: {why}") from error


def _optimized(path: Path) -> onnx.ModelProto:
    """The optimized model with the shapes of its values, without its larger weights."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import optimize_model

    with tempfile.TemporaryDirectory(prefix="graphprune.") as folder:
        basic = Path(folder) / path.name
        optimize_model(path, basic, log_level=4, use_external_initializers=True)
        model = onnx.load(basic, load_external_data=False)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        model = onnx.shape_inference.infer_shapes(model)
    if not model.graph.value_info:
        model.graph.value_info.add()  # the check takes none for a model whose shapes nobody inferred
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.op_type == "Transpose" and not node.attribute:
                node.attribute.add(name="perm")  # the check reads the first attribute, unasked
    return model


def _checked(model: onnx.ModelProto) -> Iterator[Partitions]:
    from onnxruntime.tools.mobile_helpers import usability_checker as tool

    open_inputs, _ = tool.check_shapes(model.graph)
    checks: dict[str, Check] = {"NNAPI": tool.check_nnapi_partitions}
    for name, table in _COREML.items():
        checks[name] = partial(tool.check_coreml_partitions, config_filename=table)
    for name, check in checks.items():
        fixed = check(model, require_fixed_input_sizes=False) if open_inputs else None
        yield _partitions(name, check(model, require_fixed_input_sizes=True), fixed)
    found = tool.check_partitioning(model.graph, Xnnpack(model.graph), require_fixed_input_sizes=False)
    yield replace(_partitions("XNNPACK", found), verdict=None)


def _partitions(name: str, found: Any, if_fixed: Any = None) -> Partitions:
    verdicts: dict[str, Verdict] = {"YES": "yes", "MAYBE": "maybe", "NO": "no"}
    return Partitions(
        name,
        found.num_nodes,
        found.num_supported_nodes,
        found.num_partitions,
        tuple(len(group) for group in found.supported_groups),
        tuple(sorted(found.unsupported_ops)),
        found.nodes_unsupported_due_to_dynamic_input,
        verdicts[found.suitability().name],
        if_fixed and _partitions(name, if_fixed),
    )
