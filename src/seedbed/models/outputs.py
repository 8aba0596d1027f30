"""What a model's forward returns: hidden states, and the head to use on them, for losses and whatever else is read off it.

Nothing here makes logits of all positions unless `logits` or a `plain` path is asked for: the head meets the counted positions
alone, chunk by chunk (see head_loss.py).
Letters: B rows, T positions, D width, V vocabulary, N counted positions, K candidates, C positions of a chunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from seedbed.core.errors import ConfigError
from seedbed.core.records import Teacher, TokenLoss, TokenTargets, TopK
from seedbed.models.head_loss import (
    Few,
    Head,
    Soft,
    Targets,
    Whole,
    as_float32,
    head_loss,
    logprobs,
    plain_logprobs,
    plain_loss,
    top,
)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Hidden states after the final norm, and the head that reads them (a linear module, whose weight is read when asked).

    `taps` are the inner states that were asked for, by name.
    """

    hidden_BTD: Float[Tensor, "B T D"]
    head: Any
    taps: Mapping[str, Float[Tensor, "B T D"]] = field(default_factory=dict)

    def token_loss(self, targets: TokenTargets, *, plain: bool = False) -> TokenLoss:
        """Return the loss of what is asked, in fp32 (in fp64 if the weights are).

        It is differentiable once, in states and head; `plain` goes through full logits instead, and is as often
        differentiable as one likes, in weights, shares and soft probabilities as well. Raises ConfigError if those need a
        gradient and `plain` is not asked for, or if a teacher's positions or vocabulary are not the student's.
        """
        share = targets.soft_share_BT
        if not plain:
            _refuse_gradients(targets)
        counted = _Counted(targets.weights_BT > 0)
        soft = None if isinstance(share, int | float) and share == 0 else self._soft(targets.soft, counted)
        weights_N = as_float32(counted.pick(targets.weights_BT))
        share_N = None
        if soft is not None:
            share_N = as_float32(counted.pick(share)) if isinstance(share, Tensor) else torch.full_like(weights_N, share)
        asked = Targets(
            ids_N=counted.pick(targets.ids_BT).long(),
            weights_N=weights_N,
            smoothing=targets.smoothing,
            soft=soft,
            share_N=share_N,
            z_weight=targets.z_weight,
            rank=targets.rank,
        )
        found = (plain_loss if plain else head_loss)(counted.pick(self.hidden_BTD), self._head(), asked)
        return TokenLoss(
            sum_nats=found.sum_nats,
            nll_BT=counted.place(found.nll_N),
            rank_BT=None if found.rank_N is None else counted.place(found.rank_N, elsewhere=-1),
            log_z_BT=counted.place(found.lse_N) if targets.log_z else None,
        )

    def logprobs(
        self, ids_BTK: Int[Tensor, "B T K"], *, counted_BT: Bool[Tensor, "B T"], plain: bool = False
    ) -> Float[Tensor, "B T K"]:
        """Return the log-probability of each given id in nats, 0 where not counted; each is differentiable once.

        That costs a fourth product with the head, in the backward pass. `plain` as in `token_loss`.
        """
        counted = _Counted(counted_BT)
        found_NK = (plain_logprobs if plain else logprobs)(
            counted.pick(self.hidden_BTD), self._head(), counted.pick(ids_BTK).long()
        )
        return counted.place(found_NK)

    def top(self, k: int, *, counted_BT: Bool[Tensor, "B T"] | None = None) -> TopK:
        """Return the k likeliest ids, the likeliest first, with their probabilities, detached; id 0 with 0 where not counted.

        Raises ConfigError if the vocabulary has fewer ids.
        """
        head = self._head()
        if not 1 <= k <= len(head.weight_VD):
            raise ConfigError(f"the likeliest k ids: k must lie in 1..{len(head.weight_VD)} (the vocabulary), got {k}")
        counted = _Counted(torch.ones_like(self.hidden_BTD[..., 0], dtype=torch.bool) if counted_BT is None else counted_BT)
        ids_NK, probs_NK = top(counted.pick(self.hidden_BTD), head, k=k)
        return TopK(ids_BTK=counted.place(ids_NK), probs_BTK=counted.place(probs_NK))

    def logits(self, rows: slice | Tensor = slice(None), positions: slice | Tensor = slice(None)) -> Float[Tensor, "B T V"]:
        """Return logits of the asked rows and positions, detached, in fp32 (in fp64 if the weights are)."""
        return as_float32(self.head(self.hidden_BTD[rows][:, positions]).detach())

    @torch.no_grad()
    def logits_at(self, places: slice | Int[Tensor, "C"]) -> Float[Tensor, "C V"]:
        """Return logits of positions by their place in all rows laid end to end: a chunk, when it teaches another's loss."""
        return self._head().logits(self.hidden_BTD.flatten(0, 1)[places])

    def _head(self) -> Head:
        return Head(weight_VD=self.head.weight, bias_V=self.head.bias)

    def _soft(self, soft: Any, counted: "_Counted") -> Soft | None:
        if isinstance(soft, TopK):
            ids_NK, probs_NK = counted.pick(soft.ids_BTK).long(), as_float32(counted.pick(soft.probs_BTK))
            return lambda part: Few(ids_CK=ids_NK[part], probs_CK=probs_NK[part])
        if isinstance(soft, Teacher):
            return self._taught(soft, counted)
        if soft is None:
            return None
        flat = soft.flatten(0, 1)
        return lambda part: Whole(probs_CV=as_float32(flat[counted.places(part)]))

    def _taught(self, teacher: Teacher, counted: "_Counted") -> Soft:
        theirs, ours = tuple(teacher.outputs.hidden_BTD.shape[:2]), tuple(self.hidden_BTD.shape[:2])
        if theirs != ours:
            raise ConfigError(f"a teacher must see the student's positions: it has {theirs} (rows, positions), not {ours}")

        def of(part: slice) -> Whole:
            logits_CV = teacher.outputs.logits_at(counted.places(part))
            if logits_CV.shape[-1] != len(self.head.weight):
                sizes = f"it has {logits_CV.shape[-1]} ids, the student {len(self.head.weight)}"
                raise ConfigError(f"a teacher must have the student's vocabulary: {sizes}; train both on one tokenizer")
            return Whole(probs_CV=(logits_CV * teacher.exponent).softmax(-1))

        return of


