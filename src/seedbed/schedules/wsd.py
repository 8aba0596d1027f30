"""Warm-up, stable, decay: a rise, a long plateau at the peak, a linear fall to a floor at the last step.

Until the fall begins, the run is the same for every total length; that makes losses on the way comparable between arms.
"""

from dataclasses import dataclass
from typing import ClassVar

from seedbed.core.bounds import check_ranges, within
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral
from seedbed.core.records import Progress
from seedbed.schedules.warmup import rise


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Settings; all are shares of the stage's steps or multipliers."""

    neutral: ClassVar[Neutral] = {"warmup": 0.0, "decay": 0.0}
    warmup: float = within(0, 1, default=0.05)
    decay: float = within(0, 1, default=0.2)
    floor: float = within(0, 1, default=0.0)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.warmup + self.decay > 1:
            raise ConfigError(f"warmup and decay overlap: {self.warmup} + {self.decay} is more than the whole stage")

    def __call__(self, progress: Progress) -> float:
        down = round(self.decay * progress.steps)
        left = progress.steps - (progress.step + 1)
        falling = self.floor + (1 - self.floor) * left / down if down and left < down else 1.0
        return min(rise(progress, share=self.warmup), falling)
