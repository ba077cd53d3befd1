"""Every error that graphprune raises on purpose.

One tree, so that `except GraphpruneError` catches all of them. Each message says what was
found, where (file, node), and what to do about it; the CLI prints it as one line and exits
with code 2.
"""

from __future__ import annotations


class GraphpruneError(Exception):
    """Base of all errors that graphprune raises on purpose."""


class LoadError(GraphpruneError):
    """A model or bundle cannot be read: not ONNX, truncated, weights missing or out of the folder."""


class SaveError(GraphpruneError):
    """A model cannot be written: target is the source, disk full, no permission."""


class GraphError(GraphpruneError):
    """A graph is not valid ONNX: cyclic, dangling values, an unknown opset."""


class SelectionError(GraphpruneError):
    """A selection names layers or blocks that do not exist, or would empty the model."""


class RecipeError(GraphpruneError):
    """A recipe cannot be read, or one of its passes does not take the options given."""


class EditError(GraphpruneError):
    """An edit cannot be made on this graph without changing what it should not."""


class CheckError(GraphpruneError):
    """A pruned model fails a check: the checker, shape inference, loading, the signature, or its numbers."""


class RunError(GraphpruneError):
    """A model cannot be run: inputs missing or misshaped, the runtime refuses it."""


class MissingExtraError(GraphpruneError):
    """A command needs an optional package that is not installed."""
