"""Causal language models: one block after another, and attention and FFN in parallel."""

from __future__ import annotations

from typing import Any

from tools.zoo_truth import Block, Family, Part, beyond, ffn, heads, one, parallel, repeat

LAYERS = 4
GENERATION = ("text-generation-with-past", "text-generation")
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
CAUSAL: dict[str, Any] = TOKENS | {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = TOKENS | {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_inner": 56,
    "n_positions": 64,
}

LLAMA_ATTENTION = heads("self_attn", "q_proj k_proj v_proj", "o_proj")
LLAMA_FFN = ffn("gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj", "mlp.act_fn")
LLAMA = (
    one(LLAMA_ATTENTION, "pre", "input_layernorm"),
    one(LLAMA_FFN, "pre", "post_attention_layernorm"),
)
GEMMA2 = (
    one(LLAMA_ATTENTION, "sandwich", "input_layernorm", "post_attention_layernorm"),
    one(LLAMA_FFN, "sandwich", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
GPT2_ATTENTION = heads("attn", "c_attn", "c_proj")
GPT2_FFN = ffn("up=mlp.c_fc down=mlp.c_proj", "mlp.act")
NEOX_FFN = "up=mlp.dense_h_to_4h down=mlp.dense_4h_to_h"


def llama_like(name: str, classes: str, *blocks: Block, **options: Any) -> Family:
    """A decoder with Llama's module names; `classes` is what its config and model are called."""
    config = {"Gemma3": "Gemma3TextConfig"}.get(classes, f"{classes}Config")
    stack = repeat("decoder", "model.layers.{}", LAYERS, *(blocks or LLAMA))
    return Family(name, config, f"{classes}ForCausalLM", CAUSAL | options, (stack,), GENERATION, "gpt2")


def gpt_like(
    name: str,
    classes: str,
    path: str,
    options: dict[str, Any],
    *blocks: Block,
    head: str = "ForCausalLM",
    ort_type: str = "gpt2",
) -> Family:
    """A decoder with its own module names and options."""
    stack = repeat("decoder", path, LAYERS, *blocks)
    return Family(name, f"{classes}Config", f"{classes}{head}", options, (stack,), GENERATION, ort_type)


def causal() -> list[Family]:
    """Decoders whose attention and FFN follow each other."""
    neo_attention = heads("attn.attention", "q_proj k_proj v_proj", "out_proj")
    opt_attention = heads("self_attn", "q_proj k_proj v_proj", "out_proj")
    opt_ffn = one(ffn("up=fc1 down=fc2", "activation_fn"), "pre", "final_layer_norm")
    gpt2_ffn = one(GPT2_FFN, "pre", "ln_2")
    phi3 = (
        one(heads("self_attn", "qkv_proj", "o_proj"), "pre", "input_layernorm"),
        one(
            ffn("up_gate=mlp.gate_up_proj down=mlp.down_proj", "mlp.activation_fn"),
            "pre",
            "post_attention_layernorm",
        ),
    )
    neo_options = TOKENS | {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_layers": LAYERS,
        "num_heads": 4,
        "intermediate_size": 56,
        "window_size": 8,
        "attention_types": [[["global", "local"], LAYERS // 2]],
        "max_position_embeddings": 64,
    }
    opt_options = TOKENS | {
        "vocab_size": 99,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": LAYERS,
        "ffn_dim": 56,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    layers = "transformer.h.{}"
    return [
        gpt_like(
            "gpt2", "GPT2", layers, GPT2, one(GPT2_ATTENTION, "pre", "ln_1"), gpt2_ffn, head="LMHeadModel"
        ),
        gpt_like("gpt_neo", "GPTNeo", layers, neo_options, one(neo_attention, "pre", "ln_1"), gpt2_ffn),
        gpt_like(
            "opt",
            "OPT",
            "model.decoder.layers.{}",
            opt_options,
            one(opt_attention, "pre", "self_attn_layer_norm"),
            opt_ffn,
        ),
        llama_like("llama", "Llama"),
        llama_like("mistral", "Mistral", sliding_window=None),
        llama_like("qwen2", "Qwen2"),
        llama_like("qwen3", "Qwen3", head_dim=12),
        llama_like("gemma", "Gemma", head_dim=12),
        llama_like("gemma2", "Gemma2", *GEMMA2, head_dim=12, query_pre_attn_scalar=12, sliding_window=64),
        llama_like("phi3", "Phi3", *phi3),
    ]


def parallels() -> list[Family]:
    """Decoders with attention and FFN on one join."""
    gptj = parallel(
        heads("attn", "q_proj k_proj v_proj", "out_proj"),
        ffn("up=mlp.fc_in down=mlp.fc_out", "mlp.act"),
        "ln_1",
    )
    neox_ffn = ffn(NEOX_FFN, "mlp.act")
    neox = parallel(heads("attention", "query_key_value", "dense"), neox_ffn, "input_layernorm")
    falcon = parallel(heads("self_attention", "query_key_value", "dense"), neox_ffn, "input_layernorm")
    phi = parallel(
        heads("self_attn", "q_proj k_proj v_proj", "dense"),
        ffn("up=mlp.fc1 down=mlp.fc2", "mlp.activation_fn"),
        "input_layernorm",
    )
    neox_options = {k: v for k, v in CAUSAL.items() if k not in {"num_key_value_heads", "pad_token_id"}}
    falcon_options = TOKENS | {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "ffn_hidden_size": 56,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "multi_query": True,
        "alibi": False,
        "bias": True,
        "max_position_embeddings": 64,
    }
    return [
        gpt_like("gptj", "GPTJ", "transformer.h.{}", GPT2 | {"rotary_dim": 4}, gptj),
        gpt_like(
            "gpt_neox",
            "GPTNeoX",
            "gpt_neox.layers.{}",
            neox_options | {"use_parallel_residual": True},
            neox,
            ort_type="gpt_neox",
        ),
        gpt_like("falcon", "Falcon", "transformer.h.{}", falcon_options, falcon),
        gpt_like("phi", "Phi", "model.layers.{}", CAUSAL | {"num_key_value_heads": 4}, phi),
    ]


def more_decoders() -> list[Family]:
    """Decoders beyond the list."""
    return beyond(*_more_gpt(), *_more_llama())


def _more_gpt() -> list[Family]:
    bloom = (
        one(heads("self_attention", "query_key_value", "dense"), "pre", "input_layernorm"),
        one(ffn(NEOX_FFN, "mlp.gelu_impl"), "pre", "post_attention_layernorm"),
    )
    mpt = (
        one(heads("attn", "Wqkv", "out_proj"), "pre", "norm_1"),
        one(ffn("up=ffn.up_proj down=ffn.down_proj", "ffn.act"), "pre", "norm_2"),
    )
    codegen = parallel(
        heads("attn", "qkv_proj", "out_proj"), ffn("up=mlp.fc_in down=mlp.fc_out", "mlp.act"), "ln_1"
    )
    bloom_options = TOKENS | {"vocab_size": 99, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4}
    mpt_options = TOKENS | {
        "vocab_size": 99,
        "d_model": 32,
        "n_layers": LAYERS,
        "n_heads": 4,
        "max_seq_len": 64,
    }
    layers = "transformer.h.{}"
    gpt2 = (one(GPT2_ATTENTION, "pre", "ln_1"), one(GPT2_FFN, "pre", "ln_2"))
    return [
        gpt_like("bloom", "Bloom", layers, bloom_options, *bloom),
        gpt_like("gpt_bigcode", "GPTBigCode", layers, GPT2, *gpt2),
        gpt_like("mpt", "Mpt", "transformer.blocks.{}", mpt_options, *mpt),
        gpt_like("codegen", "CodeGen", layers, GPT2 | {"rotary_dim": 4}, codegen),
    ]


def _more_llama() -> list[Family]:
    attention = LLAMA[0]
    nemotron_ffn = ffn("up=mlp.up_proj down=mlp.down_proj", "mlp.act_fn")
    glm_ffn = ffn("up_gate=mlp.gate_up_proj down=mlp.down_proj", "mlp.activation_fn")
    olmo2 = (  # a norm on the branch's output alone: none of the four words for a placement says that
        one(LLAMA_ATTENTION, None, branch_norm="post_attention_layernorm"),
        one(LLAMA_FFN, None, branch_norm="post_feedforward_layernorm"),
    )
    glm4 = (
        one(LLAMA_ATTENTION, "sandwich", "input_layernorm", "post_self_attn_layernorm"),
        one(glm_ffn, "sandwich", "post_attention_layernorm", "post_mlp_layernorm"),
    )

    def second(part: Part) -> tuple[Block, Block]:
        return attention, one(part, "pre", "post_attention_layernorm")

    return [
        llama_like("starcoder2", "Starcoder2", *second(GPT2_FFN), sliding_window=None),
        llama_like("olmo2", "Olmo2", *olmo2),
        llama_like("cohere", "Cohere", parallel(LLAMA_ATTENTION, LLAMA_FFN, "input_layernorm")),
        llama_like("granite", "Granite", residual_multiplier=0.7),
        llama_like("stablelm", "StableLm"),
        llama_like("smollm3", "SmolLM3"),
        llama_like("nemotron", "Nemotron", *second(nemotron_ffn)),
        llama_like("gemma3", "Gemma3", *GEMMA2, head_dim=12, sliding_window=64),
        llama_like("glm4", "Glm4", *glm4, head_dim=8),
        llama_like(
            "mixtral",
            "Mixtral",
            *second(Part("ffn", "block_sparse_moe")),
            num_local_experts=3,
            num_experts_per_tok=2,
        ),
    ]
