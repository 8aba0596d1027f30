"""A linear rise, then half a cosine down to a floor at the last step.

Losses on the way are inflated by the rate that has not yet fallen: don't read speed-ups off one cosine run.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

from seedbed.core.protocols import Neutral
from seedbed.core.records import Progress
from seedbed.schedules.warmup import check_share, rise


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Settings."""

    neutral: ClassVar[Neutral] = {"warmup": 0.0, "floor": 1.0}
    warmup: float = 0.05  # share of the stage's steps, 0 to 1
    floor: float = 0.1  # multiplier at the last step, 0 to 1

    def __post_init__(self) -> None:
        check_share("warmup", self.warmup)
        check_share("floor", self.floor)

    def __call__(self, progress: Progress) -> float:
        up = round(self.warmup * progress.steps)
        if progress.step < up:
            return rise(progress, share=self.warmup)
        done = (progress.step + 1 - up) / max(1, progress.steps - up)
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * done))
