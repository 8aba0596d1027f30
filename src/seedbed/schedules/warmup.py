"""A linear rise to the peak, then the peak: no decay, so a stage hands over at its full rate.

A stage that hands on its weights at the peak rate takes them exactly when the rise ends (`share: 1.0`).
"""

from dataclasses import dataclass
from typing import ClassVar

from seedbed.core.bounds import check_ranges, within
from seedbed.core.protocols import Neutral
from seedbed.core.records import Progress


def rise(progress: Progress, *, share: float) -> float:
    """Return the multiplier of a linear rise over the first `share` of the steps; 1 reached at its last step."""
    steps = round(share * progress.steps)
    return min(1.0, (progress.step + 1) / steps) if steps > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Settings."""

    neutral: ClassVar[Neutral] = {"share": 0.0}
    share: float = within(0, 1, default=0.05)  # of the stage's steps

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, progress: Progress) -> float:
        return rise(progress, share=self.share)
