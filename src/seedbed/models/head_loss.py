"""Head and cross-entropy in one, chunk by chunk: the (positions x vocabulary) matrix of logits never exists in full.

For a position with target distribution q (of mass Q) the loss is Q lse(z) - q.z, and its gradient Q softmax(z) - q, whatever q
is: one id, a smoothed one, a few ids with probabilities, another head's distribution, or a mix of them. So each chunk of logits
is made once, turned into its own gradient in place, and multiplied into the gradients of states and head at once: three matrix
products in all, as many as without chunks. The backward pass only scales them.
Papers: Wijmans et al. (2024), "Cut your losses in large-vocabulary language models"; Hsu et al. (2024), "Liger kernel".
Letters: N counted positions, D width, V vocabulary, K candidates, C positions of a chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedbed.core.errors import ConfigError
from seedbed.models.products import linear, product, suits

CHUNK = 2**22  # logits of a chunk, 16 MiB in fp32: allocators hand such memory out again, and 64 MiB as new pages (measured)
FEWEST = 512  # positions of a chunk, if there are so many: each chunk packs the head's matrix anew (benchmarks/head_loss.py)


def as_float32(values: Tensor) -> Tensor:
    """Return values in fp32 at least."""
    return values if values.dtype == torch.float64 else values.float()


def chunk_rows(positions: int, *, vocab_size: int, on_processor: bool) -> int:
    """Return how many of so many positions the longest chunk has; what is best on a GPU was not measured."""
    return max(1, min(positions, max((CHUNK if on_processor else 4 * CHUNK) // vocab_size, FEWEST)))


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns states into logits: `weight_VD` and, if there is one, `bias_V`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None

    def logits(self, states_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C V"]:
        return as_float32(linear(states_CD, self.weight_VD, self.bias_V))

    def chunks(self, positions: int) -> Iterator[slice]:
        rows = self.rows(positions)
        return (slice(start, min(start + rows, positions)) for start in range(0, positions, rows))

    def rows(self, positions: int) -> int:
        """Return how many positions the longest chunk has."""
        return chunk_rows(positions, vocab_size=len(self.weight_VD), on_processor=self.weight_VD.device.type == "cpu")


@dataclass(frozen=True, kw_only=True)
class Few:
    """A chunk's soft targets: a few ids of each position. They may sum to less than 1: the rest asks for nothing."""

    ids_CK: Int[Tensor, "C K"]
    probs_CK: Float[Tensor, "C K"]

    def mass(self) -> Float[Tensor, "C 1"]:
        return self.probs_CK.sum(-1, keepdim=True)

    def dot(self, logits_CV: Float[Tensor, "C V"]) -> Float[Tensor, "C 1"]:
        return (logits_CV.gather(-1, self.ids_CK) * self.probs_CK).sum(-1, keepdim=True)

    def subtract_from(self, gradient_CV: Float[Tensor, "C V"], *, share_C1: Float[Tensor, "C 1"]) -> None:
        gradient_CV.scatter_add_(-1, self.ids_CK, -share_C1 * self.probs_CK)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A chunk's soft targets: every id's probability."""

    probs_CV: Float[Tensor, "C V"]

    def mass(self) -> Float[Tensor, "C 1"]:
        return self.probs_CV.sum(-1, keepdim=True)

    def dot(self, logits_CV: Float[Tensor, "C V"]) -> Float[Tensor, "C 1"]:
        return (self.probs_CV * logits_CV).sum(-1, keepdim=True)

    def subtract_from(self, gradient_CV: Float[Tensor, "C V"], *, share_C1: Float[Tensor, "C 1"]) -> None:
        gradient_CV.addcmul_(self.probs_CV, share_C1, value=-1)


Soft: TypeAlias = Callable[[slice], Few | Whole]  # positions to their soft targets: they too are made chunk by chunk


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is asked at N positions; a position's loss counts `weights_N` times.

    The loss is (1 - share) of the id's, `smoothing` of whose mass lies on all ids evenly, plus share of the soft targets', plus
    z_weight * lse^2. Without `soft` the share is 0. `rank`: whether each id's rank is asked for.
    """

    ids_N: Int[Tensor, "N"]
    weights_N: Float[Tensor, "N"]
    smoothing: float = 0.0
    soft: Soft | None = None
    share_N: Float[Tensor, "N"] | None = None
    z_weight: float = 0.0
    rank: bool = False

    def share(self, part: slice) -> Float[Tensor, "C 1"]:
        assert self.share_N is not None, "soft targets have a share"
        return self.share_N[part, None]


