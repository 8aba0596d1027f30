"""Straight lines between points [step, value], in steps from the stage's start (with a carried clock, from the clock's).

Before the first point the first value holds, behind the last the last. Two points at one step make a jump: from that step on
the later one's value holds.
"""

from dataclasses import dataclass
from typing import ClassVar

from seedbed.core.bounds import check_ranges, within
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral
from seedbed.core.records import Progress


@dataclass(frozen=True, kw_only=True)
class Piecewise:
    """Settings."""

    neutral: ClassVar[Neutral] = {"points": ((0, 1.0),)}
    points: tuple[tuple[int, float], ...] = within(-1e12, 1e12, default=((0, 1.0),))  # steps, values

    def __post_init__(self) -> None:
        check_ranges(self)
        steps = [step for step, _ in self.points]
        if not steps or steps != sorted(steps) or steps[0] < 0:
            given = [list(point) for point in self.points]
            raise ConfigError(f"points: needs one at least, with steps from 0 on that never fall; got {given}")

    def __call__(self, progress: Progress) -> float:
        before = [(step, value) for step, value in self.points if step <= progress.step]
        if not before:
            return self.points[0][1]
        step, value = before[-1]
        if len(before) == len(self.points):
            return value
        after, goal = self.points[len(before)]
        return value + (goal - value) * (progress.step - step) / (after - step)
