"""What a study is judged by: a number of an evaluation's whole reading, or what a function makes of its curve on the way.

`study.metric` names it: NAME.NUMBER (BRANCH/NAME.NUMBER of a branch's), or NAME.NUMBER.FUNCTION of what was read at steps of
the main stage. `last`: the last value; `dip`: how far the worst value lies behind the first, 0 if none does; `recovery`: the
tokens after which values are no worse than the first and stay so. Two arms' curves also cross: told beside a contrast.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.records import Measure
from seedbed.core.run_record import RunRecord
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.run.evaluations import evaluations_of, number_of

Curve = Sequence[tuple[int, float]]
"""(tokens of the stage, value), tokens rising; values turned so that less is better."""


def last(curve: Curve) -> float:
    """
    >>> last([(10, 3.0), (20, 2.5)])
    2.5
    """
    return curve[-1][1]


def dip(curve: Curve) -> float:
    """
    >>> dip([(10, 2.0), (20, 2.5), (30, 1.9)]), dip([(10, 2.0), (20, 1.5)])
    (0.5, 0.0)
    """
    return max(value for _, value in curve) - curve[0][1]


def recovery(curve: Curve) -> float:
    """The tokens of the whole curve, if it does not come back: a lower bound.

    >>> recovery([(10, 2.0), (20, 2.5), (30, 1.9)]), recovery([(10, 2.0), (20, 1.5)]), recovery([(10, 2.0), (20, 2.5)])
    (30.0, 10.0, 20.0)
    """
    worse = [i for i, (_, value) in enumerate(curve) if value > curve[0][1]]
    back = worse[-1] + 1 if worse else 0
    return float(curve[min(back, len(curve) - 1)][0])


def crossing(one: Curve, other: Curve) -> float | None:
    """Return the tokens from which on `one` is better than `other` and stays so; None if it is not, at the end.

    >>> crossing([(10, 3.0), (20, 2.0), (30, 1.0)], [(10, 2.5), (20, 2.2), (30, 2.1)])
    20.0
    """
    theirs = dict(other)
    shared = [(tokens, value < theirs[tokens]) for tokens, value in one if tokens in theirs]
    if not shared or not shared[-1][1]:
        return None
    behind = [i for i, (_, better) in enumerate(shared) if not better]
    return float(shared[behind[-1] + 1 if behind else 0][0])


FUNCTIONS: Mapping[str, Callable[[Curve], float]] = {"last": last, "dip": dip, "recovery": recovery}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One number of a run; `function` is empty for that of the whole reading."""

    evaluation: str
    number: str
    function: str = ""

    @classmethod
    def parse(cls, metric: str) -> "Outcome":
        """Return what NAME.NUMBER or NAME.NUMBER.FUNCTION names."""
        name, number, function = (*metric.split("."), "")[:3]
        return cls(evaluation=name, number=number, function=function)

    @property
    def key(self) -> str:
        """Its name among the numbers of its evaluation."""
        return f"{self.number}.{self.function}" if self.function else self.number

    def of(self, run: RunRecord, final: Mapping[str, Any], *, stage: str) -> float:
        """Return a run's number. Raises DataError if what it is read off was not watched."""
        told = final["evaluations"][self.evaluation]
        if not self.function:
            return float(told["numbers"][self.number])
        better = told["measures"][self.number]["better"]
        curve = turned(run.watched(self.evaluation, self.number, stage=stage), better)
        if not curve:
            raise DataError(f"{run.folder} has not read {self.evaluation}.{self.number} on the way through stage {stage}")
        value = FUNCTIONS[self.function](curve)
        return -value if better == "more" and self.function == "last" else value


def turned(curve: Curve, better: Literal["less", "more"]) -> Curve:
    """Return a curve of which less is better."""
    return curve if better == "less" else [(tokens, -value) for tokens, value in curve]


def settled(plan: RunPlan, metric: str | None) -> tuple[Outcome, Measure]:
    """Return the outcome that a study names, whole, and its unit. Raises ConfigError for what the plan does not have."""
    whole, _, function = (metric or "").rpartition(".") if (metric or "").count(".") == 2 else (metric, "", "")
    name, number, measure = number_of(plan, whole)
    if not function:
        return Outcome(evaluation=name, number=number), measure
    if function not in FUNCTIONS:
        raise ConfigError(f"study.metric: no function {function!r} of a curve; {nearest(function, FUNCTIONS)}")
    if "/" in name or not evaluations_of(plan)[name].spec.watch:
        raise ConfigError(f"study.metric: {function} is read off a curve, and {name} is not watched; set its `watch`")
    units = {
        "last": measure,
        "dip": Measure(unit=measure.unit, per_token=measure.per_token),
        "recovery": Measure(unit="tokens"),
    }
    return Outcome(evaluation=name, number=number, function=function), units[function]
