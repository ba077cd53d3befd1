"""Image models, and CLIP's two towers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tools.zoo_truth import Family, Layer, Part, Stack, beyond, ffn, heads, one, repeat, stages

LAYERS = 3
DEPTHS = (2, 3)
IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
}
STAGED: dict[str, Any] = {"hidden_sizes": [16, 24], "depths": list(DEPTHS), "num_channels": 3}
CONVNEXT = STAGED | {"num_stages": 2, "patch_size": 4, "image_size": 32}

VIT_ATTENTION = heads("attention", "attention.query attention.key attention.value", "output.dense")
VIT_FFN = ffn("up=intermediate.dense down=output.dense", "intermediate.intermediate_act_fn")
VIT = (one(VIT_ATTENTION, "pre", "layernorm_before"), one(VIT_FFN, "pre", "layernorm_after"))
DEPTHWISE = one(replace(ffn("up=pwconv1 down=pwconv2", "act", "drop_path"), kind="conv"), None)


def image(name: str, classes: str, options: dict[str, Any], *stacks: Stack) -> Family:
    """A family that reads pixels; `classes` is what its config and model are called."""
    return Family(
        name, f"{classes}Config", f"{classes}Model", options, stacks, ort_type="vit", modality="image"
    )


def vision() -> list[Family]:
    """Vision transformers, convolutional nets, and CLIP."""
    vit = repeat("vision", "encoder.layer.{}", LAYERS, *VIT)
    convnext = stages("vision", "encoder.stages.{}.layers.{}", DEPTHS, DEPTHWISE)
    return [
        image("vit", "ViT", IMAGE, vit),
        image("deit", "DeiT", IMAGE, vit),
        _clip(),
        image("resnet", "ResNet", STAGED | {"embedding_size": 8, "layer_type": "basic"}, _resnet()),
        image("convnext", "ConvNext", CONVNEXT | {"layer_scale_init_value": 0.5}, convnext),
    ]


def _resnet() -> Stack:
    """The first block of a stage changes the shape: its shortcut has a projection, and it cannot go."""
    block = one(Part("conv", "layer"), None)
    stack = stages("vision", "encoder.stages.{}.layers.{}", DEPTHS, block)
    firsts = {f"encoder.stages.{stage}.layers.0" for stage in range(len(DEPTHS))}
    fixed = (replace(block, droppable=False),)
    return Stack(
        "vision", tuple(Layer(x.path, fixed if x.path in firsts else x.blocks) for x in stack.layers)
    )


def _clip() -> Family:
    blocks = (
        one(heads("self_attn", "q_proj k_proj v_proj", "out_proj"), "pre", "layer_norm1"),
        one(ffn("up=mlp.fc1 down=mlp.fc2", "mlp.activation_fn"), "pre", "layer_norm2"),
    )
    towers = [repeat(name, name + "_model.encoder.layers.{}", LAYERS, *blocks) for name in ("text", "vision")]
    text = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 56,
        "max_position_embeddings": 64,
        "projection_dim": 24,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    options = {
        "projection_dim": 24,
        "text_config": text,
        "vision_config": IMAGE | {"hidden_size": 40, "projection_dim": 24},
    }
    tasks = ("zero-shot-image-classification",)
    return Family("clip", "CLIPConfig", "CLIPModel", options, tuple(towers), tasks, "clip", "clip")


def more_vision() -> list[Family]:
    """Image models beyond the list."""
    swin_attention = heads("attention", "self.query self.key self.value", "output.dense")
    swin = (one(swin_attention, "pre", "layernorm_before"), VIT[1])
    segformer_ffn = ffn("up=mlp.dense1 down=mlp.dense2", "mlp.intermediate_act_fn")
    segformer = (one(swin_attention, "pre", "layer_norm_1"), one(segformer_ffn, "pre", "layer_norm_2"))
    dino = (
        one(replace(VIT_ATTENTION, output="layer_scale1"), "pre", "norm1"),
        one(ffn("up=mlp.fc1 down=mlp.fc2", "mlp.activation", "layer_scale2"), "pre", "norm2"),
    )
    vit = repeat("vision", "encoder.layer.{}", LAYERS, *VIT)
    swin_options = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    segformer_options = {
        "num_encoder_blocks": 2,
        "depths": [2, 2],
        "sr_ratios": [2, 1],
        "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [2, 4],
        "mlp_ratios": [2, 3],
        "image_size": 32,
    }
    dino_options = {name: value for name, value in IMAGE.items() if name != "intermediate_size"}
    return beyond(
        image("beit", "Beit", IMAGE | {"layer_scale_init_value": 0.5}, vit),
        image("dpt", "DPT", IMAGE, vit),
        image("dinov2", "Dinov2", dino_options, repeat("vision", "encoder.layer.{}", LAYERS, *dino)),
        image("swin", "Swin", swin_options, stages("vision", "encoder.layers.{}.blocks.{}", (2, 2), *swin)),
        image(
            "segformer",
            "Segformer",
            segformer_options,
            stages("vision", "encoder.block.{}.{}", (2, 2), *segformer),
        ),
        image(
            "convnextv2",
            "ConvNextV2",
            CONVNEXT,
            stages("vision", "encoder.stages.{}.layers.{}", DEPTHS, DEPTHWISE),
        ),
    )
