"""Decoders as onnxruntime-genai's model builder writes them, from checkpoints made here.

Nothing is downloaded. The builder wants heads of 16 or more, and knows the head of a model by
its width: no linear of a layer may put out as many features as there are words.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import zoo
from tools.zoo_truth import Family

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "onnxruntime-genai", "onnx-ir", "onnxruntime")
LAYERS = 6
WINDOW = 8
SIZES: dict[str, Any] = {
    "vocab_size": 112,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# The builder fixes which layers of a Gemma see a window alone: every second, and five of six.
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": _GEMMA | {"layer_types": ["full_attention", "sliding_attention"] * 3},
    "gemma3": _GEMMA | {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "phi3": {"original_max_position_embeddings": 64, "sliding_window": WINDOW},
}
TEXT = ("What is a layer worth that nobody misses?", "It may go, and the others close ranks: 0123456789.")


@dataclass(frozen=True)
class Build:
    """One run of the builder; `layers` are those that its checkpoint has of the family's (all, if None)."""

    family: str
    precision: str = "fp32"
    layers: tuple[int, ...] | None = None
    options: tuple[str, ...] = ()
    provider: str = "cpu"

    def folder(self) -> Path:
        """The folder that the builder wrote, at the first call; raises `zoo.NotExportableError`."""
        made_from = [asdict(self), family(self.family).options, zoo._environment("zoo_export.py", LIBRARIES)]
        key = zoo._hash(json.dumps(made_from) + zoo._environment("zoo_genai.py", LIBRARIES))
        return zoo._built(zoo.home() / f"genai-{self.family}-{self.precision}-{key}", self._write)

    def _write(self, folder: Path) -> None:
        from onnxruntime_genai.models import builder

        with tempfile.TemporaryDirectory() as scratch:
            source, cache = Path(scratch) / "checkpoint", str(Path(scratch) / "cache")
            write_checkpoint(torch_model(self.family, self.layers), source)
            where = (None, str(source), str(folder), self.precision, self.provider, cache)
            options = builder.parse_extra_options(*where, list(self.options))
            builder.create_model(*where, **options)


def family(name: str) -> Family:
    """The zoo's family in sizes that the builder takes."""
    known = zoo.families()[name]
    return replace(known, options=known.options | SIZES | FAMILIES[name])


def torch_model(name: str, layers: Sequence[int] | None = None) -> Any:
    """The torch model of a family, with these of its layers, in this order.

    It attends eagerly: torch's fused attention leaves the soft cap of Gemma 2 out.
    """
    from tools.zoo_export import build

    model = build(family(name), "eager")
    return model if layers is None else with_layers(model, layers)


def with_layers(model: Any, layers: Sequence[int]) -> Any:
    """A causal model with these layers alone, copies of them: its config and their numbers follow."""
    import torch

    model = copy.deepcopy(model)
    kept = [copy.deepcopy(model.model.layers[index]) for index in layers]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    types = getattr(model.config, "layer_types", None)
    if types:
        model.config.layer_types = [types[index] for index in layers]
    return model


def write_checkpoint(model: torch.nn.Module, folder: Path) -> None:
    """Save a transformers model with a byte-level tokenizer that is trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    saved: Any = model
    saved.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=SIZES["vocab_size"], special_tokens=["<pad>", "<s>", "</s>"])
    tokenizer.train_from_iterator(TEXT, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
