"""A decoder-only transformer of the Llama family, from embedding to logits.

RMSNorm before attention and MLP, rotary positions, SwiGLU, grouped-query heads; by settings also what Mistral (a window) and
Qwen (biases of queries, keys and values, norms of queries and keys) do. Weights map one to one onto Hugging Face's (see
hugging_face.py). Every parameter has a role, and every site (embedding, block_norms, attention, mlp, linear) can
be filled by another layer. The model owns its head: whoever needs a loss asks `Outputs.token_loss`.
Papers: Touvron et al. (2023), "LLaMA"; Su et al. (2021), "RoFormer"; Ainslie et al. (2023), "GQA".
Letters: B rows, T positions, D width, H heads, K head width, P pairs of channels, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seedbed.core.bounds import check_ranges, within
from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.protocols import Neutral
from seedbed.core.records import Batch, Cost, Role
from seedbed.models.layers import parts as layer_parts
from seedbed.models.layers.site import SITES, Site
from seedbed.models.outputs import Outputs
from seedbed.models.products import Linear
from seedbed.models.sizes import SIZES


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Settings of a decoder. `size` names a preset, or as `hf:FOLDER` a model folder; what is given beside it wins."""

    neutral: ClassVar[Neutral] = {"attention_dropout": 0.0}
    size: str | None = None
    num_layers: int | None = within(1, 10_000, default=None)
    d_model: int | None = within(1, 2**20, default=None)
    num_heads: int | None = within(1, 2**16, default=None)
    num_kv_heads: int | None = within(1, 2**16, default=None)  # None: as many as heads
    head_dim: int | None = within(2, 2**16, default=None)  # None: d_model / num_heads
    d_ff: int | None = within(1, 2**24, default=None)  # None: 8/3 of d_model, rounded up to a multiple of 8
    vocab_size: int | None = within(
        1, 2**31 - 1, default=None
    )  # rows of embedding and head, at least; None: as many as the stream has ids
    mask: Literal["causal", "bidirectional"] = "causal"
    window: int | None = within(1, 2**31, default=None)  # positions that one sees back, itself included; None: all
    document_mask: bool = False  # whether positions see only their own document
    tied_embeddings: bool = False
    attention_bias: bool | Literal["qkv"] = False  # "qkv": of queries, keys and values only
    qk_norm: bool = False  # RMSNorm of every head's queries and keys, before they are rotated
    mlp_bias: bool = False
    head_bias: bool = False
    attention_dropout: float = within(0, 1, default=0.0, below=True)  # the published NCA stage has 0.1
    rope_base: float = within(1, 1e15, default=10_000.0)
    # of long-context models: `rope_type` linear or llama3, and its numbers
    rope_scaling: dict[str, float | str] | None = within(0, 1e12, default=None, above=True)  # noqa: RUF009
    norm_eps: float = within(0, 1, default=1e-5, above=True)
    init_std: float = within(0, 1e20, default=0.02)
    layers: dict[str, str | dict[str, Any]] = field(default_factory=dict)  # site -> layer part

    def __post_init__(self) -> None:
        for name, value in _preset(self.size).items():
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                object.__setattr__(self, name, value)
        for name in ("num_layers", "d_model", "num_heads"):
            value = getattr(self, name)
            if value is None:
                raise ConfigError(f"a decoder needs a size ({', '.join(SIZES)}) or {name}")
        check_ranges(self)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", -(-self.width * 8 // 3 // 8) * 8)
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        heads, kv_heads = self.num_heads or 1, self.num_kv_heads or 1
        if self.head_dim is not None and self.head_dim % 2:
            raise ConfigError(f"head_dim must be even (rotary pairs), got {self.head_dim}")
        if self.head_dim is None and (self.width % heads or self.width // heads % 2):
            raise ConfigError(f"d_model {self.d_model} must be an even multiple of num_heads {heads} (rotary pairs)")
        if heads % kv_heads:
            raise ConfigError(f"num_heads {heads} must be a multiple of num_kv_heads {kv_heads}")
        if self.window is not None and self.mask != "causal":
            raise ConfigError(f"a window needs a causal mask; got {self.window} and {self.mask}")
        rotary_frequencies(self.head_width, base=self.rope_base, scaling=self.rope_scaling)  # refuses what it does not know
        for name in self.layers:
            if name not in SITES:
                raise ConfigError(f"no site {name!r}; {nearest(name, SITES)}")

    @property
    def width(self) -> int:
        return self.d_model or 0

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // (self.num_heads or 1)

    @property
    def layout_free(self) -> bool:
        """Whether micro-batches and ranks change nothing but rounding: dropout draws by micro-batch."""
        return self.attention_dropout == 0

    def build(self, *, vocab_size: int) -> "Transformer":
        return Transformer(self, vocab_size=max(vocab_size, self.vocab_size or 0))


def _preset(size: str | None) -> dict[str, Any]:
    if size is None:
        return {}
    if size.startswith("hf:"):
        from seedbed.models.hugging_face import folder_settings

        return folder_settings(size.removeprefix("hf:"))
    if size not in SIZES:
        raise ConfigError(f"no size {size!r}; {nearest(size, SIZES)} (or hf:FOLDER)")
    return SIZES[size]


class Transformer(nn.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: Decoder, *, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        build = _Builder(config, vocab_size=vocab_size)
        self.embedding = build.embedding()
        self.blocks = nn.ModuleList(Block(build, layer) for layer in range(build.num_layers))
        self.norm = build.norm(Role("norm", None, "final"))
        self.head = build.linear(Role("head"), config.width, vocab_size, bias=config.head_bias)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.roles: dict[str, Role] = _roles(self)

    def forward(self, batch: Batch) -> Outputs:
        """Return the hidden states of a batch, with the head to use on them."""
        hidden_BTD = self.embed(batch)
        positions_BT = None if batch.positions_BTA is None else batch.positions_BTA[..., 0]
        if positions_BT is None:
            positions_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None]
        rotation = self.rotation(positions_BT)
        documents = batch.documents_BT if self.config.document_mask else None  # none known: a row is one document
        if documents is None and (self.config.window or hidden_BTD.shape[1]) < hidden_BTD.shape[1]:
            documents = torch.zeros_like(batch.tokens_BT)
        mask = (
            None
            if documents is None
            else attention_mask(documents, causal=self.config.mask == "causal", window=self.config.window)
        )
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD, rotation=rotation, mask=mask)
        return Outputs(hidden_BTD=self.norm(hidden_BTD), head=self.head)

    def rotation(self, positions_BT: Int[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
        """Return cosine and signed sine of positions, for queries and keys."""
        c = self.config
        frequencies_P = rotary_frequencies(c.head_width, base=c.rope_base, scaling=c.rope_scaling, device=positions_BT.device)
        return rotary(positions_BT, frequencies_P)

    def stepper(self) -> Any:
        """Return the Stepper (see cache.py) that continues texts. Raises ConfigError for a bidirectional model."""
        from seedbed.models.cache import stepper  # which imports this file

        return stepper(self)

    def embed(self, batch: Batch) -> Float[Tensor, "B T D"]:
        embedded_BTD: Tensor = self.embedding(batch.tokens_BT)
        return embedded_BTD

    @torch.no_grad()
    def initialize(
        self, *, seed: int, stream: str = "init", body_stream: str | None = None, embedding_std: float | None = None
    ) -> None:
        """Draw all weights anew; each tensor's values are a function of (seed, stream, its role), row by row.

        So a further layer or a longer vocabulary moves no other draw. `body_stream` names another stream for all but
        embedding and head; `embedding_std` is the spread of the embedding, in place of the model's `init_std`.
        """
        for name, parameter in self.named_parameters():
            role = self.roles[name]
            outer = role.part in ("embedding", "head")
            std = embedding_std if role.part == "embedding" and embedding_std is not None else self.config.init_std
            _fill(parameter, role, seed=seed, name=stream if outer else body_stream or stream, std=std)

    def cost(self, *, rows: int, seq_len: int, counted: int | None = None) -> Cost:
        """Return the cost of one forward: two FLOPs a weight and position, and causal attention at half its square.

        The head is charged for `counted` positions (all, if None). A training step costs three times this.
        """
        positions = rows * seq_len
        head = sum(p.numel() for p in self.head.parameters())
        body = sum(p.numel() for n, p in self.named_parameters() if self.roles[n].part not in ("embedding", "head"))
        seen = float(seq_len) if self.config.mask == "bidirectional" else (seq_len + 1) / 2
        if self.config.window is not None and self.config.window < seq_len:  # the first rows of the band are a triangle
            seen = self.config.window * (1 - (self.config.window - 1) / (2 * seq_len))
        attention = 4 * (self.config.num_heads or 1) * self.config.head_width * len(self.blocks) * seen
        flops = positions * (2.0 * body + attention) + 2.0 * head * (positions if counted is None else counted)
        return Cost(positions=positions, flops_run=flops, flops_ideal=flops)


class Block(nn.Module):
    """Attention, then MLP, each on normed states and added to the stream."""

    def __init__(self, build: "_Builder", layer: int) -> None:
        super().__init__()
        self.attention = build.attention(layer)
        self.mlp = build.mlp(layer)
        self.attention_norm, self.mlp_norm = build.block_norms(layer, {"attention": self.attention, "mlp": self.mlp})

    def forward(
        self, hidden_BTD: Float[Tensor, "B T D"], *, rotation: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Float[Tensor, "B T D"]:
        hidden_BTD = hidden_BTD + self.attention(self.attention_norm(hidden_BTD), rotation=rotation, mask=mask)
        return hidden_BTD + self.mlp(self.mlp_norm(hidden_BTD))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, build: "_Builder", layer: int) -> None:
        super().__init__()
        c = build.config
        self.head_width, self.dropout, self.causal = c.head_width, c.attention_dropout, c.mask == "causal"
        q_width, kv_width = (c.head_width * (heads or 1) for heads in (c.num_heads, c.num_kv_heads))
        self.grouped = c.num_kv_heads != c.num_heads
        inner, outer = bool(c.attention_bias), c.attention_bias is True
        self.query = build.linear(Role("attention", layer, "query"), c.width, q_width, bias=inner)
        self.key = build.linear(Role("attention", layer, "key"), c.width, kv_width, bias=inner)
        self.value = build.linear(Role("attention", layer, "value"), c.width, kv_width, bias=inner)
        self.out = build.linear(Role("attention", layer, "out"), q_width, c.width, bias=outer)
        norms = [build.norm(Role("norm", layer, name), width=c.head_width) for name in ("query", "key")] if c.qk_norm else []
        self.query_norm: nn.Module = norms[0] if norms else nn.Identity()
        self.key_norm: nn.Module = norms[1] if norms else nn.Identity()

    def forward(
        self, states_BTD: Float[Tensor, "B T D"], *, rotation: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Float[Tensor, "B T D"]:
        return self.mixed(*self.project(states_BTD, rotation=rotation), mask=mask)

    def mixed(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, *, mask: Tensor | None) -> Float[Tensor, "B T D"]:
        """Return what each position gathers from the values it sees, behind the output projection."""
        mixed_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BHTK,
            v_BHTK,
            attn_mask=mask,
            is_causal=self.causal and mask is None,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.grouped,
        )
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2))

    def project(self, states_BTD: Float[Tensor, "B T D"], *, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of every head, the first two rotated to their positions."""
        rows, positions, _ = states_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            linear(states_BTD).view(rows, positions, -1, self.head_width).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        return rotated(self.query_norm(q_BHTK), *rotation), rotated(self.key_norm(k_BHTK), *rotation), v_BHTK


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)).

    Paper: Shazeer (2020), "GLU variants improve transformer".
    """

    def __init__(self, build: "_Builder", layer: int) -> None:
        super().__init__()
        c = build.config
        width = c.d_ff or 0
        self.gate = build.linear(Role("mlp", layer, "gate"), c.width, width, bias=c.mlp_bias)
        self.up = build.linear(Role("mlp", layer, "up"), c.width, width, bias=c.mlp_bias)
        self.down = build.linear(Role("mlp", layer, "down"), width, c.width, bias=c.mlp_bias)

    def forward(self, states_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down(F.silu(self.gate(states_BTD)) * self.up(states_BTD))


def rotary_frequencies(
    head_width: int, *, base: float, scaling: Mapping[str, float | str] | None = None, device: torch.device | None = None
) -> Float[Tensor, "P"]:
    """Return the angle by which each pair of channels turns from one position to the next.

    Scaling "linear" divides all by `factor`; "llama3" divides slow ones (whose wave is longer than the original context over
    `low_freq_factor`), leaves fast ones and blends between. Raises ConfigError for any other kind or a missing number.
    Paper: Su et al. (2021); Grattafiori et al. (2024), "The Llama 3 herd of models", for the blend.
    """
    channels = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    plain_P = 1.0 / base**channels
    if scaling is None:
        return plain_P
    kind = scaling.get("rope_type", scaling.get("type"))
    needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)}
    if kind not in needed:
        raise ConfigError(f"rope_scaling: the kind {kind!r} is not known; known: {', '.join(needed)}")
    missing = [name for name in needed[str(kind)] if not isinstance(scaling.get(name), int | float)]
    if missing:
        raise ConfigError(f"rope_scaling {kind!r} needs numbers for: {', '.join(missing)}")
    factor = float(scaling["factor"])
    if kind == "linear":
        return plain_P / factor
    low, high, original = (float(scaling[name]) for name in ("low_freq_factor", "high_freq_factor", _ORIGINAL))
    turns_P = original * plain_P / (2 * math.pi)  # over the original context
    kept_P = ((turns_P - low) / (high - low)).clamp(0, 1)
    return plain_P * (kept_P + (1 - kept_P) / factor)