class Found(NamedTuple):
    """The weighted sum of losses in nats, and by position: -log p(id), lse and how many ids are likelier, all detached."""

    sum_nats: Tensor
    nll_N: Tensor
    lse_N: Tensor
    rank_N: Tensor | None


def head_loss(states_ND: Float[Tensor, "N D"], head: Head, targets: Targets) -> Found:
    """Return the loss, once differentiable in states and head (and not in targets)."""
    return Found(*_HeadLoss.apply(*_inputs(states_ND, head), targets))


def plain_loss(states_ND: Float[Tensor, "N D"], head: Head, targets: Targets) -> Found:
    """Return the same through ordinary operations on full logits: dearer, but as often differentiable as one likes, in what
    the targets hold as well."""
    logits_NV = head.logits(states_ND)
    parts = _Parts.of(logits_NV, targets, slice(None))
    lse_N1 = logits_NV.logsumexp(-1, keepdim=True)
    total = (parts.loss(lse_N1, targets)[:, 0] * targets.weights_N).sum()
    nll_N1 = lse_N1 - parts.picked_C1
    return Found(total, nll_N1[:, 0].detach(), lse_N1[:, 0].detach(), parts.rank_C)


def logprobs(states_ND: Float[Tensor, "N D"], head: Head, ids_NK: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Return the log-probability of each given id, each differentiable once; the backward pass makes the logits again."""
    found: Tensor = _LogProbs.apply(*_inputs(states_ND, head), ids_NK)
    return found


def plain_logprobs(states_ND: Float[Tensor, "N D"], head: Head, ids_NK: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Return the same through full logits, as often differentiable as one likes."""
    return head.logits(states_ND).log_softmax(-1).gather(-1, ids_NK)


@torch.no_grad()
def top(states_ND: Float[Tensor, "N D"], head: Head, *, k: int) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Return the k likeliest ids and their probabilities, the likeliest first."""
    products = _Products(states_ND, head.weight_VD, head.bias_V)
    ids_NK = torch.empty(len(states_ND), k, dtype=torch.long, device=states_ND.device)
    probs_NK = torch.empty(len(states_ND), k, dtype=products.exact, device=states_ND.device)
    for part in head.chunks(len(states_ND)):
        logits_CV = products.logits(part)
        ids_NK[part] = logits_CV.topk(k).indices
        _softmax(logits_CV)
        probs_NK[part] = logits_CV.gather(-1, ids_NK[part])
    return ids_NK, probs_NK


def _inputs(states_ND: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
    if torch.is_grad_enabled():
        return states_ND, head.weight_VD, head.bias_V
    # else gradients would be made for weights that could have some
    return states_ND.detach(), head.weight_VD.detach(), None if head.bias_V is None else head.bias_V.detach()


class _SoftTargets(NamedTuple):
    """A chunk's soft targets, their share of the loss, their mass, and their product with the logits."""

    targets: Few | Whole
    share_C1: Tensor
    mass_C1: Tensor
    dot_C1: Tensor


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the loss of a chunk takes from its logits, beside their lse."""

    picked_C1: Tensor
    mean_C1: Tensor | None  # of all logits, for smoothing
    soft: _SoftTargets | None
    rank_C: Tensor | None

    @classmethod
    def of(cls, logits_CV: Tensor, targets: Targets, part: slice) -> "_Parts":
        picked_C1 = logits_CV.gather(-1, targets.ids_N[part, None])
        soft = None
        if targets.soft is not None:
            made = targets.soft(part)
            soft = _SoftTargets(made, targets.share(part), made.mass(), made.dot(logits_CV))
        return cls(
            picked_C1=picked_C1,
            mean_C1=logits_CV.mean(-1, keepdim=True) if targets.smoothing else None,
            soft=soft,
            rank_C=(logits_CV > picked_C1).sum(-1) if targets.rank else None,
        )

    def loss(self, lse_C1: Tensor, targets: Targets) -> Tensor:
        """Return each position's loss, as a column."""
        loss_C1 = lse_C1 - self.picked_C1
        if self.mean_C1 is not None:
            loss_C1 = loss_C1 + targets.smoothing * (self.picked_C1 - self.mean_C1)
        if self.soft is not None:
            _, share_C1, mass_C1, dot_C1 = self.soft
            loss_C1 = (1 - share_C1) * loss_C1 + share_C1 * (mass_C1 * lse_C1 - dot_C1)
        return loss_C1 + targets.z_weight * lse_C1**2 if targets.z_weight else loss_C1

    def to_gradient(self, softmax_CV: Tensor, lse_C1: Tensor, targets: Targets, part: slice) -> None:
        """Turn the softmax into the gradient of each position's loss by its logits, in place."""
        hard_C1 = mass_C1 = torch.ones_like(lse_C1)
        if self.soft is not None:
            hard_C1 = 1 - self.soft.share_C1
            mass_C1 = hard_C1 + self.soft.share_C1 * self.soft.mass_C1
        if self.soft is not None or targets.z_weight:  # else the factor is 1
            softmax_CV.mul_(mass_C1 + 2 * targets.z_weight * lse_C1)
        softmax_CV.scatter_add_(-1, targets.ids_N[part, None], -(1 - targets.smoothing) * hard_C1)
        if targets.smoothing:
            softmax_CV.sub_(hard_C1 * (targets.smoothing / softmax_CV.shape[-1]))
        if self.soft is not None:
            self.soft.targets.subtract_from(softmax_CV, share_C1=self.soft.share_C1)


class _HeadLoss(torch.autograd.Function):
    """The gradients are made with the loss; the backward pass scales them. Not differentiable twice: see `plain_loss`."""

    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets: Targets) -> Any:
        needed = ctx.needs_input_grad[:3]
        products = _Products(states_ND, weight_VD, bias_V, needed=needed, weights_N=targets.weights_N)
        count = len(states_ND)
        total = torch.zeros((), dtype=products.exact, device=states_ND.device)
        nll_N, lse_N = (torch.empty(count, dtype=products.exact, device=states_ND.device) for _ in range(2))
        rank_N = torch.empty(count, dtype=torch.long, device=states_ND.device) if targets.rank else None
        for part in products.chunks():
            logits_CV = products.logits(part)
            parts = _Parts.of(logits_CV, targets, part)
            lse_C1 = _softmax(logits_CV)
            total += (parts.loss(lse_C1, targets)[:, 0] * targets.weights_N[part]).sum()
            nll_N[part], lse_N[part] = (lse_C1 - parts.picked_C1)[:, 0], lse_C1[:, 0]
            if rank_N is not None and parts.rank_C is not None:
                rank_N[part] = parts.rank_C
            if any(needed):
                parts.to_gradient(logits_CV, lse_C1, targets, part)
                products.add(part, logits_CV)
        ctx.needed, ctx.dtypes = needed, products.dtypes
        ctx.save_for_backward(*products.gradients())
        ctx.mark_non_differentiable(*(x for x in (nll_N, lse_N, rank_N) if x is not None))
        return total, nll_N, lse_N, rank_N

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Any) -> Any:
        _refuse_second()
        kept = iter(ctx.saved_tensors)
        return *(_scaled(next(kept), scale).to(d) if n else None for n, d in zip(ctx.needed, ctx.dtypes, strict=True)), None


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """Return gradient * scale, row by row in memory, as the parameter lies that it is for."""
    return torch.mul(gradient, scale, out=torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device))


