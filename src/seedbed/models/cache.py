"""Rows read once and then continued token by token, so that a new token costs one position and not the whole row again.

P prompts are read in one batch, and each is continued by S samples, which share what is kept of their prompt: attention in a
step is one product of all samples of a prompt with the prompt's keys, and one of each row with its own keys.

A row shows at most seq_len ids: of a longer prompt the last. Where one more would not fit, the last seq_len // 2 ids (at least
one), the newest among them, are shown anew, from position 0 on. So what a row is shown depends on that row alone, never on
those that stand beside it.

Letters: B rows read, T their positions, P prompts, S samples of each, N rows of a step (N = P * S), C own positions, D width,
H heads, G heads of keys and values, M heads to each of those (H = G * M), X heads of all kinds, K head width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seedbed.core.errors import ConfigError
from seedbed.core.records import Batch
from seedbed.models.products import Linear
from seedbed.models.rotary import rotated
from seedbed.models.shape import Shape
from seedbed.models.transformer import Attention, Block, GatedMLP, Transformer, attention_mask

READ_AT_ONCE = 2**14  # positions that go through the model together while prompts are read
POSITION_WISE = (Linear, nn.Linear, nn.RMSNorm, nn.LayerNorm, nn.Embedding, nn.Identity, GatedMLP)


@runtime_checkable
class Grid(Protocol):
    """P prompts with S samples each, on their way: every step adds one id to every row."""

    logits_PV: Tensor  # behind each prompt

    def advance(self, ids_PS: Int[Tensor, "P S"]) -> Float[Tensor, "P S V"]:
        """Add these ids; return the logits behind them."""

    def keep(self, rows_PS: Int[Tensor, "P S"]) -> None:
        """Go on with these rows of the grid alone (row p * S + s); those of one line have one prompt."""


@runtime_checkable
class Stepper(Protocol):
    """What a writer asks of a model. Any number of grids may be on their way, in threads of their own."""

    def begin(self, prompts: Sequence[Int[Tensor, "_"]], *, samples: int, seq_len: int) -> Grid:
        """Read prompts of one id or more."""


def stepper(model: Transformer) -> Stepper:
    """Return a stepper that keeps keys and values if every layer allows it, else one that computes all rows anew.

    Attention of another make has no keys that are known here, and another layer that does not say `position_wise = True`
    could look at other positions. Raises ConfigError for a bidirectional model.
    """
    if model.config.mask != "causal":
        raise ConfigError(
            f"this model has the mask {model.config.mask!r}: a position has seen what follows it, so the model cannot continue "
            "a text; sample from a model with the mask 'causal'"
        )
    return Cached(model) if _can_keep(model) else Recomputed(model)


def _can_keep(model: Transformer) -> bool:
    apart: list[nn.Module] = [model.embedding]
    for block in model.blocks:
        if type(block) is not Block or block.hands_on or type(block.attention) is not Attention:
            return False
        apart += [block.attention_norm, block.mlp_norm, block.mlp, *block.attention.children()]
        apart += block.mlp.children() if type(block.mlp) is GatedMLP else []
    return all(type(layer) in POSITION_WISE or getattr(layer, "position_wise", False) is True for layer in apart)


def shown_anew(seq_len: int) -> int:
    """Return how many of its last ids a row shows when one more than seq_len would not fit."""
    return max(1, seq_len // 2)


@dataclass(frozen=True)
class Recomputed:
    """Any model that continues text, without memory: every step shows it each row from the start."""

    model: Callable[[Batch], Any]

    def begin(self, prompts: Sequence[Int[Tensor, "_"]], *, samples: int, seq_len: int) -> Grid:
        return _RecomputedGrid(self.model, prompts, samples=samples, seq_len=seq_len)


class _RecomputedGrid:
    """The ids of every row. Rows of one length go together, so that no layer meets padding."""

    def __init__(
        self, model: Callable[[Batch], Any], prompts: Sequence[Int[Tensor, "_"]], *, samples: int, seq_len: int
    ) -> None:
        self.model, self.seq_len = model, seq_len
        shown = [ids_T[-seq_len:] for ids_T in prompts]
        self.logits_PV = self._logits(shown)
        self.rows = [ids_T for ids_T in shown for _ in range(samples)]

    def advance(self, ids_PS: Int[Tensor, "P S"]) -> Float[Tensor, "P S V"]:
        longer = [torch.cat([ids_T, id[None]]) for ids_T, id in zip(self.rows, ids_PS.flatten(), strict=True)]
        self.rows = [ids_T if len(ids_T) <= self.seq_len else ids_T[-shown_anew(self.seq_len) :] for ids_T in longer]
        return self._logits(self.rows).unflatten(0, tuple(ids_PS.shape))

    def keep(self, rows_PS: Int[Tensor, "P S"]) -> None:
        self.rows = [self.rows[n] for n in rows_PS.flatten().tolist()]

    def _logits(self, rows: list[Tensor]) -> Float[Tensor, "N V"]:
        found: dict[int, Tensor] = {}
        for length in {len(ids_T) for ids_T in rows}:
            alike = [n for n, ids_T in enumerate(rows) if len(ids_T) == length]
            for some in (alike[portion] for portion in _portions(len(alike), length=length)):
                outputs = self.model(Batch(tokens_BT=torch.stack([rows[n] for n in some])))
                found |= zip(some, outputs.logits(positions=slice(-1, None))[:, 0], strict=True)
        return torch.stack([found[n] for n in range(len(rows))])


def _portions(rows: int, *, length: int) -> list[slice]:
    """Return portions of the rows, each of at most READ_AT_ONCE positions, but of one row at least."""
    size = max(1, READ_AT_ONCE // length)
    return [slice(start, start + size) for start in range(0, rows, size)]


class Cached:
    """A decoder of default attention, whose keys and values are kept in the number type of its weights."""

    def __init__(self, model: Transformer) -> None:
        self.model: Any = model
        self.norm = _quick_norm(model.norm)
        self.layers = [_Layer(block, model.config) for block in model.blocks]

    def begin(self, prompts: Sequence[Int[Tensor, "_"]], *, samples: int, seq_len: int) -> Grid:
        return _CachedGrid(self, prompts, samples=samples, seq_len=seq_len)

    def read(
        self, tokens_BT: Int[Tensor, "B T"], *, kept: Sequence[tuple[Tensor, Tensor]], last_B: Int[Tensor, "B"]
    ) -> Float[Tensor, "B V"]:
        """Return the logits behind the last position of each row; write every layer's keys and values (B, G, T, K) to `kept`.

        Positions behind the last are padding, which nothing before them sees.
        """
        hidden_BTD = self.model.embed(Batch(tokens_BT=tokens_BT))
        length, window = tokens_BT.shape[1], self.model.config.window
        rotation = self.model.rotation(torch.arange(length, device=tokens_BT.device)[None])
        banded = window is not None and window < length
        mask = attention_mask(torch.zeros_like(tokens_BT[:1]), causal=True, window=window) if banded else None
        for layer, (keys_BGTK, values_BGTK) in zip(self.layers, kept, strict=True):
            block = layer.block
            q_BHTK, k_BGTK, v_BGTK = block.attention.project(block.attention_norm(hidden_BTD), rotation=rotation)
            keys_BGTK.copy_(k_BGTK)
            values_BGTK.copy_(v_BGTK)
            hidden_BTD = hidden_BTD + block.attention.mixed(q_BHTK, k_BGTK, v_BGTK, mask=mask)
            hidden_BTD = hidden_BTD + block.mlp(block.mlp_norm(hidden_BTD))
        return self.logits(hidden_BTD[torch.arange(len(last_B)), last_B])

    def logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        logits: Tensor = self.model.head(self.norm(hidden))
        return logits


class _CachedGrid:
    """Keys and values of P prompts, and of the own positions of S samples each."""

    def __init__(self, stepper: Cached, prompts: Sequence[Int[Tensor, "_"]], *, samples: int, seq_len: int) -> None:
        self.stepper, self.seq_len = stepper, seq_len
        self.prompts = [ids_T[-seq_len:] for ids_T in prompts]
        self.prompt_lengths, self.own_lengths = [len(ids_T) for ids_T in self.prompts], [0] * len(prompts)
        self.own_ids_PSC = self.prompts[0].new_zeros(len(prompts), samples, 0)
        padded_PT = nn.utils.rnn.pad_sequence(self.prompts, batch_first=True)
        last_P = torch.tensor(self.prompt_lengths, device=padded_PT.device) - 1
        config, weight = stepper.model.config, stepper.model.head.weight
        heads, width = config.num_kv_heads or 1, config.head_dim
        self.memory = [
            _Memory(
                prompt_keys_PGTK=weight.new_empty(len(prompts), heads, padded_PT.shape[1], width),
                prompt_values_PGTK=weight.new_empty(len(prompts), heads, padded_PT.shape[1], width),
                own_keys_PSGCK=weight.new_empty(len(prompts), samples, heads, 0, width),
                own_values_PSGCK=weight.new_empty(len(prompts), samples, heads, 0, width),
            )
            for _ in stepper.layers
        ]
        logits = []
        for some in _portions(len(prompts), length=padded_PT.shape[1]):
            kept = [(memory.prompt_keys_PGTK[some], memory.prompt_values_PGTK[some]) for memory in self.memory]
            logits.append(stepper.read(padded_PT[some], kept=kept, last_B=last_P[some]))
        self.logits_PV = torch.cat(logits)

    def advance(self, ids_PS: Int[Tensor, "P S"]) -> Float[Tensor, "P S V"]:
        for prompt, length in enumerate(self.own_lengths):
            if self.prompt_lengths[prompt] + length == self.seq_len:
                self._show_anew(prompt)
        self._make_room(max(self.own_lengths) + 1)
        step = self._step(ids_PS)
        self.own_ids_PSC[step.place] = ids_PS
        hidden_PSD = self.stepper.model.embed(Batch(tokens_BT=ids_PS))
        for layer, memory in zip(self.stepper.layers, self.memory, strict=True):
            hidden_PSD = layer(hidden_PSD, memory=memory, step=step)
        self.own_lengths = [length + 1 for length in self.own_lengths]
        return self.stepper.logits(hidden_PSD)

    def keep(self, rows_PS: Int[Tensor, "P S"]) -> None:
        lines = (rows_PS[:, 0] // self.own_ids_PSC.shape[1]).tolist()
        self.prompts = [self.prompts[p] for p in lines]
        self.prompt_lengths = [self.prompt_lengths[p] for p in lines]
        self.own_lengths = [self.own_lengths[p] for p in lines]
        self.own_ids_PSC = self.own_ids_PSC.flatten(0, 1)[rows_PS]
        for memory in self.memory:
            memory.keep(rows_PS, lines)

    def _show_anew(self, prompt: int) -> None:
        """Forget the prompt and all but the last ids of its samples, and read those again as if nothing stood before."""
        own_SC = self.own_ids_PSC[prompt, :, : self.own_lengths[prompt]]
        before_ST = self.prompts[prompt][: self.prompt_lengths[prompt]].expand(len(own_SC), -1)
        length = shown_anew(self.seq_len) - 1  # and the id that comes now
        ids_ST = torch.cat([before_ST, own_SC], dim=1)[:, self.seq_len - length :]
        self.prompt_lengths[prompt], self.own_lengths[prompt] = 0, length
        self._make_room(length)
        self.own_ids_PSC[prompt, :, :length] = ids_ST
        for some in _portions(len(ids_ST), length=length) if length else []:
            own = [(memory.own_keys_PSGCK[prompt, some], memory.own_values_PSGCK[prompt, some]) for memory in self.memory]
            kept = [(keys_SGCK[:, :, :length], values_SGCK[:, :, :length]) for keys_SGCK, values_SGCK in own]
            self.stepper.read(ids_ST[some], kept=kept, last_B=torch.full_like(ids_ST[some, 0], length - 1))

    def _make_room(self, length: int) -> None:
        """Make room for so many own positions, but not for many more: what lies close together is read faster."""
        room = self.own_ids_PSC.shape[2]
        if length > room:
            more = max(length - room, 32, room // 4)
            self.own_ids_PSC = _longer(self.own_ids_PSC, more, dim=2)
            for memory in self.memory:
                memory.own_keys_PSGCK = _longer(memory.own_keys_PSGCK, more, dim=3)
                memory.own_values_PSGCK = _longer(memory.own_values_PSGCK, more, dim=3)

    def _step(self, ids_PS: Int[Tensor, "P S"]) -> "_Step":
        device, window = ids_PS.device, self.stepper.model.config.window
        prompt_P1, own_P1 = (torch.tensor(n, device=device)[:, None] for n in (self.prompt_lengths, self.own_lengths))
        before, own = max(self.prompt_lengths), max(self.own_lengths) + 1
        even = len(set(self.own_lengths)) == 1
        place = (slice(None), slice(None), own - 1) if even else (torch.arange(len(own_P1)), slice(None), own_P1[:, 0])
        unseen_PT = None
        beyond = window is not None and before + own > window
        if beyond or not even or len(set(self.prompt_lengths)) > 1:
            at_T, at_C = torch.arange(before, device=device), torch.arange(own, device=device)
            unseen_PT = torch.cat([at_T >= prompt_P1, at_C > own_P1], dim=1)
            if window is not None:
                places_PT = torch.cat([at_T.expand(len(own_P1), -1), prompt_P1 + at_C], dim=1)
                unseen_PT |= places_PT <= prompt_P1 + own_P1 - window
            unseen_PT = unseen_PT[:, None, None, None]
        return _Step(
            rotation=self.stepper.model.rotation(prompt_P1 + own_P1),
            place=place,
            prompt_positions=before,
            own_positions=own,
            unseen=unseen_PT,
        )


def _longer(kept: Tensor, more: int, *, dim: int) -> Tensor:
    """Return the same with `more` zeros behind; zeros, because what is not seen yet is multiplied by 0."""
    shape = [more if d == dim else size for d, size in enumerate(kept.shape)]
    return torch.cat([kept, kept.new_zeros(shape)], dim=dim)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Where each prompt's rows stand: what all layers of a step have in common."""

    rotation: tuple[Tensor, Tensor]
    place: tuple[Any, ...]  # of the new id in (P, S, C, ...)
    prompt_positions: int
    own_positions: int  # the new one among them
    unseen: Bool[Tensor, "P 1 1 1 T"] | None  # of both kinds of positions; None: each row sees all