_ORIGINAL = "original_max_position_embeddings"


def rotary(positions_BT: Int[Tensor, "B T"], frequencies_P: Float[Tensor, "P"]) -> tuple[Tensor, Tensor]:
    """Return cosine and signed sine of every position and channel, shaped to multiply (B, H, T, K).

    The sine of the first half is negative: there `rotated` subtracts.
    """
    angles = positions_BT[..., None].float() * frequencies_P
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotated(states_BHTK: Float[Tensor, "B H T K"], cos: Tensor, signed_sin: Tensor) -> Float[Tensor, "B H T K"]:
    """Rotate channel k together with channel k + K/2 (the halves convention of Llama)."""
    first, second = states_BHTK.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    return torch.addcmul(states_BHTK * cos, swapped, signed_sin).to(states_BHTK.dtype)


def attention_mask(documents_BT: Int[Tensor, "B T"], *, causal: bool, window: int | None = None) -> Bool[Tensor, "B 1 T T"]:
    """Return which position sees which: its own document only, if causal nothing later, no further back than the window."""
    seen_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    if causal:
        length = documents_BT.shape[1]
        earlier_TT = torch.ones(length, length, dtype=torch.bool, device=seen_BTT.device).tril()
        seen_BTT = seen_BTT & (earlier_TT if window is None else earlier_TT.triu(1 - window))
    return seen_BTT[:, None]


