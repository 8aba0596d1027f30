"""AdamW; weight decay on matrices of the body only (norms, biases and embeddings are left alone).

Paper: Loshchilov and Hutter (2019), "Decoupled weight decay regularization".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral
from seedbed.core.records import Role


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Settings; decay 0 is plain Adam."""

    neutral: ClassVar[Neutral] = {"weight_decay": 0.0}
    learning_rate: float = 1e-3  # the peak; the schedule multiplies it
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < 10:
            raise ConfigError(f"learning_rate must lie between 0 and 10, got {self.learning_rate}")
        if not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"betas must lie in 0..1 (1 excluded), got {self.betas}")
        if self.weight_decay < 0 or self.eps <= 0:
            raise ConfigError(f"weight_decay must be 0 or more and eps positive; got {self.weight_decay} and {self.eps}")

    def build(self, groups: Sequence[tuple[Role, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        decayed = [p for role, p in groups if p.ndim >= 2 and role.part not in ("embedding", "position")]
        chosen = {id(p) for p in decayed}
        plain = [p for _, p in groups if id(p) not in chosen]
        sets = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [g for g in sets if g["params"]], lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True
        )