def _refuse_second() -> None:
    """Refuse create_graph=True: the gradients made here would pass for constants, and second derivatives be wrong silently."""
    if torch.is_grad_enabled():
        raise ConfigError("the chunked loss is differentiable once: for gradients of gradients ask for plain=True")


class _LogProbs(torch.autograd.Function):
    """The backward pass makes each chunk's logits again: what each id's gradient will be is not known before."""

    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_NK: Tensor) -> Any:
        products = _Products(states_ND, weight_VD, bias_V)
        found_NK = torch.empty(ids_NK.shape, dtype=products.exact, device=states_ND.device)
        for part in products.chunks():
            logits_CV = products.logits(part)
            picked_CK = logits_CV.gather(-1, ids_NK[part])
            found_NK[part] = picked_CK - _softmax(logits_CV)
        ctx.save_for_backward(states_ND, weight_VD, bias_V, ids_NK)
        ctx.dtype = products.dtype
        return found_NK

    @staticmethod
    def backward(ctx: Any, scale_NK: Tensor) -> Any:
        _refuse_second()
        states_ND, weight_VD, bias_V, ids_NK = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        products = _Products(states_ND, weight_VD, bias_V, needed=needed, dtype=ctx.dtype)
        for part in products.chunks():
            gradient_CV = products.logits(part)
            _softmax(gradient_CV)
            gradient_CV.mul_(-scale_NK[part].sum(-1, keepdim=True)).scatter_add_(-1, ids_NK[part], scale_NK[part])
            products.add(part, gradient_CV)
        made = iter(products.gradients())
        return *(next(made).to(d) if n else None for n, d in zip(needed, products.dtypes, strict=True)), None


