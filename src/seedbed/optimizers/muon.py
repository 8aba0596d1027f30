"""Muon on the matrices of attention and MLP, AdamW on everything else, one learning rate for both.

A matrix moves along its momentum made orthogonal: five quintic Newton-Schulz steps in bfloat16 bring singular values from
0.005 of the Frobenius norm on to between 0.68 and 1.16 (but for rounding), whatever the gradient's spectrum. This direction is
scaled by 0.2 sqrt(max(rows, columns)), so that its root mean square is near AdamW's and AdamW's learning rate serves both.
Embedding, head, norms, biases and positions get AdamW as in adamw.py, with its rule of what decays.

The iteration is torch's. Torch's own step on a sharded matrix (a DTensor) multiplies shards, with collectives between the
products; rounded in bfloat16 its direction is not that of the whole matrix, and a matrix of one row over two ranks it refused
(torch 2.13). So of a sharded matrix what is to be made orthogonal is gathered, once a step and in bfloat16;
every rank makes the same direction and takes its share. That is one collective a matrix, but the iteration is not shared out:
N ranks make it N times.

The iteration costs at most `ns_steps` * d_model / (tokens a step) of the training FLOPs of the matrices (Jordan et al.): 2 % at
d_model 1024 and 262144 tokens a step, but 31 % at 256 and 4096. The ledger charges it.

Papers: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks"; Liu et al. (2025), "Muon is scalable
for LLM training", for the scale. Departure: no weight decay unless asked for, as with our AdamW (Liu et al.: 0.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seedbed.core.bounds import check_ranges, within
from seedbed.core.protocols import Neutral, OptimizerKind
from seedbed.core.records import Cost, Role
from seedbed.optimizers.adamw import AdamW

MATRICES = ("attention", "mlp")  # the parts whose two-dimensional tensors are Muon's


@dataclass(frozen=True, kw_only=True)
class Muon(OptimizerKind):
    """Settings; `betas` and `eps` are AdamW's, `momentum`, `nesterov` and `ns_steps` Muon's."""

    neutral: ClassVar[Neutral] = "every step is orthogonal, whatever the settings"
    learning_rate: float = within(0, 10, default=1e-3, above=True, below=True)  # the peak, of both; the schedule multiplies it
    momentum: float = within(0, 1, default=0.95, below=True)  # the share of the old average that a step keeps
    nesterov: bool = True  # whether the gradient is averaged with the momentum once more
    ns_steps: int = within(1, 99, default=5)  # Newton-Schulz iterations; with fewer than 5 small singular values stay small
    betas: tuple[float, float] = within(0, 1, default=(0.9, 0.95), below=True)
    eps: float = within(0, 1, default=1e-8, above=True)
    weight_decay: float = within(0, 1000, default=0.0)  # of Muon's matrices and of what AdamW decays

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def _adamw(self) -> AdamW:
        return AdamW(learning_rate=self.learning_rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def cost(self, groups: Sequence[tuple[Role, nn.Parameter]]) -> Cost:
        """Return what a step costs: of a matrix n x m, n the smaller, each iteration makes two products n m n and one n n n."""
        flops = 0.0
        for small, large in (sorted(p.shape) for p in _matrices(groups)):
            flops += self.ns_steps * (4.0 * small * small * large + 2.0 * small**3)
        return Cost(flops_run=flops, flops_ideal=flops)

    def build(self, groups: Sequence[tuple[Role, nn.Parameter]]) -> torch.optim.Optimizer:
        matrices = _matrices(groups)
        chosen = {id(p) for p in matrices}
        rest = [(role, p) for role, p in groups if id(p) not in chosen]
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=self.learning_rate,
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    ns_steps=self.ns_steps,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if rest:
            parts.append(self._adamw.build(rest))
        return MuonAndAdamW(parts)


def _matrices(groups: Sequence[tuple[Role, nn.Parameter]]) -> list[nn.Parameter]:
    return [p for role, p in groups if role.part in MATRICES and p.ndim == 2]


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer: their groups are its groups, and its state, by parameter, is theirs."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both, with the groups and the state as they are now, and return what the closure gave."""
        from torch.distributed.tensor import DTensor

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon_s = [g for g in self.param_groups if "ns_steps" in g]
        for part in self._parts:
            part.state = self.state
            if isinstance(part, torch.optim.Muon):
                part.param_groups = [{**g, "params": [p for p in g["params"] if not isinstance(p, DTensor)]} for g in muon_s]
            else:
                part.param_groups = [g for g in self.param_groups if "ns_steps" not in g]
            part.step()
        for group in muon_s:
            for parameter in group["params"]:
                if isinstance(parameter, DTensor) and parameter.grad is not None:
                    _step_sharded(parameter, self.state[parameter], group)
        return loss


def _step_sharded(parameter: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Do what torch's Muon does to a matrix, a DTensor, of which every rank holds a share."""
    from torch.distributed.tensor import DTensor, Replicate

    grad, momentum = parameter.grad, group["momentum"]
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(grad)
    average = state["momentum_buffer"].lerp_(grad, 1 - momentum)
    wanted = grad.lerp(average, momentum) if group["nesterov"] else average
    whole = _step_from_zero(wanted.bfloat16().full_tensor().to(parameter.dtype), group)
    everywhere = DTensor.from_local(whole, parameter.device_mesh, [Replicate()] * parameter.device_mesh.ndim, run_check=False)
    share = everywhere.redistribute(placements=parameter.placements)
    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(share)


def _step_from_zero(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """Return where torch's Muon goes from a matrix of zeros, without momentum and decay, by this gradient."""
    place = nn.Parameter(torch.zeros_like(matrix))
    place.grad = matrix
    alone = {**group, "params": [place], "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    torch.optim.Muon([alone]).step()
    return place.detach()
