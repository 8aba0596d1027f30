"""AdamW; weight decay on matrices of the body only (norms, biases and embeddings are left alone).

Paper: Loshchilov and Hutter (2019), "Decoupled weight decay regularization".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from seedbed.core.bounds import check_ranges, within
from seedbed.core.protocols import Neutral, OptimizerKind
from seedbed.core.records import Role


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerKind):
    """Settings; decay 0 is plain Adam."""

    neutral: ClassVar[Neutral] = {"weight_decay": 0.0}
    learning_rate: float = within(0, 10, default=1e-3, above=True, below=True)  # the peak; the schedule multiplies it
    betas: tuple[float, float] = within(0, 1, default=(0.9, 0.95), below=True)
    eps: float = within(0, 1, default=1e-8, above=True)
    weight_decay: float = within(0, 1000, default=0.0)

    def __post_init__(self) -> None:
        check_ranges(self)

    def build(self, groups: Sequence[tuple[Role, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        decayed = [p for role, p in groups if p.ndim >= 2 and role.part not in ("embedding", "position")]
        chosen = {id(p) for p in decayed}
        plain = [p for _, p in groups if id(p) not in chosen]
        sets = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [g for g in sets if g["params"]], lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True
        )