class _Products:
    """Logits of a chunk, and what gradients of logits add up to: those of states, weight and bias.

    All chunks share one piece of memory (new pages cost as much as the arithmetic on them). `needed` says which of the three
    gradients are made; `weights_N` scale each position's, on the narrow side of the products.
    """

    def __init__(
        self,
        states_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        *,
        needed: Sequence[bool] = (False, False, False),
        weights_N: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        device = states_ND.device
        if dtype is None:
            dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else states_ND.dtype
        self.dtype, self.exact = dtype, torch.float64 if dtype == torch.float64 else torch.float32
        self.dtypes = states_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        self.states_ND, self.weight_VD, self.bias_V = states_ND.to(dtype), weight_VD.to(dtype), bias_V
        rows = Head(weight_VD=weight_VD).rows(len(states_ND))
        self.own_memory = suits(self.weight_VD)
        self.memory_CV = torch.empty(0 if self.own_memory else rows, len(weight_VD), dtype=self.exact, device=device)
        self.weights_N1 = None if weights_N is None else weights_N[:, None].to(self.exact)
        self.d_states_ND = torch.empty_like(self.states_ND) if needed[0] else None
        self.d_weight_VD = None
        if needed[1] and self.own_memory:  # lies in memory as (D, V): oneDNN would copy a chunk's gradient to turn it
            self.d_weight_VD = torch.zeros(weight_VD.shape[::-1], dtype=self.exact, device=device).t()
        elif needed[1]:
            self.d_weight_VD = torch.zeros_like(weight_VD, dtype=self.exact)
        self.d_bias_V = torch.zeros_like(bias_V, dtype=self.exact) if needed[2] and bias_V is not None else None
        self.weighted_ND = self.states_ND
        if needed[1] and self.weights_N1 is not None:
            self.weighted_ND = (self.states_ND * self.weights_N1).to(dtype)

    def chunks(self) -> Iterator[slice]:
        return Head(weight_VD=self.weight_VD).chunks(len(self.states_ND))

    def logits(self, part: slice) -> Float[Tensor, "C V"]:
        """Return a chunk's logits, in the memory of the chunk before (of which oneDNN finds its own)."""
        if self.own_memory:
            logits_CV = product(self.states_ND[part], self.weight_VD.t())
            return logits_CV if self.bias_V is None else logits_CV.add_(self.bias_V)
        logits_CV = self.memory_CV[: part.stop - part.start]
        if self.dtype == self.exact:
            torch.mm(self.states_ND[part], self.weight_VD.t(), out=logits_CV)
        else:
            logits_CV.copy_(torch.mm(self.states_ND[part], self.weight_VD.t()))
        return logits_CV if self.bias_V is None else logits_CV.add_(self.bias_V)

    def add(self, part: slice, gradient_CV: Float[Tensor, "C V"]) -> None:
        """Add what the gradient of a chunk's logits gives."""
        if self.d_bias_V is not None and self.weights_N1 is not None:
            self.d_bias_V.addmv_(gradient_CV.t(), self.weights_N1[part, 0])
        elif self.d_bias_V is not None:
            self.d_bias_V += gradient_CV.sum(0)
        gradient = gradient_CV.to(self.dtype)
        if self.d_states_ND is not None and self.own_memory:
            self.d_states_ND[part] = product(gradient, self.weight_VD)
        elif self.d_states_ND is not None:
            torch.mm(gradient, self.weight_VD, out=self.d_states_ND[part])
        if self.d_weight_VD is not None and self.own_memory:
            self.d_weight_VD.t().add_(product(self.weighted_ND[part].t(), gradient))
        elif self.d_weight_VD is not None and self.dtype == self.exact:
            self.d_weight_VD.addmm_(gradient.t(), self.weighted_ND[part])
        elif self.d_weight_VD is not None:
            self.d_weight_VD += torch.mm(gradient.t(), self.weighted_ND[part])

    def gradients(self) -> list[Tensor]:
        """Return those that were needed."""
        if self.d_states_ND is not None and self.weights_N1 is not None:
            self.d_states_ND *= self.weights_N1
        return [d for d in (self.d_states_ND, self.d_weight_VD, self.d_bias_V) if d is not None]


def _softmax(logits_CV: Float[Tensor, "C V"]) -> Float[Tensor, "C 1"]:
    """Turn logits into their softmax, in place; return their lse, as a column.

    One fused pass, where subtracting, exponentials and sums by themselves take three; the lse is read off the largest
    probability, which is 1 / sum(exp(z - largest)).
    """
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    if logits_CV.device.type in ("cpu", "cuda"):  # whose kernels read an entry for the last time before they write it
        torch.softmax(logits_CV, -1, out=logits_CV)
    else:
        logits_CV.copy_(logits_CV.softmax(-1))
    return largest_C1 - logits_CV.amax(-1, keepdim=True).log()
