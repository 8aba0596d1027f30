"""Our parameter roles as names of Hugging Face's Llama, one to one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seedbed.core.errors import ConfigError
from seedbed.core.records import Role
from seedbed.models.transformer import Decoder, Transformer

_TENSORS = {
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "out"): "self_attn.o_proj",
    ("mlp", "gate"): "mlp.gate_proj",
    ("mlp", "up"): "mlp.up_proj",
    ("mlp", "down"): "mlp.down_proj",
    ("norm", "attention"): "input_layernorm",
    ("norm", "mlp"): "post_attention_layernorm",
}


def llama_name(role: Role) -> str:
    """Return the name of a parameter in a Llama state dict. Raises ConfigError for a role that Llama does not have."""
    kind = "bias" if role.tensor.split(".")[-1] == "bias" else "weight"
    tensor = role.tensor.removesuffix("bias").removesuffix(".")
    if role.layer is not None and (role.part, tensor) in _TENSORS:
        return f"model.layers.{role.layer}.{_TENSORS[role.part, tensor]}.{kind}"
    outer = {("embedding", ""): "model.embed_tokens", ("norm", "final"): "model.norm", ("head", ""): "lm_head"}
    if (role.part, tensor) in outer and (role.part != "head" or kind == "weight"):
        return f"{outer[role.part, tensor]}.{kind}"
    raise ConfigError(f"Llama has no parameter for {role}; this model opens with seedbed only")


def llama_weights(model: Transformer) -> Mapping[str, Tensor]:
    """Return the weights under Llama's names (a tied head is left out, as there)."""
    return {llama_name(model.roles[name]): p.detach() for name, p in model.named_parameters()}


def llama_config(config: Decoder, *, vocab_size: int) -> dict[str, object]:
    """Return the fields of a Llama config.json that describe this decoder."""
    if config.mask != "causal" or config.layers or config.head_bias:
        raise ConfigError("only a causal decoder with default layers and no head bias is a Llama")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": config.attention_dropout,
    }


def folder_settings(folder: str) -> dict[str, Any]:
    """Return the settings of a decoder like that of a model folder."""
    raise NotImplementedError(folder)
