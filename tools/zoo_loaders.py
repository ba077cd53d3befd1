"""Families of the zoo for optimum's model classes, in every layout of files that these load.

`ORTModelForCausalLM` of optimum 0.1 works out the shape of a cache from the configuration, for
several families without `head_dim` and `num_key_value_heads`, and for T5 without `d_kv`: real
models such as Qwen3 cannot be run (https://github.com/huggingface/optimum/issues/2379). Here they
have sizes for which that is right, and as `<name>-wide` the zoo's own. As `<name>-window` they have
attention windows shorter than a test's texts.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx

from tools.zoo import Entry, families
from tools.zoo_truth import Family

Layout = Literal["plain", "past", "merged"]
LAYOUTS: tuple[Layout, ...] = ("plain", "past", "merged")

LAYERS, ENCODER_LAYERS, DECODER_LAYERS = 6, 4, 5
WINDOW = 4
WIDE = "-wide"
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = [SLIDING, SLIDING, FULL, SLIDING, FULL, FULL]

# What optimum supposes: as many heads in the cache as in attention, and all of them fill the width.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {"head_dim": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 8},
    "olmo2": {"num_key_value_heads": 4},
    "phi3": {"num_key_value_heads": 4},
    "qwen3": {"head_dim": 8},
    "t5": {"d_kv": 8},
}
WINDOWS: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {"sliding_window": WINDOW},
    "gemma3": {"sliding_window": WINDOW, "layer_types": MIXED},
    "gpt_neo": {"window_size": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": MIXED},
    "smollm3": {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": MIXED},
}
DEPTHS: Mapping[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    "attention_types": [[["global", "local"], LAYERS // 2]],
    "encoder_layers": ENCODER_LAYERS,
    "decoder_layers": DECODER_LAYERS,
}


def generating() -> dict[str, Family]:
    """Every family that generates, by name, and its variants."""
    found = {}
    for family in families().values():
        if family.tasks[0].endswith("-with-past"):
            found |= {variant.name: variant for variant in _variants(family)}
    return found


def _variants(family: Family) -> Iterator[Family]:
    name, wide = family.name, _deep(family)
    options = wide.options | SIZES.get(name, {})
    yield replace(wide, options=options)
    if name in SIZES:
        yield replace(wide, name=f"{name}{WIDE}")
    if name in WINDOWS:
        yield replace(wide, name=f"{name}-window", options=options | WINDOWS[name])


def _deep(family: Family) -> Family:
    options = family.options | {key: DEPTHS[key] for key in DEPTHS if key in family.options}
    if family.name == "t5":
        options |= {"num_layers": ENCODER_LAYERS, "num_decoder_layers": DECODER_LAYERS}
    return replace(family, options=options)


def causal(family: Family) -> bool:
    """Whether the model is a decoder alone."""
    return family.modality == "text"


def stack_paths(family: Family) -> dict[str, str]:
    """Where a torch model keeps the list of layers of each stack."""
    return {stack.name: stack.layers[0].path.rpartition(".")[0] for stack in family.stacks}


def depth(family: Family, stack: str) -> int:
    """How many layers a stack has at these sizes."""
    if causal(family):
        return LAYERS
    return ENCODER_LAYERS if stack == "encoder" else DECODER_LAYERS


def entry(family: Family, layout: Layout) -> Entry:
    """The export that has the files of `layout`."""
    task = family.tasks[1 if layout == "plain" else 0]
    return (TwoDecoders if causal(family) and layout == "merged" else Entry)(family, "optimum", task)


def lay_out(family: Family, layout: Layout, folder: Path) -> Path:
    """Copy the files of one layout into `folder`. Raises `NotExportableError`.

    plain: no cache. past: one file with a cache, or encoder, decoder and decoder with past.
    merged: a decoder with both in one `If`; of a causal model together with the two files that
    it was made of, as optimum before 1.13 wrote them.
    """
    folder.mkdir(parents=True)
    for file in entry(family, layout).folder().iterdir():
        merged = file.stem.endswith("_merged")
        two = file.stem in {"decoder_model", "decoder_with_past_model"}
        other = merged if layout != "merged" else two and not causal(family)
        if file.is_file() and not other:
            shutil.copyfile(file, folder / file.name)
    return folder


class TwoDecoders(Entry):
    """A causal model as a decoder without a past, one with a past, and both merged."""

    @property
    def id(self) -> str:
        """A short name, also the folder's."""
        return f"{super().id}-separate"

    def _export(self, folder: Path) -> None:
        from optimum.exporters.onnx import export_models
        from optimum.exporters.tasks import TasksManager
        from optimum.onnx.graph_transformations import merge_decoders

        from tools.zoo_export import build

        model: Any = build(self.family)
        model.forward = _with_whole_caches(model.forward)
        make = TasksManager.get_exporter_config_constructor(
            "onnx", model=model, task=self.family.tasks[1], library_name="transformers"
        )
        both = {
            name: (model, make(model.config, use_past=True, use_past_in_inputs=past))
            for name, past in (("decoder_model", False), ("decoder_with_past_model", True))
        }
        names = [f"{name}.onnx" for name in both]
        opset = both["decoder_model"][1].DEFAULT_ONNX_OPSET
        sizes = {"batch_size": 2, "sequence_length": 12}
        export_models(both, folder, opset=opset, output_names=names, input_shapes=sizes)
        merged = folder / "decoder_model_merged.onnx"
        merge_decoders(folder / names[0], folder / names[1], save_path=merged)
        _name_length_of_mask(merged)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)


def _with_whole_caches(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a model that is given no cache fill a plain one: its own would forget what a window has passed."""
    from transformers import DynamicCache

    signature = inspect.signature(forward)

    def filling(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        if given.arguments.get("past_key_values") is None:
            given.arguments["past_key_values"] = DynamicCache()
        return forward(*given.args, **given.kwargs)

    vars(filling)["__signature__"] = signature  # which the exporter reads
    return filling


def _name_length_of_mask(path: Path) -> None:
    """Let the mask be as long as past and text together.

    It has the length of the text from the decoder without a past, and where no `position_ids`
    follow it, optimum takes that name to mean what the mask's length is, and binds wrong outputs.
    """
    merged = onnx.load(path)
    for value in merged.graph.input:
        if value.name == "attention_mask":
            value.type.tensor_type.shape.dim[1].dim_param = "past_sequence_length + sequence_length"
    onnx.save(merged, path)
