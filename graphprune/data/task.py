"""What a model wants from data: which metric fits it, and how texts become its inputs.

Names of inputs and outputs are the models' interface, on which exporters and loaders agree.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.data.metrics import BETTER, Metric
from graphprune.errors import RunError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.bundle import Bundle, ModelFile

    Axes = tuple[int | None, ...]

LOGITS = "logits"
_IDS = ("input_ids", "decoder_input_ids")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """How a model is asked about data.

    `windows`: texts are joined and cut into windows, as for next tokens. `together`: a pair of texts is one
    input, not two rows. `inputs` maps those that must be given to their axes (None: any size), and is empty
    where nothing is known of the model. `classes` are the numbers of labels by the names that the model's
    configuration has for them, `context` how many tokens it can read.
    """

    metric: Metric
    windows: bool = False
    together: bool = False
    inputs: Mapping[str, Axes | None] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    context: int | None = None

    @property
    def fixed(self) -> tuple[int | None, int | None]:
        """How many rows and how many tokens a file takes, where it takes no other number."""
        axes = next((self.inputs[name] for name in _IDS if name in self.inputs), None)
        return (axes[0], axes[1]) if axes is not None and len(axes) == 2 else (None, None)

    def tokens(self, length: int) -> int:
        """How long texts get that should have `length` tokens."""
        fixed, limit = self.fixed[1], self.context
        if fixed is not None:
            return fixed
        if limit is not None and limit < length:
            log.warning("texts are cut at %d tokens, not %d: the model has no more positions", limit, length)
            return limit
        return length


def read_task(path: str | Path, metric: Metric | None) -> Task:
    """What the bundle at `path` is asked for; without a `metric`, the one that fits what it puts out.

    Raises `LoadError`, and `RunError` where next tokens are asked of a model that makes no text.
    """
    from graphprune.bundle import load
    from graphprune.genconfig import read_rules

    bundle = load(path)
    outputs = {value.name: _axes(value) for file in bundle.files for value in file.model.graph.outputs}
    causal = any(_is_causal(path, file) for file in bundle.files)
    if metric is None:
        name = "kl" if LOGITS in outputs or causal else "cosine"
        metric = Metric(name, BETTER[name])
    if metric.name == "perplexity" and not causal:
        raise RunError(f"{path} makes no text, so it has no perplexity: choose another metric")
    return Task(
        metric,
        windows=causal and not metric.needs_labels,
        together=_is_together(metric, outputs),
        inputs=_inputs(bundle),
        classes=_classes(bundle, Path(path)),
        context=read_rules(path).context,
    )


def _axes(value: ir.Value) -> Axes | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) and size > 0 else None for size in value.shape)


def _is_together(metric: Metric, outputs: Mapping[str | None, Axes | None]) -> bool:
    """Whether a pair of texts is one input: for classes, and for models that say how similar the two are."""
    if metric.name != "spearman":
        return metric.name == "accuracy" or LOGITS in outputs
    axes = outputs.get(LOGITS)
    return axes is not None and (len(axes) == 1 or (len(axes) == 2 and axes[1] == 1))


def _inputs(bundle: Bundle) -> dict[str, Axes | None]:
    from graphprune.hints import required_inputs

    graphs = [file.model.graph for file in bundle.files]
    return {name: _axes(value) for graph in graphs for name, value in required_inputs(graph).items()}


def _is_causal(path: str | Path, file: ModelFile) -> bool:
    """Whether a file scores next tokens: it has a cache, or its scores do not change with later ones."""
    from graphprune.language import open_model
    from graphprune.ports import read_ports

    try:
        ports = read_ports(file)
        if not (ports.pasts or ports.presents):
            open_model(file.path)
    except RunError:
        return False
    return True


def _classes(bundle: Bundle, path: Path) -> dict[str, int]:
    """`label2id` of config.json, in the folder, beside a file, or one folder above."""
    from graphprune.bundle import read_config

    folder = path if path.is_dir() else path.parent
    places = (folder / "config.json", folder.absolute().parent / "config.json")
    config: Mapping[str, Any] = bundle.configs.get("config.json") or next(
        (read_config(place) for place in places if place.is_file()), {}
    )
    known = config.get("label2id")
    if not isinstance(known, dict):
        return {}
    return {str(name): number for name, number in known.items() if isinstance(number, int)}