class _Builder:
    """Fills the sites of a model, each with the layer that the settings ask for, and leaves a role on every leaf."""

    def __init__(self, config: Decoder, *, vocab_size: int) -> None:
        self.config, self.vocab_size, self.num_layers = config, vocab_size, config.num_layers or 0
        self._layers = {
            site: layer_parts.build(config.layers.get(site, "default"), path=f"model.layers.{site}") for site in SITES
        }

    def embedding(self) -> nn.Module:
        return self._fill("embedding", Role("embedding"), lambda: nn.Embedding(self.vocab_size, self.config.width))

    def attention(self, layer: int) -> nn.Module:
        return self._fill("attention", Role("attention", layer), lambda: Attention(self, layer))

    def mlp(self, layer: int) -> nn.Module:
        return self._fill("mlp", Role("mlp", layer), lambda: GatedMLP(self, layer))

    def linear(self, role: Role, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        sizes = {"in_features": in_features, "out_features": out_features, "bias": bias}

        def default() -> nn.Module:
            return Linear(in_features, out_features, bias=bias)

        return default_with_role(role, default) if role.part == "head" else self._fill("linear", role, default, sizes=sizes)

    def norm(self, role: Role, *, width: int | None = None) -> nn.Module:
        return default_with_role(role, lambda: nn.RMSNorm(width or self.config.width, eps=self.config.norm_eps))

    def block_norms(self, layer: int, siblings: Mapping[str, nn.Module]) -> nn.ModuleList:
        def default() -> nn.Module:
            return nn.ModuleList([self.norm(Role("norm", layer, "attention")), self.norm(Role("norm", layer, "mlp"))])

        pair = self._fill("block_norms", Role("norm", layer), default, siblings=siblings)
        if not (isinstance(pair, nn.ModuleList) and len(pair) == 2):
            raise ConfigError("a block_norms layer must build a ModuleList of two: before attention, before the MLP")
        return pair

    def _fill(
        self,
        name: str,
        role: Role,
        default: Callable[[], nn.Module],
        *,
        sizes: Mapping[str, Any] | None = None,
        siblings: Mapping[str, nn.Module] | None = None,
    ) -> nn.Module:
        c = self.config
        sizes = sizes or {"d_model": c.width, "num_heads": c.num_heads, "d_ff": c.d_ff, "vocab_size": self.vocab_size}
        site = Site(name=name, role=role, num_layers=self.num_layers, sizes=sizes, default=default, siblings=siblings or {})
        return default_with_role(role, lambda: self._layers[name].build(site))


def default_with_role(role: Role, build: Callable[[], nn.Module]) -> nn.Module:
    module = build()
    module.role = role  # type: ignore[assignment]  # read by _roles; inner modules may carry finer roles
    return module


def _roles(model: nn.Module) -> dict[str, Role]:
    """Return every parameter's role: that of the nearest module that has one; tensors beside `weight` by their name."""
    roles = {}
    for name, _ in model.named_parameters():
        owner: Any = model
        role, rest = Role("other"), name
        parts = name.split(".")
        for i, part in enumerate(parts[:-1]):
            owner = getattr(owner, part)
            if isinstance(getattr(owner, "role", None), Role):
                role, rest = owner.role, ".".join(parts[i + 1 :])
        suffix = "" if rest == "weight" else rest.removesuffix(".weight")
        roles[name] = Role(role.part, role.layer, ".".join(t for t in (role.tensor, suffix) if t))
    return roles


def _fill(parameter: Tensor, role: Role, *, seed: int, name: str, std: float) -> None:
    """Matrices are normal, gains (one-dimensional weights) one, biases zero."""
    if role.tensor.endswith("bias"):
        parameter.zero_()
    elif parameter.ndim < 2:
        parameter.fill_(1.0)
    else:
        draws = stream(seed, name, str(role)).standard_normal(tuple(parameter.shape), dtype="float32")
        parameter.copy_(torch.from_numpy(draws) * std)
