"""The range of a number, written where the number is: `stride: int = within(1, 10**6, default=1)`.

`check_ranges(self)` in a dataclass's `__post_init__` refuses what lies outside, and what is not finite, by name. `seedbed
explain` tells the ranges, and a test finds the number that has none.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from seedbed.core.errors import ConfigError

LONGEST_ROW = 2**24  # tokens
MOST_ROWS = 2**24  # at a time
MOST_BYTES = 2**50
LARGEST_SEED = 2**63 - 1
MOST_THREADS = MOST_WORKERS = 4096
_RANGE = "range"


class Range(NamedTuple):
    """Both ends belong to it, unless `above` or `below` leaves the first or the last out."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        left_out = [f"{end:g}" for end, out in ((self.low, self.above), (self.high, self.below)) if out]
        return f"{_shown(self.low)}..{_shown(self.high)}{f' ({_and(left_out)} excluded)' if left_out else ''}"


def within(low: float, high: float, *, default: Any = dataclasses.MISSING, above: bool = False, below: bool = False) -> Any:
    """Return a field whose number lies in low..high; of a tuple, list or mapping every number in it. None is let through."""
    return dataclasses.field(default=default, metadata={_RANGE: Range(low, high, above, below)})


def range_of(field: "dataclasses.Field[Any]") -> Range | None:
    return field.metadata.get(_RANGE)


def check_ranges(settings: Any) -> None:
    """Raise ConfigError for a number of a dataclass that lies outside of its field's range or is not finite."""
    for field in dataclasses.fields(settings):
        allowed = range_of(field)
        if allowed is not None:
            check_range(field.name, getattr(settings, field.name), allowed)


def check_range(name: str, value: Any, allowed: Range) -> None:
    for number in _numbers(value):
        if not allowed.holds(number):
            raise ConfigError(f"{name} must lie in {allowed}, got {number!r}")


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)


def _shown(number: float) -> str:
    """Return a number as a reader knows it: powers of two and ten by their exponent, where that is shorter."""
    if isinstance(number, int) and abs(number) > 99_999:
        for base in (2, 10):
            power = round(math.log(abs(number), base))
            for less in (0, 1, 2):
                if base**power - less == number:
                    return f"{base}^{power}{f' - {less}' if less else ''}"
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**20 else f"{number:g}"


def _and(words: list[str]) -> str:
    return " and ".join(words)
