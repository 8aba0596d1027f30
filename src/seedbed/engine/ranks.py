"""Several processes, one run: each takes its share of every step's rows, and what they found is summed over all.

They are started by `torchrun --nproc-per-node N -m seedbed run ...`; without it there is one rank and nothing is communicated.
Only the first rank measures, writes and speaks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seedbed.core.errors import StoppedRunError
from seedbed.core.variables import among_ranks

_GONE = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")  # plain RuntimeErrors of a lost rank
PATIENCE = timedelta(hours=6)  # the others wait while the first evaluates


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, *numbers: float) -> list[float]:
        """Return each number summed over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum every parameter's gradient over all ranks, in place; what no rank has a gradient for has none afterwards."""
        if self.size == 1:
            return
        there = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([there, *(g.flatten() for g in grads)])
        dist.all_reduce(flat)
        there, *parts = flat.split([len(grads), *(p.numel() for p in parameters)])
        for parameter, anywhere, part in zip(parameters, there.tolist(), parts, strict=True):
            parameter.grad = part.view_as(parameter) if anywhere else None

    def any(self, wish: bool) -> bool:
        """Whether any rank wishes it."""
        return self.total(float(wish))[0] > 0

    def from_first(self, value: Any) -> Any:
        """Return what the first rank gives."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def together() -> Iterator[None]:
    """Do what all ranks do. Raises StoppedRunError if one of them is gone; any other error stays what it is."""
    try:
        yield
    except RuntimeError as e:
        if not (isinstance(e, dist.DistError) or any(sign in str(e) for sign in _GONE)):
            raise
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise StoppedRunError(
            f"another rank of this run ended ({why}); the last checkpoint is whole: start the ranks "
            "anew with `seedbed resume` to go on from it"
        ) from None


def join_ranks() -> Ranks:
    """Return this process's place among those that torchrun started; alone without it."""
    if not among_ranks():
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size())
