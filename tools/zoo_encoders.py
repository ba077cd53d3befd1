"""Text encoders, and speech encoders, which have the same layers."""

from __future__ import annotations

from typing import Any

from tools.zoo_truth import Block, Family, Layer, Part, Stack, beyond, ffn, heads, one, repeat

LAYERS = 4
TEXT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
}
SPEECH: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "conv_dim": [16, 16],
    "conv_stride": [4, 4],
    "conv_kernel": [8, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}
BERT_ATTENTION = heads("attention", "self.query self.key self.value", "output.dense")
BERT_FFN = ffn("up=intermediate.dense down=output.dense", "intermediate.intermediate_act_fn")


def bert_like(
    attention: Part = BERT_ATTENTION, norm: str = "attention.output.LayerNorm"
) -> tuple[Stack, ...]:
    """BERT's two post-norm blocks, with another attention where given."""
    blocks = (one(attention, "post", norm), one(BERT_FFN, "post", "output.LayerNorm"))
    return (repeat("encoder", "encoder.layer.{}", LAYERS, *blocks),)


def text_encoders() -> list[Family]:
    """BERT and its relatives."""
    distilbert = (
        one(heads("attention", "q_lin k_lin v_lin", "out_lin"), "post", "sa_layer_norm"),
        one(ffn("up=ffn.lin1 down=ffn.lin2", "ffn.activation"), "post", "output_layer_norm"),
    )
    albert = (
        one(heads("attention", "query key value", "dense"), "post", "attention.LayerNorm"),
        one(ffn("up=ffn down=ffn_output", "activation"), "post", "full_layer_layer_norm"),
    )
    distilbert_options = {
        "vocab_size": 99,
        "dim": 32,
        "n_layers": LAYERS,
        "n_heads": 4,
        "hidden_dim": 56,
        "max_position_embeddings": 64,
    }
    modernbert_options = TEXT | {
        "pad_token_id": 0,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "norm_bias": True,
        "reference_compile": False,
    }
    narrow = TEXT | {"embedding_size": 24}
    return [
        Family("bert", "BertConfig", "BertModel", TEXT, bert_like()),
        Family(
            "distilbert",
            "DistilBertConfig",
            "DistilBertModel",
            distilbert_options,
            (repeat("encoder", "transformer.layer.{}", LAYERS, *distilbert),),
        ),
        Family("roberta", "RobertaConfig", "RobertaModel", TEXT, bert_like()),
        Family(
            "albert",
            "AlbertConfig",
            "AlbertModel",
            narrow,
            (repeat("encoder", "encoder.albert_layer_groups.0.albert_layers.0", LAYERS, *albert),),
        ),
        Family("electra", "ElectraConfig", "ElectraModel", narrow, bert_like()),
        Family("modernbert", "ModernBertConfig", "ModernBertModel", modernbert_options, (_modernbert(),)),
    ]


def _modernbert() -> Stack:
    """The first layer reads the embedding's norm, and has none of its own before its attention."""
    attention = heads("attn", "Wqkv", "Wo")
    last = one(ffn("up_gate=mlp.Wi down=mlp.Wo", "mlp.act"), "pre", "mlp_norm")
    layers = [
        Layer(f"layers.{i}", (one(attention, "pre" if i else "none", "attn_norm"), last))
        for i in range(LAYERS)
    ]
    return Stack("encoder", tuple(layers))


def more_encoders() -> list[Family]:
    """Encoders beyond the list."""
    return beyond(*_more_text(), *_speech())


def _more_text() -> list[Family]:
    mpnet = heads("attention.attn", "q k v", "o")
    deberta = heads("attention", "self.in_proj", "output.dense")
    deberta_v2 = heads("attention", "self.query_proj self.key_proj self.value_proj", "output.dense")
    relative = TEXT | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": 16,
    }
    shared_keys = {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    groups = dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"), 2)
    squeezebert_options = TEXT | groups | {"embedding_size": 32, "post_attention_groups": 1}
    squeezebert_attention = heads("attention", "query key value", "", output="post_attention.conv1d")
    squeezebert_attention.roles["o"] = "post_attention.conv1d"
    squeezebert = (
        one(squeezebert_attention, "post", "post_attention.layernorm"),
        one(ffn("up=intermediate.conv1d down=output.conv1d", "intermediate.act"), "post", "output.layernorm"),
    )
    esm = (
        one(BERT_ATTENTION, "pre", "attention.LayerNorm"),
        one(ffn("up=intermediate.dense down=output.dense"), "pre", "LayerNorm"),
    )
    esm_options = TEXT | {
        "pad_token_id": 0,
        "mask_token_id": 3,
        "position_embedding_type": "rotary",
        "token_dropout": False,
    }
    return [
        Family("xlm_roberta", "XLMRobertaConfig", "XLMRobertaModel", TEXT, bert_like()),
        Family("camembert", "CamembertConfig", "CamembertModel", TEXT, bert_like()),
        Family("roformer", "RoFormerConfig", "RoFormerModel", TEXT, bert_like()),
        Family("mpnet", "MPNetConfig", "MPNetModel", TEXT, bert_like(mpnet, "attention.LayerNorm")),
        Family("deberta", "DebertaConfig", "DebertaModel", relative, bert_like(deberta)),
        Family(
            "deberta_v2", "DebertaV2Config", "DebertaV2Model", relative | shared_keys, bert_like(deberta_v2)
        ),
        Family(
            "squeezebert",
            "SqueezeBertConfig",
            "SqueezeBertModel",
            squeezebert_options,
            (repeat("encoder", "encoder.layers.{}", LAYERS, *squeezebert),),
        ),
        Family(
            "esm",
            "EsmConfig",
            "EsmModel",
            esm_options,
            (repeat("encoder", "encoder.layer.{}", LAYERS, *esm),),
        ),
    ]


def _speech() -> list[Family]:
    def half_step(module: str) -> Block:
        linears = f"up={module}.intermediate_dense down={module}.output_dense"
        return one(ffn(linears, f"{module}.intermediate_act_fn"), None, f"{module}_layer_norm")

    feed_forward = ffn(
        "up=feed_forward.intermediate_dense down=feed_forward.output_dense",
        "feed_forward.intermediate_act_fn",
    )
    wav2vec2 = (
        one(heads("attention", "q_proj k_proj v_proj", "out_proj"), "post", "layer_norm"),
        one(feed_forward, "post", "final_layer_norm"),
    )
    conformer = (
        half_step("ffn1"),
        one(heads("self_attn", "linear_q linear_k linear_v", "linear_out"), "pre", "self_attn_layer_norm"),
        one(Part("conv", "conv_module"), "pre", "conv_module.layer_norm"),
        half_step("ffn2"),
    )
    stacks = (
        repeat("positions", "encoder", 1, one(Part("conv", "pos_conv_embed"), "post", "layer_norm")),
        repeat("encoder", "encoder.layers.{}", 3, *wav2vec2),
    )
    return [
        Family("wav2vec2", "Wav2Vec2Config", "Wav2Vec2Model", SPEECH, stacks, modality="speech"),
        Family("hubert", "HubertConfig", "HubertModel", SPEECH, stacks, modality="speech"),
        Family(
            "wav2vec2_conformer",
            "Wav2Vec2ConformerConfig",
            "Wav2Vec2ConformerModel",
            SPEECH | {"conv_depthwise_kernel_size": 5},
            (repeat("encoder", "encoder.layers.{}", 3, *conformer),),
            modality="speech",
        ),
    ]
