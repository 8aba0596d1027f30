"""A model that is lent to an objective: frozen, read without gradients, and every call is charged."""

from dataclasses import dataclass, field
from typing import Any

import torch

from seedbed.core.records import Batch, Cost


@dataclass(kw_only=True)
class Lent:
    """`spent` is what its calls cost since they were last settled."""

    model: Any
    fingerprint: str = ""  # of its weights
    spent: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.model.requires_grad_(False)
        self.model.eval()

    @torch.no_grad()
    def __call__(self, batch: Batch, *, taps: tuple[str, ...] = ()) -> Any:
        """Return the lent model's outputs on a batch (without gradients), with the inner states that are asked for."""
        self.spent += self.model.cost(batch)
        return self.model(batch, taps=taps) if taps else self.model(batch)

    def settled(self) -> Cost:
        """Return what was spent since the last time."""
        spent, self.spent = self.spent, Cost()
        return spent
