"""A linear rise, then half a cosine down to a floor at the last step.

Losses on the way are inflated by the rate that has not yet fallen: don't read speed-ups off one cosine run.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

from seedbed.core.bounds import check_ranges, within
from seedbed.core.protocols import Neutral
from seedbed.core.records import Progress
from seedbed.schedules.warmup import rise


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Settings."""

    neutral: ClassVar[Neutral] = {"warmup": 0.0, "floor": 1.0}
    warmup: float = within(0, 1, default=0.05)  # share of the stage's steps
    floor: float = within(0, 1, default=0.1)  # multiplier at the last step

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, progress: Progress) -> float:
        up = round(self.warmup * progress.steps)
        if progress.step < up:
            return rise(progress, share=self.warmup)
        done = (progress.step + 1 - up) / max(1, progress.steps - up)
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * done))
