"""A mixture with feedback: what is learned worst is shown more, by multiplicative weights on held-out losses.

After every `every` rows the loss of each source's held-out text is measured; shares are base weights times exp(eta * loss),
so a source whose loss stands d nats above another's gets exp(eta * d) times its weight. eta 0 is the base weights exactly.
Papers: Freund and Schapire (1997), the multiplicative-weights rule; Chen et al. (2023), "Skill-it", which weighs skills so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import ClassVar

from seedbed.core.bounds import within
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral
from seedbed.mixture.weighted import History, Weighted, added

MEASURED = "loss_nats"


@dataclass(frozen=True, kw_only=True)
class ByLoss(Weighted):
    """Settings beside those of `weighted`: `every` rows a measurement is made; it holds for the rows behind it."""

    neutral: ClassVar[Neutral] = {"eta": 0.0}
    eta: float = within(0, 100, default=0.5)  # per nat
    every: int = within(1, 2**31, default=4096)  # rows; a multiple of window

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every % self.window:
            raise ConfigError(f"every must be a multiple of window ({self.window} rows), got {self.every}")

    @property
    def wants(self) -> tuple[str, int]:  # type: ignore[override]
        return (MEASURED, self.every)

    def _target(self, row: int, sizes: Mapping[str, int | None], told: History) -> dict[str, float]:
        base = super()._target(row, sizes, told)
        due = row // self.every * self.every
        if due == 0:
            return base
        losses = told.measured.get((MEASURED, due))
        if losses is None:
            raise PendingError(f"the rows from {due} on wait for a measurement of {MEASURED} at {due}; none is recorded")
        highest = max(losses.values())
        raised = {name: weight * exp(self.eta * (losses[name] - highest)) for name, weight in base.items()}
        total = added(raised.values())
        return {name: weight / total for name, weight in raised.items()}


class PendingError(RuntimeError):
    """A row was asked for that follows a decision which has not been made yet."""
