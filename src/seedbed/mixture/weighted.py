"""Several sources by weight: exact counts in every window of rows, each source in a new random order each epoch.

A window of rows is shared out by largest remainder, and what rounding leaves goes into the next window, so after any number of
windows each source has what its weights ask for, to within a row. Inside a window a keyed permutation says which row stands
where. Row counts before a window are a function of weights, sizes and what was recorded; rows lost or repeated are none,
whatever changes. Temperature: shares grow as size^(1/T); 1 is proportional, large is equal. Papers: Arivazhagan et al.
(2019), "Massively multilingual neural machine translation in the wild"; Xue et al. (2021), "mT5" (whose alpha is 1/T).
Letters: W rows of a window.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from math import floor
from typing import Any, ClassVar, Literal

from seedbed.core.bounds import LONGEST_ROW, MOST_ROWS, Range, check_ranges, within
from seedbed.core.config import parse_count
from seedbed.core.draws import key
from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.protocols import Mixture, Neutral
from seedbed.core.records import Draw, Measurement
from seedbed.mixture.epochs import permuted

WEIGHT = Range(0, 1e12)
CHANGED = "weights"  # the name of a Measurement that sets weights from its position on: `seedbed resume RUN --weights ...`


@dataclass(frozen=True, kw_only=True)
class Weighted(Mixture):
    """Settings of the mixture. Weights need not sum to one."""

    neutral: ClassVar[Neutral] = "it draws windows, so even one source has another order than in epochs"
    weighted: ClassVar[bool] = True
    weights: dict[str, float] | Literal["proportional", "equal"] = "proportional"
    temperature: float = within(0, 1000, default=1.0, above=True)  # of "proportional"
    of: Literal["rows", "bytes", "seconds"] = "bytes"  # the size that "proportional" means
    schedule: list[tuple[int | str, dict[str, float]]] = field(
        default_factory=list
    )  # [tokens, weights], straight lines in between
    # a source that was gone through so often gives no more
    most_epochs: float | dict[str, float] | None = within(0, 10**9, default=None, above=True)  # noqa: RUF009
    window: int = within(1, MOST_ROWS, default=256)  # rows
    shuffle: bool = True
    seq_len: int = within(1, LONGEST_ROW, default=1)  # tokens of a row, for `schedule`; a stream says its own

    wants: ClassVar[tuple[str, int] | None] = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.schedule and self.weights != "proportional":
            raise ConfigError("give weights or a schedule of weights, not both")
        places = [parse_count(place) for place, _ in self.schedule]
        if places and (places[0] != 0 or any(a > b for a, b in pairwise(places))):
            raise ConfigError(
                f"a schedule of weights begins at 0 tokens and rises, got {[place for place, _ in self.schedule]}"
            )
        for weights in self._all_weights():
            check_weights(weights)

    def resolved(self, amounts: Mapping[str, Mapping[str, float]]) -> "Weighted":
        """Return the mixture for sources of these sizes (name -> rows, bytes, seconds).

        Raises ConfigError for names that do not fit.
        """
        for weights in [*self._all_weights(), *([self.most_epochs] if isinstance(self.most_epochs, dict) else [])]:
            for name in weights:
                if name not in amounts:
                    raise ConfigError(f"the mixture names {name!r}, which is no source of the stream; {nearest(name, amounts)}")
        for weights in self._all_weights():
            missing = [name for name in amounts if name not in weights]
            if missing:
                raise ConfigError(f"the mixture gives no weight to {', '.join(missing)}; write 0 to leave a source out")
        if isinstance(self.weights, dict) or self.schedule:
            return self
        if self.weights == "equal":
            return replace(self, weights=dict.fromkeys(amounts, 1.0))
        sizes = {name: amount.get(self.of, 0.0) for name, amount in amounts.items()}
        if len(sizes) == 1:
            return replace(self, weights=dict.fromkeys(sizes, 1.0))
        unknown = [name for name, size in sizes.items() if not size > 0]
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)} cannot be weighed by {self.of} (none known, or endless); give weights, "
                "or `weights: equal`"
            )
        return replace(self, weights={name: size ** (1 / self.temperature) for name, size in sizes.items()})

    def draws(
        self, start: int, *, count: int, sizes: Mapping[str, int | None], seed: int, history: Sequence[Measurement] = ()
    ) -> list[Draw]:
        """Return the draws at positions start to start + count - 1.

        Raises DataError when every source has been gone through `most_epochs` times, or one has no row.
        """
        empty = [name for name, size in sizes.items() if size is not None and size < 1]
        if empty:
            raise DataError(f"the source {empty[0]!r} has no row; give it more data or a smaller seq_len")
        windows = self._windows(start + count, sizes=sizes, history=history)
        out = []
        for position in range(start, start + count):
            number, place = divmod(position, self.window)
            window = windows[number]
            if place >= sum(window.counts.values()):
                caps = f"most_epochs {self.most_epochs}"
                raise DataError(
                    f"the mixture is used up at row {position}: every source reached {caps}; raise it, give "
                    "more data or a smaller budget"
                )
            slot = permuted(place, size=sum(window.counts.values()), key=key(seed, "window", number)) if self.shuffle else place
            out.append(self._draw(window, slot, sizes=sizes, seed=seed))
        return out

    def wanted(self, rows: int, *, sizes: Mapping[str, int | None], history: Sequence[Measurement] = ()) -> dict[str, float]:
        """Return the share of the first `rows` rows that the weights asked for, before caps and rounding."""
        total, known = dict.fromkeys(sizes, 0.0), History(history)
        for first in range(0, rows, self.window):
            for name, weight in self._target(first, sizes, known).items():
                total[name] += weight * min(self.window, rows - first)
        return {name: value / max(rows, 1) for name, value in total.items()}

    def _draw(self, window: "_Window", slot: int, *, sizes: Mapping[str, int | None], seed: int) -> Draw:
        ends = list(accumulate(window.counts.values()))
        number = bisect_right(ends, slot)  # the source whose share of the window holds the slot
        name = list(window.counts)[number]
        size, place = sizes[name], window.before[name] + slot - ([0, *ends])[number]
        if size is None:
            return Draw(name, place, 0)
        epoch, place = divmod(place, size)
        index = permuted(place, size=size, key=key(seed, name, "epoch", epoch)) if self.shuffle else place
        return Draw(name, index, epoch)

    def _windows(self, rows: int, *, sizes: Mapping[str, int | None], history: Sequence[Measurement]) -> "list[_Window]":
        """Return the windows that hold the first `rows` rows; those known from an earlier call are not counted out again."""
        cache: dict[Any, tuple[list[Measurement], list[_Window]]] = self.__dict__.setdefault("_cache", {})
        seen, known = cache.setdefault(tuple(sizes.items()), ([], []))
        same = next((i for i, (a, b) in enumerate(zip(seen, history, strict=False)) if a != b), min(len(seen), len(history)))
        changed = [m.position for m in (*seen[same:], *history[same:])]
        if changed:  # windows that begin before the first new measurement stay as they are
            del known[-(-min(changed) // self.window) :]
            seen[:] = history
        if len(known) * self.window >= rows:
            return known
        told = History(history)
        while len(known) * self.window < rows:
            last = known[-1] if known else _Window(dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0.0))
            used = {name: last.before[name] + last.counts[name] for name in sizes}
            room = {name: self._room(name, size, used[name]) for name, size in sizes.items()}
            target = self._target(len(known) * self.window, sizes, told)
            counts, carry = shared_out(self.window, target, carry=last.carry, room=room)
            known.append(_Window(used, counts, carry))
        return known

    def _room(self, name: str, size: int | None, used: int) -> int | None:
        cap = self.most_epochs.get(name) if isinstance(self.most_epochs, dict) else self.most_epochs
        return None if cap is None or size is None else max(0, floor(Fraction(str(cap)) * size) - used)

    def _target(self, row: int, sizes: Mapping[str, int | None], told: "History") -> dict[str, float]:
        """Return the weights that hold for the window that begins at a row, as shares."""
        changed = told.weights_at(row)
        if changed is not None:
            return _shares({name: changed[name] for name in sizes})
        if self.schedule:
            return _shares(self._scheduled(row * self.seq_len, sizes))
        if not isinstance(self.weights, dict):
            if len(sizes) > 1:
                raise ConfigError(
                    f"the weights {self.weights!r} are not resolved yet: a stream does it, from the sizes of its sources"
                )
            return dict.fromkeys(sizes, 1.0)
        return _shares({name: self.weights[name] for name in sizes})

    def _scheduled(self, tokens: int, names: Mapping[str, Any]) -> dict[str, float]:
        points = [(parse_count(place), _shares(weights)) for place, weights in self.schedule]
        for (left, before), (right, after) in pairwise(points):
            if left <= tokens < right:
                share = (tokens - left) / (right - left)
                return {name: (1 - share) * before[name] + share * after[name] for name in names}
        return points[-1][1]

    def _all_weights(self) -> list[Mapping[str, float]]:
        return [*([self.weights] if isinstance(self.weights, dict) else []), *(w for _, w in self.schedule)]


class History:
    """What was recorded, by place."""

    def __init__(self, history: Sequence[Measurement]) -> None:
        self.measured = {(m.name, m.position): m.values for m in history}
        self._changes = sorted((m for m in history if m.name == CHANGED), key=lambda m: m.position)

    def weights_at(self, row: int) -> Mapping[str, float] | None:
        """The last weights that were set at or before a row."""
        at = bisect_right(self._changes, row, key=lambda m: m.position)
        return self._changes[at - 1].values if at else None


@dataclass(frozen=True)
class _Window:
    """Rows of each source before a window and in it, and what rounding left for the next."""

    before: dict[str, int]
    counts: dict[str, int]
    carry: dict[str, float]


def shared_out(
    rows: int, target: Mapping[str, float], *, carry: Mapping[str, float], room: Mapping[str, int | None]
) -> tuple[dict[str, int], dict[str, float]]:
    """Return how many of `rows` rows each source gives, by largest remainder, and what rounding leaves for the next window.

    `room` is the most that a source can still give. Where it binds, the others share the rest by weight; nothing is carried.

    >>> shared_out(10, {"a": 0.75, "b": 0.25}, carry={"a": 0.0, "b": 0.0}, room={"a": None, "b": None})
    ({'a': 8, 'b': 2}, {'a': -0.5, 'b': 0.5})
    """
    counts = dict.fromkeys(target, 0)
    open_, left = {n: w for n, w in target.items() if w > 0 and room[n] != 0}, rows
    bound = len(open_) < sum(w > 0 for w in target.values())
    quota: dict[str, float] = {}
    owed = -added(carry[n] for n in target if n not in open_) / max(1, len(open_))  # of sources that were switched off
    while open_ and left:
        total = added(open_.values())
        quota = {n: left * w / total + (0.0 if bound else carry[n] - owed) for n, w in open_.items()}
        given = _largest_remainder(left, quota)
        full = {n for n in open_ if (limit := room[n]) is not None and given[n] >= limit}
        if not full:
            counts.update(given)
            break
        bound = True
        for n in full:
            counts[n] = room[n] or 0
            left -= counts[n]
            del open_[n]
    if bound:
        return counts, dict.fromkeys(target, 0.0)
    return counts, {n: quota[n] - counts[n] if n in quota else 0.0 for n in target}


def _largest_remainder(rows: int, quota: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `rows`: the floors (at least 0), and one more where most remains (ties: the first)."""
    counts = {n: max(0, floor(q)) for n, q in quota.items()}
    while sum(counts.values()) < rows:
        counts[max(quota, key=lambda n: quota[n] - counts[n])] += 1
    while sum(counts.values()) > rows:  # a negative quota was raised to 0: take it back where the least is owed
        counts[min((n for n in quota if counts[n]), key=lambda n: quota[n] - counts[n])] -= 1
    return counts


def check_weights(weights: Mapping[str, float]) -> None:
    if not all(WEIGHT.holds(w) for w in weights.values()) or not any(weights.values()):
        raise ConfigError(f"weights must lie in {WEIGHT}, and one above 0; got {dict(weights)}")


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = added(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def added(numbers: Iterable[float]) -> float:
    """Return the sum, added from left to right: from 3.12 on Python's own `sum` rounds otherwise, and rows would move."""
    total = 0.0
    for number in numbers:
        total += number
    return total