@dataclass(kw_only=True)
class _Memory:
    """Keys and values of one layer."""

    prompt_keys_PGTK: Tensor
    prompt_values_PGTK: Tensor
    own_keys_PSGCK: Tensor
    own_values_PSGCK: Tensor

    def keep(self, rows_PS: Int[Tensor, "P S"], lines: list[int]) -> None:
        self.prompt_keys_PGTK, self.prompt_values_PGTK = self.prompt_keys_PGTK[lines], self.prompt_values_PGTK[lines]
        self.own_keys_PSGCK = self.own_keys_PSGCK.flatten(0, 1)[rows_PS]
        self.own_values_PSGCK = self.own_values_PSGCK.flatten(0, 1)[rows_PS]


class _Layer:
    """A block, made ready for steps: what it reads from its modules, it reads once."""

    def __init__(self, block: Any, config: Shape) -> None:
        attention, mlp = block.attention, block.mlp
        self.block: Any = block
        self.head_width = config.head_dim
        self.heads, self.kv_heads = config.num_heads or 1, config.num_kv_heads or 1
        self.attention_norm, self.mlp_norm = _quick_norm(block.attention_norm), _quick_norm(block.mlp_norm)
        self.head_norms = attention.query_norm, attention.key_norm
        self.plain_heads = all(type(norm) is nn.Identity for norm in self.head_norms)
        self.query_key_value = _joined(attention.query, attention.key, attention.value)
        self.out = _joined(attention.out)
        self.mlp = mlp if type(mlp) is not GatedMLP else _gated(_joined(mlp.gate, mlp.up), _joined(mlp.down))

    def __call__(self, hidden_PSD: Float[Tensor, "P S D"], *, memory: _Memory, step: _Step) -> Float[Tensor, "P S D"]:
        prompts, samples, _ = hidden_PSD.shape
        heads_PSXK = self.query_key_value(self.attention_norm(hidden_PSD)).view(prompts, samples, -1, self.head_width)
        turned_PSXK = heads_PSXK[:, :, : -self.kv_heads]
        if not self.plain_heads:
            q_PSHK, k_PSGK, _ = heads_PSXK.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
            turned_PSXK = torch.cat([norm(heads) for norm, heads in zip(self.head_norms, (q_PSHK, k_PSGK), strict=True)], dim=2)
        turned_PSXK = rotated(turned_PSXK, *step.rotation)
        memory.own_keys_PSGCK.transpose(2, 3)[step.place] = turned_PSXK[:, :, self.heads :]
        memory.own_values_PSGCK.transpose(2, 3)[step.place] = heads_PSXK[:, :, -self.kv_heads :]
        mixed_PSHK = _attention(turned_PSXK[:, :, : self.heads], memory, step=step)
        hidden_PSD = hidden_PSD + self.out(mixed_PSHK.view(prompts, samples, -1))
        return hidden_PSD + self.mlp(self.mlp_norm(hidden_PSD))


