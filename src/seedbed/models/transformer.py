"""A decoder-only transformer of the Llama family, from embedding to logits.

RMSNorm before attention and MLP, rotary positions, SwiGLU, grouped-query heads; by settings also what Mistral (a window) and
Qwen (biases of queries, keys and values, norms of queries and keys) do. Weights map one to one onto Hugging Face's (see
hugging_face.py). Every parameter has a role, and every site (embedding, block_norms, attention, mlp, linear) can
be filled by another layer (sites.py). The model owns its head: whoever needs a loss asks `Outputs.token_loss`.
Papers: Touvron et al. (2023), "LLaMA"; Su et al. (2021), "RoFormer"; Ainslie et al. (2023), "GQA".
Letters: B rows, T positions, D width, H heads, K head width, P pairs of channels, V vocabulary.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from seedbed.core.errors import ConfigError
from seedbed.core.records import Batch, Cost, Role
from seedbed.core.roles import role_of
from seedbed.models.layers.site import HandsOn, StatesCost, StatesFirstValues, TakesOn
from seedbed.models.outputs import Outputs
from seedbed.models.rotary import rotary, rotary_frequencies, rotated
from seedbed.models.shape import Shape
from seedbed.models.sites import Builder, draws_of, fill


class Transformer(nn.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: Shape, *, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        build = Builder(config, vocab_size=vocab_size)
        self.embedding = build.embedding()
        self.blocks = nn.ModuleList(Block(build, layer) for layer in range(build.num_layers))
        self.norm = build.norm(Role("norm", None, "final"))
        self.head = build.linear(Role("head"), config.width, vocab_size, bias=config.head_bias)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.roles: dict[str, Role] = {name: role_of(self, name) for name, _ in self.named_parameters()}

    def forward(self, batch: Batch, *, taps: tuple[str, ...] = (), plain: bool = False) -> Outputs:
        """Return the hidden states of a batch, with the head to use on them.

        `taps` are "embedding" and "block.N", what the N-th block gives (from 0; from the end, if negative). `plain` makes the
        pass twice differentiable. Raises ConfigError for another tap.
        """
        if plain:
            with sdpa_kernel(SDPBackend.MATH):
                return self._forward(batch, taps)
        return self._forward(batch, taps)

    def _forward(self, batch: Batch, taps: tuple[str, ...]) -> Outputs:
        wanted = {self._tap(name): name for name in taps}
        hidden_BTD = self.embed(batch)
        positions_BT = None if batch.positions_BTA is None else batch.positions_BTA[..., 0]
        if positions_BT is None:
            positions_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None]
        rotation = self.rotation(positions_BT)
        documents = batch.documents_BT if self.config.document_mask else None  # none known: a row is one document
        if documents is None and (self.config.window or hidden_BTD.shape[1]) < hidden_BTD.shape[1]:
            documents = torch.zeros_like(hidden_BTD[..., 0], dtype=torch.int32)
        if batch.lengths_B is not None and not self.config.causal:  # else what is behind a row's end is seen by nobody
            places_T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
            documents = (0 if documents is None else documents) - (places_T >= batch.lengths_B[:, None]).int() * 2**30
        mask = (
            None
            if documents is None
            else attention_mask(documents, causal=self.config.mask == "causal", window=self.config.window)
        )
        tapped = {wanted[-1]: hidden_BTD} if -1 in wanted else {}
        for number, block in enumerate(self.blocks):
            hidden_BTD = block(hidden_BTD, rotation=rotation, mask=mask)
            if number in wanted:
                tapped[wanted[number]] = hidden_BTD
        return Outputs(hidden_BTD=self.norm(hidden_BTD), head=self.head, taps=tapped)

    def _tap(self, name: str) -> int:
        """Return the number of the block whose states a tap names; -1 for the embedding."""
        if name == "embedding":
            return -1
        kind, _, number = name.partition(".")
        depth = len(self.blocks)
        if kind != "block" or not number.removeprefix("-").isdecimal() or not -depth <= int(number) < depth:
            raise ConfigError(f"no tap {name!r}; there are embedding and block.0 to block.{depth - 1} (from the end: block.-1)")
        return int(number) % depth

    def rotation(self, positions_BT: Int[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
        """Return cosine and signed sine of positions, for queries and keys."""
        c = self.config
        frequencies_P = rotary_frequencies(c.head_dim, base=c.rope_base, scaling=c.rope_scaling, device=positions_BT.device)
        return rotary(positions_BT, frequencies_P)

    def embed(self, batch: Batch) -> Float[Tensor, "B T D"]:
        embedded_BTD: Tensor = self.embedding(batch.tokens_BT)
        return embedded_BTD

    @torch.no_grad()
    def initialize(
        self, *, seed: int, stream: str = "init", body_stream: str | None = None, embedding_std: float | None = None
    ) -> None:
        """Draw all weights anew; each tensor's values are a function of (seed, stream, its role), row by row.

        So a further layer or a longer vocabulary moves no other draw. `body_stream` names another stream for all but
        embedding and head; `embedding_std` is the spread of the embedding, in place of the model's `init_std`. A module that
        states its first values fills itself.
        """
        stating = {name: module for name, module in self.named_modules() if isinstance(module, StatesFirstValues)}
        for name, module in stating.items():
            place = str(role_of(self, f"{name}.weight"))
            draws = partial(draws_of, seed, body_stream or stream, place)
            module.first_values(draws, std=self.config.init_std)
        for name, parameter in self.named_parameters():
            if any(name.startswith(f"{inside}.") for inside in stating):
                continue
            role = self.roles[name]
            outer = role.part in ("embedding", "head")
            std = embedding_std if role.part == "embedding" and embedding_std is not None else self.config.init_std
            fill(parameter, role, seed=seed, name=stream if outer else body_stream or stream, std=std)

    def cost(self, batch: Batch) -> Cost:
        """Return the cost of one forward: two FLOPs a weight and position, and causal attention at half its square.

        The head is charged for the counted positions. A module that states its cost is charged that. A training step costs
        three times this.
        """
        size = batch.size
        head = sum(p.numel() for p in self.head.parameters())
        run, ideal = self._body_flops()
        length = size.positions / max(1, size.rows)
        seen = length if self.config.mask == "bidirectional" else (length + 1) / 2
        window = self.config.window
        if window is not None and window < length:  # the first rows of the band are a triangle
            seen = window * (1 - (window - 1) / (2 * length))
        attention = 4 * self.config.num_heads * self.config.head_dim * len(self.blocks) * seen
        rest = size.positions * attention + 2.0 * head * size.counted
        return Cost(positions=size.positions, flops_run=size.positions * run + rest, flops_ideal=size.positions * ideal + rest)

    def _body_flops(self) -> tuple[float, float]:
        """Return the FLOPs a position of all but embedding, attention's square and head: run and ideal."""
        stating = {name: module.flops() for name, module in self.named_modules() if isinstance(module, StatesCost)}
        plain = 2.0 * sum(
            p.numel()
            for n, p in self.named_parameters()
            if self.roles[n].part not in ("embedding", "head") and not any(n.startswith(f"{inside}.") for inside in stating)
        )
        return plain + sum(f.run for f in stating.values()), plain + sum(f.ideal for f in stating.values())