def _refuse_gradients(targets: TokenTargets) -> None:
    soft = targets.soft.probs_BTK if isinstance(targets.soft, TopK) else targets.soft
    learned = [x for x in (targets.weights_BT, targets.soft_share_BT, soft) if isinstance(x, Tensor) and x.requires_grad]
    if learned and torch.is_grad_enabled():
        raise ConfigError("the chunked loss gives its targets no gradient: detach them, or ask for plain=True")


class _Counted:
    """The positions that count, laid end to end. Where all do, nothing is copied; finding out is the one wait for a GPU."""

    def __init__(self, counted_BT: Bool[Tensor, "B T"]) -> None:
        self.shape = counted_BT.shape
        places_N = counted_BT.flatten().nonzero()[:, 0]
        self.places_N = None if len(places_N) == counted_BT.numel() else places_N

    def pick(self, values: Shaped[Tensor, "B T *rest"]) -> Shaped[Tensor, "N *rest"]:
        flat = values.flatten(0, 1)
        return flat if self.places_N is None else flat.index_select(0, self.places_N)

    def place(self, values: Shaped[Tensor, "N *rest"], *, elsewhere: int = 0) -> Shaped[Tensor, "B T *rest"]:
        """Return values where they belong, and `elsewhere` where nothing counts."""
        shape = *self.shape, *values.shape[1:]
        if self.places_N is None:
            return values.view(shape)
        return values.new_full(shape, elsewhere).flatten(0, 1).index_copy(0, self.places_N, values).view(shape)

    def places(self, part: slice) -> slice | Int[Tensor, "C"]:
        """Return where a chunk's positions stand among all."""
        return part if self.places_N is None else self.places_N[part]
