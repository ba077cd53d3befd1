"""Encoder-decoder models: an encoder file, decoder files without and with a cache, and a merged one."""

from __future__ import annotations

from typing import Any

from tools.zoo_truth import Block, Family, Placement, Stack, beyond, ffn, heads, one, repeat

LAYERS = 3
ENCODER = ("encoder_model",)
DECODERS = ("decoder_model", "decoder_with_past_model", "decoder_model_merged")
TRANSLATION = ("text2text-generation-with-past", "text2text-generation")
SPEECH = ("automatic-speech-recognition-with-past", "automatic-speech-recognition")
TOKENS = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
BART: dict[str, Any] = TOKENS | {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "forced_eos_token_id": 2,
}


def seq2seq() -> list[Family]:
    """T5, BART and Whisper."""
    t5 = TOKENS | {
        "vocab_size": 99,
        "d_model": 32,
        "d_kv": 10,
        "d_ff": 56,
        "num_layers": LAYERS,
        "num_heads": 4,
    }
    whisper = BART | {
        "num_mel_bins": 12,
        "max_source_positions": 20,
        "max_target_positions": 64,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    return [
        Family("t5", "T5Config", "T5ForConditionalGeneration", t5, t5_stacks(), TRANSLATION, "t5", "seq2seq"),
        bart_like("bart", "Bart", "post"),
        Family(
            "whisper",
            "WhisperConfig",
            "WhisperForConditionalGeneration",
            whisper,
            bart_stacks("pre"),
            SPEECH,
            "bart",
            "audio",
        ),
    ]


def more_seq2seq() -> list[Family]:
    """Translators and chatbots beyond the list, all of BART's build."""
    return beyond(
        bart_like("marian", "Marian", "post", head="MTModel"),
        bart_like("pegasus", "Pegasus", "pre"),
        bart_like("mbart", "MBart", "pre"),
        bart_like("m2m_100", "M2M100", "pre"),
        bart_like("blenderbot", "Blenderbot", "pre"),
    )


def bart_like(
    name: str, classes: str, placement: Placement, head: str = "ForConditionalGeneration"
) -> Family:
    """A relative of BART; `classes` is what its config and model are called."""
    stacks = bart_stacks(placement)
    return Family(name, f"{classes}Config", f"{classes}{head}", BART, stacks, TRANSLATION, "bart", "seq2seq")


def bart_stacks(placement: Placement) -> tuple[Stack, ...]:
    """The encoder and decoder stacks of BART's relatives."""
    qkv = "q_proj k_proj v_proj"
    self_attention = one(heads("self_attn", qkv, "out_proj"), placement, "self_attn_layer_norm")
    cross = heads("encoder_attn", qkv, "out_proj", "cross_attention")
    last = one(ffn("up=fc1 down=fc2", "activation_fn"), placement, "final_layer_norm")
    decoder = (self_attention, one(cross, placement, "encoder_attn_layer_norm"), last)
    return (
        repeat("encoder", "model.encoder.layers.{}", LAYERS, self_attention, last, files=ENCODER),
        repeat("decoder", "model.decoder.layers.{}", LAYERS, *decoder, files=DECODERS),
    )


def t5_stacks() -> tuple[Stack, ...]:
    """T5: pre-norm, bias-free, relative positions computed once by the first block."""

    def dense(at: int) -> Block:
        module = f"layer.{at}.DenseReluDense"
        return one(ffn(f"up={module}.wi down={module}.wo", f"{module}.act"), "pre", f"layer.{at}.layer_norm")

    self_attention = one(heads("layer.0.SelfAttention", "q k v", "o"), "pre", "layer.0.layer_norm")
    cross = heads("layer.1.EncDecAttention", "q k v", "o", "cross_attention")
    decoder = (self_attention, one(cross, "pre", "layer.1.layer_norm"), dense(2))
    return (
        repeat("encoder", "encoder.block.{}", LAYERS, self_attention, dense(1), files=ENCODER),
        repeat("decoder", "decoder.block.{}", LAYERS, *decoder, files=DECODERS),
    )
