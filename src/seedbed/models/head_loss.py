"""Head and cross-entropy in one, chunk by chunk: the (positions x vocabulary) matrix of logits never exists in full.

For a position with target distribution q (of mass Q) the loss is Q lse(z) - q.z, and its gradient Q softmax(z) - q, whatever q
is: one id, a smoothed one, a few ids with probabilities, a whole distribution or another head's. So each chunk of logits is
made once, turned into its own gradient in place, and multiplied into the gradients of states and head at once: three matrix
products in all, as many as without chunks. The backward pass only scales them.
Papers: Wijmans et al. (2024), "Cut your losses in large-vocabulary language models"; Hsu et al. (2024), "Liger kernel".
Letters: N counted positions, D width, V vocabulary, K candidates, C positions of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 2**24  # logits of a chunk: 64 MiB in fp32; smaller ones cost more in sums of the head's gradient (measured)


def wide(values: Tensor) -> Tensor:
    """Return values in fp32 at least."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns states into logits: `weight_VD` and, if there is one, `bias_V`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None

    def logits(self, states_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C V"]:
        return wide(F.linear(states_CD, self.weight_VD, self.bias_V))

    def chunks(self, positions: int) -> Iterator[slice]:
        rows = max(1, CHUNK // len(self.weight_VD))
        return (slice(start, min(start + rows, positions)) for start in range(0, positions, rows))


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Another model's states and head: its softmax is the target, made chunk by chunk."""

    states_ND: Float[Tensor, "N D2"]
    head: Head


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is asked at N positions: one of `ids_N`, `top_*_NK`, `probs_NV` and `teacher`; weights scale a position's loss.

    `smoothing` moves that share of an id's mass to all ids evenly. `top_probs_NK` may sum to less than 1: the rest asks for
    nothing. `temperature` divides the logits of student and teacher. `z_weight` adds z_weight * lse^2 (at temperature 1).
    """

    weights_N: Float[Tensor, "N"]
    ids_N: Int[Tensor, "N"] | None = None
    smoothing: float = 0.0
    top_ids_NK: Int[Tensor, "N K"] | None = None
    top_probs_NK: Float[Tensor, "N K"] | None = None
    probs_NV: Float[Tensor, "N V"] | None = None
    teacher: Teacher | None = None
    z_weight: float = 0.0
    temperature: float = 1.0

    def of(self, part: slice) -> "Asked":
        if self.ids_N is not None:
            return Asked(ids_CK=self.ids_N[part, None], share=1 - self.smoothing, even=self.smoothing)
        if self.top_ids_NK is not None and self.top_probs_NK is not None:
            return Asked(ids_CK=self.top_ids_NK[part], probs_CK=wide(self.top_probs_NK[part]))
        if self.teacher is not None:
            with torch.no_grad():
                logits_CV = self.teacher.head.logits(self.teacher.states_ND[part])
            return Asked(dense_CV=(logits_CV / self.temperature).softmax(-1))
        assert self.probs_NV is not None, "targets name one of ids_N, top_ids_NK with top_probs_NK, probs_NV and teacher"
        return Asked(dense_CV=wide(self.probs_NV[part]))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The target distribution q of a chunk: dense, or a few ids (each with a probability, or all with `share`) and an even
    rest."""

    dense_CV: Tensor | None = None
    ids_CK: Tensor | None = None
    probs_CK: Tensor | None = None
    share: float = 1.0
    even: float = 0.0

    def mass(self) -> Tensor | float:
        """Return Q, as a column."""
        if self.dense_CV is not None:
            return self.dense_CV.sum(-1, keepdim=True)
        return self.share + self.even if self.probs_CK is None else self.probs_CK.sum(-1, keepdim=True)

    def dot(self, logits_CV: Tensor) -> Tensor:
        """Return q.z, as a column."""
        if self.dense_CV is not None:
            return (self.dense_CV * logits_CV).sum(-1, keepdim=True)
        assert self.ids_CK is not None
        picked_CK = logits_CV.gather(-1, self.ids_CK)
        chosen = picked_CK * (self.share if self.probs_CK is None else self.probs_CK)
        found = chosen.sum(-1, keepdim=True)
        return found + self.even * logits_CV.mean(-1, keepdim=True) if self.even else found

    def subtract_from(self, gradient_CV: Tensor, scale_C1: Tensor) -> None:
        """Take scale * q away, in place."""
        if self.dense_CV is not None:
            gradient_CV.addcmul_(self.dense_CV, scale_C1, value=-1)
            return
        assert self.ids_CK is not None
        taken = scale_C1 * (self.share if self.probs_CK is None else self.probs_CK)
        gradient_CV.scatter_add_(-1, self.ids_CK, -taken.expand_as(self.ids_CK))
        if self.even:
            gradient_CV.sub_(scale_C1 * (self.even / gradient_CV.shape[-1]))


def head_loss(states_ND: Float[Tensor, "N D"], head: Head, targets: Targets) -> tuple[Tensor, Float[Tensor, "N"]]:
    """Return the weighted sum of losses in nats (differentiable once) and each position's own, unweighted and detached."""
    weight_VD, bias_V = head.weight_VD, head.bias_V
    if not torch.is_grad_enabled():  # else gradients would be made for weights that could have some
        states_ND, weight_VD = states_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    total, each_N = _HeadLoss.apply(states_ND, weight_VD, bias_V, targets)
    return total, each_N


def plain_loss(states_ND: Float[Tensor, "N D"], head: Head, targets: Targets) -> tuple[Tensor, Float[Tensor, "N"]]:
    """Return the same through ordinary operations on full logits: as often differentiable as one likes, and dearer."""
    logits_NV = head.logits(states_ND)
    warm_NV = logits_NV / targets.temperature
    asked = targets.of(slice(None))
    each_N = (asked.mass() * warm_NV.logsumexp(-1, keepdim=True) - asked.dot(warm_NV))[:, 0]
    penalty_N = targets.z_weight * logits_NV.logsumexp(-1) ** 2 if targets.z_weight else 0.0
    return ((each_N + penalty_N) * targets.weights_N).sum(), each_N.detach()


def logprobs(states_ND: Float[Tensor, "N D"], head: Head, ids_NK: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Return the log-probability of each given id, each differentiable; the backward pass makes a chunk's logits again."""

    def of(states_CD: Tensor, ids_CK: Tensor) -> Tensor:
        logits_CV = head.logits(states_CD)
        return logits_CV.gather(-1, ids_CK) - logits_CV.logsumexp(-1, keepdim=True)

    found = [
        checkpoint(of, states_ND[part], ids_NK[part], use_reentrant=False)
        if torch.is_grad_enabled()
        else of(states_ND[part], ids_NK[part])
        for part in head.chunks(len(states_ND))
    ]
    return torch.cat(found) if found else wide(states_ND.new_zeros(ids_NK.shape))


@torch.no_grad()
def ranks(states_ND: Float[Tensor, "N D"], head: Head, ids_N: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """Return how many ids are likelier than the given one (0: it is the likeliest)."""
    found = [ids_N.new_zeros(0)]
    for part in head.chunks(len(states_ND)):
        logits_CV = head.logits(states_ND[part])
        found.append((logits_CV > logits_CV.gather(-1, ids_N[part, None])).sum(-1))
    return torch.cat(found)


@torch.no_grad()
def top(states_ND: Float[Tensor, "N D"], head: Head, *, k: int) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Return the k likeliest ids and their log-probabilities, the likeliest first."""
    ids, values = [], []
    for part in head.chunks(len(states_ND)):
        logits_CV = head.logits(states_ND[part])
        best = logits_CV.topk(k)
        ids.append(best.indices)
        values.append(best.values - logits_CV.logsumexp(-1, keepdim=True))
    if not ids:
        return torch.zeros(0, k, dtype=torch.long, device=states_ND.device), wide(states_ND.new_zeros(0, k))
    return torch.cat(ids), torch.cat(values)


class _HeadLoss(torch.autograd.Function):
    """The gradients are made with the loss; the backward pass scales them. Not differentiable twice: see `plain_loss`."""

    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets: Targets) -> Any:
        device = states_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_ND.dtype
        needed = [bool(x) for x in ctx.needs_input_grad[:3]]
        states, weight = states_ND.to(dtype), weight_VD.to(dtype)
        d_states = torch.empty_like(states) if needed[0] else None
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        d_weight = torch.zeros_like(weight_VD, dtype=exact) if needed[1] else None
        d_bias = torch.zeros_like(bias_V, dtype=exact) if needed[2] and bias_V is not None else None
        total = torch.zeros((), dtype=exact, device=states.device)
        each = []
        for part in Head(weight_VD=weight).chunks(len(states)):
            logits_CV = wide(torch.mm(states[part], weight.t()))
            if bias_V is not None:
                logits_CV += bias_V
            gradient_CV, sums, nll = _chunk(logits_CV, targets, part, wanted=any(needed))
            total += sums
            each.append(nll)
            if gradient_CV is None:
                continue
            if d_bias is not None:
                d_bias += gradient_CV.sum(0)
            gradient = gradient_CV.to(dtype)
            if d_states is not None:
                torch.mm(gradient, weight, out=d_states[part])
            if d_weight is not None and dtype == exact:
                d_weight.addmm_(gradient.t(), states[part])
            elif d_weight is not None:
                d_weight += torch.mm(gradient.t(), states[part])
        ctx.save_for_backward(*(g for g in (d_states, d_weight, d_bias) if g is not None))
        ctx.needed = needed
        ctx.dtypes = states_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        nll_N = torch.cat(each) if each else states.new_zeros(0, dtype=exact)
        ctx.mark_non_differentiable(nll_N)
        return total, nll_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> Any:
        kept = iter(ctx.saved_tensors)
        out = [
            (next(kept) * scale).to(dtype) if needed and dtype is not None else None
            for needed, dtype in zip(ctx.needed, ctx.dtypes, strict=True)
        ]
        return *out, None


def _chunk(
    logits_CV: Tensor, targets: Targets, part: slice, *, wanted: bool
) -> tuple[Tensor | None, Tensor, Float[Tensor, "C"]]:
    """Turn a chunk of logits into its gradient, in place; return it with the chunk's weighted sum and its losses."""
    weights_C1, asked = wide(targets.weights_N[part, None]), targets.of(part)
    warmth = targets.temperature
    lse_C1 = logits_CV.logsumexp(-1, keepdim=True) if targets.z_weight and warmth != 1 else None
    cold_CV = logits_CV.clone() if lse_C1 is not None else None
    if warmth != 1:
        logits_CV /= warmth
    asked_C1 = asked.dot(logits_CV)
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    logits_CV.sub_(largest_C1).exp_()
    sum_C1 = logits_CV.sum(-1, keepdim=True)
    warm_lse_C1 = sum_C1.log() + largest_C1
    mass = asked.mass()
    each_C1 = mass * warm_lse_C1 - asked_C1
    sums = (each_C1 * weights_C1).sum()
    plain_lse_C1 = warm_lse_C1 if lse_C1 is None else lse_C1
    if targets.z_weight:
        sums = sums + (targets.z_weight * plain_lse_C1**2 * weights_C1).sum()
    if not wanted:
        return None, sums, each_C1[:, 0]
    scale_C1 = mass * weights_C1 / warmth
    if targets.z_weight and cold_CV is None:
        scale_C1 = scale_C1 + 2 * targets.z_weight * plain_lse_C1 * weights_C1
    logits_CV.mul_(scale_C1 / sum_C1)
    asked.subtract_from(logits_CV, weights_C1 / warmth)
    if cold_CV is not None:
        logits_CV.addcmul_(cold_CV.softmax(-1), 2 * targets.z_weight * plain_lse_C1 * weights_C1)
    return logits_CV, sums, each_C1[:, 0]