def _joined(*linears: Any) -> Callable[[Tensor], Tensor]:
    """Return what gives the outputs of linears side by side; for plain ones it is one product.

    Its weight lies as (inputs, outputs): of few rows, such a product takes a fifth less time (measured, MKL).
    """
    if not all(type(linear) in (Linear, nn.Linear) for linear in linears):
        return lambda states: torch.cat([linear(states) for linear in linears], dim=-1)
    weight = torch.cat([linear.weight.detach() for linear in linears]).t().contiguous()
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if not biases:
        return lambda states: states @ weight
    bias = torch.cat(biases)  # linears side by side have one each or none
    return lambda states: torch.addmm(bias, states.flatten(0, -2), weight).view(*states.shape[:-1], -1)


def _gated(gate_and_up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def mlp(states: Tensor) -> Tensor:
        gate, up = gate_and_up(states).chunk(2, dim=-1)
        return down(F.silu(gate).mul_(up))

    return mlp


def _quick_norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the same norm; an RMSNorm on a processor in a third of torch's time (which has no kernel for it there)."""
    if type(norm) is not nn.RMSNorm or norm.eps is None or norm.weight is None:
        return norm
    weight, eps, count = norm.weight.detach(), norm.eps, norm.weight.numel()
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return norm

    def quick(states: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return (states * size.square_().div_(count).add_(eps).rsqrt_()).mul_(weight)

    return quick


def _attention(q_PSHK: Float[Tensor, "P S H K"], memory: _Memory, *, step: _Step) -> Float[Tensor, "P S H K"]:
    """Return the mean of the values, weighted by one softmax over the prompt's and the row's own positions."""
    prompts, samples, heads, width = q_PSHK.shape
    groups, before, own = memory.own_keys_PSGCK.shape[2], step.prompt_positions, step.own_positions
    many = heads // groups
    q_PSGMK = (q_PSHK * width**-0.5).view(prompts, samples, groups, many, width)
    own_keys_NCK, own_values_NCK = (x.flatten(0, 2)[:, :own] for x in (memory.own_keys_PSGCK, memory.own_values_PSGCK))
    scores = torch.bmm(q_PSGMK.flatten(0, 2), own_keys_NCK.transpose(1, 2)).view(prompts, samples, groups, many, own)
    if before:  # R: all samples of a prompt, with many heads each
        q_PGRK = q_PSGMK.transpose(1, 2).reshape(prompts, groups, -1, width)
        scores_PGRT = q_PGRK @ memory.prompt_keys_PGTK[:, :, :before].transpose(2, 3)
        scores = torch.cat([scores_PGRT.view(prompts, groups, samples, many, before).transpose(1, 2), scores], dim=-1)
    if step.unseen is not None:
        scores.masked_fill_(step.unseen, float("-inf"))
    weights = scores.softmax(-1)
    mixed_PSGMK = torch.bmm(weights[..., before:].flatten(0, 2), own_values_NCK).view(q_PSGMK.shape)
    if before:
        weights_PGRT = weights[..., :before].transpose(1, 2).reshape(prompts, groups, -1, before)
        mixed_PGRK = weights_PGRT @ memory.prompt_values_PGTK[:, :, :before]
        mixed_PSGMK += mixed_PGRK.view(prompts, groups, samples, many, width).transpose(1, 2)
    return mixed_PSGMK.view(q_PSHK.shape)
