"""The numbers of a decoder, all of them settled: what its modules, its cache and its way to other formats are made by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Shape:
    """See `seedbed.models.decoder.Decoder`, which settles them from a recipe's settings."""

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    mask: Literal["causal", "bidirectional"] = "causal"
    window: int | None = None
    document_mask: bool = False
    tied_embeddings: bool = False
    attention_bias: bool | Literal["qkv"] = False
    qk_norm: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    attention_dropout: float = 0.0
    rope_base: float = 10_000.0
    rope_scaling: Mapping[str, float | str] | None = None
    norm_eps: float = 1e-5
    init_std: float = 0.02
    layers: Mapping[str, Any] = field(default_factory=dict)  # site -> layers, as a recipe names them

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def causal(self) -> bool:
        return self.mask == "causal"
