"""What can be asked of a model's outputs: the metrics by their names, and the user's own.

    | metric     | what                                                                 | labels | better |
    |------------|----------------------------------------------------------------------|--------|--------|
    | cosine     | mean cosine with what the dense model puts out                       | no     | higher |
    | kl         | mean Kullback-Leibler divergence from the dense model's distribution | no     | lower  |
    | top1       | how often the highest score is that of the dense model               | no     | higher |
    | perplexity | exp of the mean loss for the next token                              | no     | lower  |
    | accuracy   | how often the highest score is the label's                           | yes    | higher |
    | spearman   | rank correlation of labels with similarities of pairs of texts       | yes    | higher |

The similarity is the cosine of the vectors of two texts, or the one number that the model puts out for both.

`NAME:OUTPUT` reads that output of the model; `module:function` is the user's own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphprune.errors import RunError, SelectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Function = Callable[[Mapping[str, NDArray[Any]], NDArray[Any] | None], float]

Better = Literal["higher", "lower"]

BETTER: dict[str, Better] = {
    "cosine": "higher",
    "kl": "lower",
    "top1": "higher",
    "perplexity": "lower",
    "accuracy": "higher",
    "spearman": "higher",
}
_LABELLED = ("accuracy", "spearman")


@dataclass(frozen=True)
class Metric:
    """A metric by its name in `BETTER`, or a function as `module:function`; which way is better.

    `output` names the output that it reads; empty: the one that fits.
    """

    name: str
    better: Better
    output: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it is a function of the user's."""
        return ":" in self.name

    @property
    def needs_labels(self) -> bool:
        """Whether there is nothing to say without labels."""
        return self.name in _LABELLED

    @property
    def compares(self) -> bool:
        """Whether it asks for agreement with the dense model."""
        return self.name in ("cosine", "kl", "top1")


def read_metric(text: str) -> Metric:
    """The metric that `text` names: `kl`, `spearman:sentence_embedding`, `module:function`.

    A function may say `function.better = "lower"`. Raises `SelectionError` where there is no such metric,
    `RunError` where a module or its function cannot be had.
    """
    name, colon, rest = text.partition(":")
    if name in BETTER and bool(colon) == bool(rest):
        return Metric(name, BETTER[name], rest)
    if not (colon and name and rest):
        raise SelectionError(
            f"there is no metric {text!r}: choose among {', '.join(BETTER)}, or name a function of your own "
            "as module:function"
        )
    better = getattr(own_function(text), "better", "higher")
    if better not in ("higher", "lower"):
        raise RunError(f"{text}: its attribute `better` is {better!r}: it must be 'higher' or 'lower'")
    return Metric(text, "lower" if better == "lower" else "higher")


def own_function(name: str) -> Function:
    """The function `module:function`; the module may lie in the working folder. Raises `RunError`."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's may raise anything
        raise RunError(f"the metric {name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise RunError(f"the metric {name} is no function, but {type(found).__name__}")
    function: Function = found
    return function
