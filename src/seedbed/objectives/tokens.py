"""Cross-entropy of the asked tokens; what is asked was decided by the view.

Papers: Chowdhery et al. (2022), "PaLM", for the optional z term; Szegedy et al. (2016), "Rethinking the inception architecture
for computer vision", for label smoothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from seedbed.core.bounds import check_ranges, within
from seedbed.core.protocols import Neutral, Objective, Outputs
from seedbed.core.records import Batch, Context, Loss, TokenTargets


@dataclass(frozen=True, kw_only=True)
class Tokens(Objective):
    """Settings."""

    neutral: ClassVar[Neutral] = {"z_weight": 0.0, "smoothing": 0.0}
    layout_free: ClassVar[bool] = True  # a sum over tokens, each by itself
    z_weight: float = within(0, 10**6, default=0.0)  # weight of log(Z)^2; 0 is exactly the plain loss
    smoothing: float = within(
        0, 1, default=0.0, below=True
    )  # share of an asked id's mass on all ids evenly; 0 is exactly the plain loss

    def __post_init__(self) -> None:
        check_ranges(self)

    def count(self, batch: Batch) -> float:
        return float(batch.weights_BT.sum())

    def __call__(self, outputs: Outputs, *, batch: Batch, context: Context) -> Loss:
        targets = TokenTargets(
            ids_BT=batch.targets_BT, weights_BT=batch.weights_BT, smoothing=self.smoothing, z_weight=self.z_weight
        )
        loss = outputs.token_loss(targets)
        whole = self.z_weight == 0 and self.smoothing == 0  # then the loss is the nll
        return Loss(sum_nats=loss.sum_nats, parts={} if whole else {"nll": (loss.nll_BT * batch.weights_BT).sum()})
