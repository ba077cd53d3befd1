"""Torch models of the zoo with seeded random weights, and their exports."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers

from tools.zoo_truth import Family

SEED = 20
SDPA_SINCE = 14


def build(family: Family, attention: str | None = None) -> torch.nn.Module:
    """The family's torch model in eval mode; the same weights at every call."""
    config = getattr(transformers, family.config)(**family.options)
    if attention:
        config._attn_implementation = attention
    torch.manual_seed(SEED)
    model: torch.nn.Module = getattr(transformers, family.model)(config)
    randomize(model)
    return model.eval()


def attention(opset: int | None) -> str | None:
    """The attention implementation that exports to this opset; None is the family's default."""
    return "eager" if opset is not None and opset < SDPA_SINCE else None


def opset_of(exporter: str) -> int | None:
    """The opset of "optimum@17", None where an exporter's default is meant."""
    _, _, opset = exporter.partition("@")
    return int(opset) if opset else None


def randomize(model: torch.nn.Module) -> None:
    """Draw every weight anew: norms and biases are no ones and zeros, and each block matters.

    Matrices have a variance of about 1/fan-in, so that what a branch adds is as large as the stream.
    """
    generator = torch.Generator().manual_seed(SEED)

    def normal(tensor: torch.Tensor, scale: float, centre: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + centre)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                normal(parameter, 1.2 / max(parameter[0].numel(), 4) ** 0.5)
            elif name.endswith("bias"):
                normal(parameter, 0.2)
            else:
                normal(parameter, 0.2, 1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                normal(buffer, 0.3)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, which write hundreds of warnings, some from C++ past Python's streams."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    streams = [os.dup(1), os.dup(2)]
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sys.stdout.flush()
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
    finally:
        for number, saved in enumerate(streams, start=1):
            os.dup2(saved, number)
            os.close(saved)
        logging.disable(level)


def export(family: Family, exporter: str, task: str, folder: Path) -> None:
    """Write the export into `folder`; raises what the exporter raises.

    `exporter` is "optimum" or "dynamo", with "@17" behind it for another opset than its default.
    """
    write = _optimum if exporter.startswith("optimum") else _dynamo
    with quiet():
        write(family, task, folder, opset_of(exporter))


def _optimum(family: Family, task: str, folder: Path, opset: int | None) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    model: Any = build(family, attention(opset))
    sizes: dict[str, int] = {}
    if family.modality in {"text", "seq2seq"}:
        sizes = {"batch_size": 2, "sequence_length": 12}
    elif family.modality == "audio":
        sizes = {"nb_max_frames": 2 * model.config.max_source_positions}
    onnx_export_from_model(model, folder, task=task, opset=opset, do_validation=False, **sizes)


class CachedDecoder(torch.nn.Module):
    """A causal model whose cache goes in and out as a flat list of tensors, as exporters want it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Logits, then each layer's key and value."""
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache(past), use_cache=True
        )
        return (result.logits, *flatten_cache(result.past_key_values))


class CrossDecoder(torch.nn.Module):
    """The decoder of a sequence-to-sequence model with its head, without a cache."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The logits."""
        logits: torch.Tensor = self.model(
            encoder_outputs=(encoder_hidden_states,), decoder_input_ids=input_ids, use_cache=False
        ).logits
        return logits


class Outputs(torch.nn.Module):
    """A model that returns one tensor instead of a dataclass."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names, dict(fixed)

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The named outputs."""
        result = self.model(**inputs, **self.fixed)
        return tuple(result[name] for name in self.names)


def cache(past: list[torch.Tensor]) -> transformers.DynamicCache:
    """A cache of key, value, key, value… tensors."""
    return transformers.DynamicCache([(past[i], past[i + 1]) for i in range(0, len(past), 2)])


def flatten_cache(past: transformers.Cache) -> list[torch.Tensor]:
    """The tensors of a cache (of its self-attention half): key, value, key, value, and so on."""
    past = getattr(past, "self_attention_cache", past)
    return [cast(torch.Tensor, tensor) for layer in past.layers for tensor in (layer.keys, layer.values)]