class Block(nn.Module):
    """Attention, then MLP, each on normed states and added to the stream."""

    def __init__(self, build: Builder, layer: int) -> None:
        super().__init__()
        self.attention = build.attention(layer, lambda: Attention(build, layer))
        self.mlp = build.mlp(layer, lambda: GatedMLP(build, layer))
        self.attention_norm: Any
        self.mlp_norm: Any
        self.attention_norm, self.mlp_norm = build.block_norms(layer, {"attention": self.attention, "mlp": self.mlp})
        self.hands_on = isinstance(self.attention_norm, HandsOn)
        if self.hands_on is not isinstance(self.mlp_norm, TakesOn):
            raise ConfigError(
                "of a pair of norms either the first hands on (`first`) and the second takes (`second`), or neither"
            )

    def forward(
        self, hidden_BTD: Float[Tensor, "B T D"], *, rotation: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Float[Tensor, "B T D"]:
        if self.hands_on:
            normed_BTD, memo = self.attention_norm.first(hidden_BTD)
            hidden_BTD = hidden_BTD + self.attention(normed_BTD, rotation=rotation, mask=mask)
            return hidden_BTD + self.mlp(self.mlp_norm.second(hidden_BTD, memo))
        hidden_BTD = hidden_BTD + self.attention(self.attention_norm(hidden_BTD), rotation=rotation, mask=mask)
        return hidden_BTD + self.mlp(self.mlp_norm(hidden_BTD))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, build: Builder, layer: int) -> None:
        super().__init__()
        c = build.config
        self.head_width, self.dropout, self.causal = c.head_dim, c.attention_dropout, c.mask == "causal"
        q_width, kv_width = (c.head_dim * heads for heads in (c.num_heads, c.num_kv_heads))
        self.grouped = c.num_kv_heads != c.num_heads
        inner, outer = bool(c.attention_bias), c.attention_bias is True
        self.query = build.linear(Role("attention", layer, "query"), c.width, q_width, bias=inner)
        self.key = build.linear(Role("attention", layer, "key"), c.width, kv_width, bias=inner)
        self.value = build.linear(Role("attention", layer, "value"), c.width, kv_width, bias=inner)
        self.out = build.linear(Role("attention", layer, "out"), q_width, c.width, bias=outer)
        norms = [build.norm(Role("norm", layer, name), width=c.head_dim) for name in ("query", "key")] if c.qk_norm else []
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

    def __init__(self, build: Builder, layer: int) -> None:
        super().__init__()
        c = build.config
        width = c.d_ff
        self.gate = build.linear(Role("mlp", layer, "gate"), c.width, width, bias=c.mlp_bias)
        self.up = build.linear(Role("mlp", layer, "up"), c.width, width, bias=c.mlp_bias)
        self.down = build.linear(Role("mlp", layer, "down"), width, c.width, bias=c.mlp_bias)

    def forward(self, states_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down(F.silu(self.gate(states_BTD)) * self.up(states_BTD))


def attention_mask(documents_BT: Int[Tensor, "B T"], *, causal: bool, window: int | None = None) -> Bool[Tensor, "B 1 T T"]:
    """Return which position sees which: its own document only, if causal nothing later, no further back than the window."""
    seen_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    if causal:
        length = documents_BT.shape[1]
        earlier_TT = torch.ones(length, length, dtype=torch.bool, device=seen_BTT.device).tril()
        seen_BTT = seen_BTT & (earlier_TT if window is None else earlier_TT.triu(1 - window))
    return seen_BTT[:, None]
