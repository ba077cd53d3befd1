"""From a transformers model to a bundle, by optimum. The only module that needs torch."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from graphprune import storage
from graphprune.errors import LoadError, MissingExtraError


def export(
    model: str | Path,
    out: str | Path,
    *,
    task: str = "auto",
    opset: int | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Export a local folder or a model of the Hugging Face hub to the folder `out`; return it.

    `task` as optimum calls it (`feature-extraction`, `text-generation-with-past`, …); "auto" asks
    the hub, or in a local folder the class that its config names, with a KV cache where the model
    has one. `dtype` is `fp32`, `fp16` or `bf16`. Raises `MissingExtraError` without the extra
    `export`, `LoadError` where the model cannot be read or exported, `SaveError` where `out`
    cannot be written.
    """
    try:
        with _quiet():
            from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise MissingExtraError(
            f"exporting needs optimum, torch and transformers ({error}): pip install 'graphprune[export]'"
        ) from error
    if _looks_local(str(model)) and not Path(model).is_dir():
        raise LoadError(f"{model}: no such folder")
    with storage.replacing(Path(out), overwrite=overwrite) as folder:
        try:
            with _quiet():
                known = _local(Path(model)) if Path(model).is_dir() and task == "auto" else {"task": task}
                main_export(str(model), folder, **known, opset=opset, dtype=dtype, do_validation=False)
        except Exception as error:  # whatever optimum, transformers and torch raise
            raise LoadError(f"{model} cannot be exported: {_short(error)}") from error
    return Path(out)


def _local(folder: Path) -> dict[str, str]:
    """The task of the class that a local transformers model was saved from, for `main_export`."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    config = transformers.AutoConfig.from_pretrained(folder)
    named = config.architectures or ["its config.json names no architecture"]
    saved = getattr(transformers, named[0], None)
    if saved is None:
        raise ValueError(f"what task it is for cannot be told ({named[0]}): name it")
    task = TasksManager.infer_task_from_model(saved)
    known = TasksManager.get_supported_tasks_for_model_type(config.model_type, "onnx")
    cached = f"{task}-with-past"
    return {"task": cached if cached in known else task, "library_name": "transformers"}


def _looks_local(model: str) -> bool:
    """Whether a name must be a folder: hub ids are `name` or `owner/name`."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or (os.sep != "/" and os.sep in model)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes that the exporter and its libraries write while they work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