def _dynamo(family: Family, task: str, folder: Path, opset: int | None) -> None:
    model = build(family)
    if family.modality in {"seq2seq", "audio"}:
        files = _dynamo_seq2seq(family, model)
    elif task.endswith("-with-past"):
        files = _dynamo_cached(model)
    else:
        files = _dynamo_plain(family, model)
    for file in files:
        torch.onnx.export(
            file.model, (), folder / f"{file.stem}.onnx", kwargs=file.kwargs, dynamic_shapes=file.dynamic,
            input_names=list(file.inputs), output_names=list(file.outputs), opset_version=opset, dynamo=True,
            external_data=False, verbose=False,
        )  # fmt: skip


BATCH, LENGTH, PAST = "batch", "sequence", "past"


@dataclass(frozen=True)
class Export:
    """One file for `torch.onnx.export`."""

    stem: str
    model: torch.nn.Module
    kwargs: dict[str, Any]
    dynamic: dict[str, Any]
    inputs: Iterable[str]
    outputs: Iterable[str]


def _dynamo_plain(family: Family, model: torch.nn.Module) -> list[Export]:
    ids = torch.arange(2 * 10).reshape(2, 10) % 90 + 3
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    text: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    text_dims = {name: {0: BATCH, 1: LENGTH} for name in text}
    match family.modality:
        case "image":
            inputs: dict[str, Any] = {"pixel_values": pixels}
            dims: dict[str, Any] = {"pixel_values": {0: BATCH}}
        case "speech":
            inputs = {"input_values": torch.linspace(-1, 1, 2 * 400).reshape(2, 400)}
            dims = {"input_values": {0: BATCH, 1: "samples"}}
        case "clip":
            inputs = {**text, "pixel_values": pixels}
            dims = {**text_dims, "pixel_values": {0: "images"}}
        case _:
            inputs, dims = text, text_dims
    causal = bool(family.model.endswith("ForCausalLM") or family.model.endswith("LMHeadModel"))
    names: tuple[str, ...] = ("logits",) if causal else ("last_hidden_state",)
    if family.modality == "clip":
        names = ("logits_per_image", "text_embeds", "image_embeds")
    wrapped = Outputs(model, names, {"use_cache": False} if causal else {})
    return [Export("model", wrapped, {"inputs": inputs}, {"inputs": dims}, inputs, names)]


def _dynamo_cached(model: torch.nn.Module) -> list[Export]:
    config: Any = model.config
    ids = torch.arange(2 * 5).reshape(2, 5) % 90 + 3
    with torch.no_grad():
        result = model(input_ids=ids, use_cache=True)
    past = flatten_cache(result.past_key_values)
    step = {"input_ids": ids[:, :3], "attention_mask": torch.ones(2, 8, dtype=torch.int64), "past": past}
    dims = {
        "input_ids": {0: BATCH, 1: LENGTH},
        "attention_mask": {0: BATCH, 1: "total"},
        "past": [{0: BATCH, 2: PAST} for _ in past],
    }
    slots = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", *(f"past_key_values.{slot}" for slot in slots)]
    outputs = ["logits", *(f"present.{slot}" for slot in slots)]
    return [Export("model", CachedDecoder(model), step, dims, names, outputs)]


def _dynamo_seq2seq(family: Family, model: Any) -> list[Export]:
    ids = torch.arange(2 * 10).reshape(2, 10) % 90 + 3
    if family.modality == "audio":
        length = 2 * model.config.max_source_positions
        features = torch.linspace(-1, 1, 2 * 12 * length).reshape(2, 12, length)
        inputs, dims = {"input_features": features}, {"input_features": {0: BATCH}}
    else:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        dims = {name: {0: BATCH, 1: LENGTH} for name in inputs}
    encoder = Outputs(model.get_encoder(), ("last_hidden_state",), {})
    with torch.no_grad():
        hidden = encoder(inputs)[0]
    step = {"input_ids": ids[:, :4], "encoder_hidden_states": hidden}
    step_dims = {
        "input_ids": {0: BATCH, 1: LENGTH},
        "encoder_hidden_states": {0: BATCH} | ({} if family.modality == "audio" else {1: "source"}),
    }
    return [
        Export("encoder_model", encoder, {"inputs": inputs}, {"inputs": dims}, inputs, ["last_hidden_state"]),
        Export("decoder_model", CrossDecoder(model), step, step_dims, step, ["logits"]),
    ]
