"""What differs between two runs, from what their folders say: recipe, data, code, environment, layout, numbers.

Nothing is computed anew, and a run may be unfinished or failed: what a folder lacks is said, not guessed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from seedbed.core.config import parse_yaml
from seedbed.core.errors import DataError
from seedbed.core.json_files import read_object
from seedbed.core.run_record import PLAN, RunRecord, runs_of
from seedbed.engine.checkpoints import latest, weights_fingerprint
from seedbed.experiments.plan.run_plan import WHERE

_SPENT = ("positions", "flops_run", "flops_ideal")  # of a ledger's lines; seconds differ between any two runs
_ADVICE = "resume that run, or compare another"
_LONGEST = 60  # characters of a value on the screen


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that differs; `only_in` is "one" or "other" if the other side does not have it at all."""

    path: str
    one: Any = None
    other: Any = None
    only_in: str | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """What differs in one respect; `absent` says what a side lacks, so that it could not be compared."""

    changes: list[Change] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.changes and not self.absent


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The training losses of both runs, step by step of the run. Nothing is named where no step differs or none is shared."""

    steps_one: int
    steps_other: int
    shared_steps: int
    first_step: int | None = None  # the first at which they differ
    largest_nats: float | None = None
    largest_step: int | None = None

    @property
    def same(self) -> bool:
        return self.first_step is None and self.shared_steps == self.steps_one == self.steps_other


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs side by side; a group without changes is the same in both."""

    one: Path
    other: Path
    status_one: str
    status_other: str
    recipe: Group
    data: Group
    code: Group
    environment: Group
    layout: Group
    scores: Group  # the numbers of evaluations
    ledger: Group  # totals over all stages
    losses: Losses
    seconds_one: float | None  # in all; never counted as a difference
    seconds_other: float | None
    weights_equal: bool | None  # None: they could not be compared
    weights: str  # which weights, or why not

    @property
    def same(self) -> bool:
        groups = [getattr(self, f.name) for f in fields(self) if f.type is Group]
        return all(g.same for g in groups) and self.losses.same and self.weights_equal is True


def diff(one: str | Path, other: str | Path) -> Difference:
    """Return what differs between two run folders. Raises DataError for any other folder, and for a file that is broken."""
    a, b = _Run(Path(one)), _Run(Path(other))
    equal, which = _weights(a, b)
    used = _both(a, b, "layout", lacking="no checkpoint")
    return Difference(
        one=a.folder,
        other=b.folder,
        status_one=a.status(),
        status_other=b.status(),
        recipe=_compared(a.recipe(), b.recipe()),
        data=_both(a, b, "data", lacking="neither final.json nor a checkpoint"),
        code=_both(a, b, "code", lacking="no env.json"),
        environment=_both(a, b, "environment", lacking="no env.json"),
        layout=Group(changes=[*_compared(a.asked(), b.asked()).changes, *used.changes], absent=used.absent),
        scores=_both(a, b, "scores", lacking="no evaluations yet"),
        ledger=_both(a, b, "ledger", lacking="no ledger yet (neither final.json nor a checkpoint)"),
        losses=_losses(a.losses, b.losses),
        seconds_one=a.seconds(),
        seconds_other=b.seconds(),
        weights_equal=equal,
        weights=which,
    )


class _Run:
    """What a run folder says; what is not there yet is None."""

    def __init__(self, folder: Path) -> None:
        _check_run(folder)
        self.folder = folder
        record = RunRecord(folder)
        self.plan = parse_yaml(record.plan_text(), name=str(folder / PLAN))
        self.final, self.env = record.final(), record.environment()
        self.checkpoint = latest(folder / "checkpoints")
        self.state = read_object(self.checkpoint / "state.json", advice=_ADVICE) if self.checkpoint else None
        self.losses = {line["run_step"]: line["loss_nats"] for line in record.metrics()}

    def status(self) -> str:
        if self.final is None:
            return f"unfinished, {len(self.losses)} steps so far"
        return "done" if self.final["status"] == "done" else f"failed: {self.final.get('error', 'no reason given')}"

    def recipe(self) -> dict[str, Any]:
        return _flat({k: v for k, v in self.plan.items() if k not in WHERE})

    def data(self) -> dict[str, Any] | None:
        found = self._last("data")
        return None if found is None else _flat(found)

    def code(self) -> dict[str, Any] | None:
        if self.env is None:
            return None
        commit = (self.final or {}).get("commit", self.env.get("commit"))
        return {"commit": commit, "seedbed": self.env.get("packages", {}).get("seedbed")}

    def environment(self) -> dict[str, Any] | None:
        if self.env is None:
            return None
        facts = _flat({k: v for k, v in self.env.items() if k != "commit"})
        return {k: v for k, v in facts.items() if k != "packages.seedbed"}

    def asked(self) -> dict[str, Any]:
        return {f"asked.{name}": self.plan[name] for name in WHERE if name in self.plan}

    def layout(self) -> dict[str, Any] | None:
        return None if self.state is None else _flat(self.state.get("layout") or {"threads": self.state.get("threads")})

    def scores(self) -> dict[str, Any] | None:
        if self.final is None or self.final["status"] != "done":
            return None
        told = self.final["evaluations"]
        met = {name: {"bar met": found["bar"]["met"]} for name, found in told.items() if "bar" in found}
        return _flat({name: found["numbers"] | met.get(name, {}) for name, found in told.items()})

    def ledger(self) -> dict[str, Any] | None:
        found = self._last("ledger")
        if found is None:
            return None
        shown = sum(sum(lines["tokens"].values()) for lines in found.values())
        return {"tokens": shown, **{name: _total(found, name) for name in _SPENT}}

    def seconds(self) -> float | None:
        found = self._last("ledger")
        return None if found is None else _total(found, "seconds")

    def _last(self, name: str) -> Any:
        """A fact from final.json or, of a run that has not come that far, from its newest checkpoint."""
        return next((found[name] for found in (self.final, self.state) if found and name in found), None)


def _check_run(folder: Path) -> None:
    if (folder / "study.json").is_file():
        runs = runs_of(folder)
        such = f", such as {runs[0]}" if runs else ""
        raise DataError(f"{folder} is a study folder, and two runs are compared here; give one of its runs{such}")


def _flat(tree: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """A tree by dotted paths, as `--set` takes them: elements of a list by their name."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
            value = {v["name"]: {k: x for k, x in v.items() if k != "name"} for v in value}
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{under}{name}.")
        else:
            found[f"{under}{name}"] = value
    return found


def _total(ledger: Mapping[str, Any], name: str) -> float:
    return sum(cost[name] for lines in ledger.values() for line, cost in lines.items() if line != "tokens")


def _both(one: _Run, other: _Run, what: str, *, lacking: str) -> Group:
    """A group of both runs; if a folder does not have it, that is said and nothing compared."""
    a, b = getattr(one, what)(), getattr(other, what)()
    absent = [f"{run.folder} has {lacking}" for run, values in ((one, a), (other, b)) if values is None]
    return Group(absent=absent) if absent else _compared(a, b)


def _compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> Group:
    changes = []
    for path in {**one, **other}:
        if path not in other:
            changes.append(Change(path=path, one=one[path], only_in="one"))
        elif path not in one:
            changes.append(Change(path=path, other=other[path], only_in="other"))
        elif one[path] != other[path]:
            changes.append(Change(path=path, one=one[path], other=other[path]))
    return Group(changes=changes)


def _losses(one: Mapping[int, float], other: Mapping[int, float]) -> Losses:
    shared = sorted(one.keys() & other.keys())
    differing = [step for step in shared if one[step] != other[step]]
    most = max(differing, key=lambda step: abs(one[step] - other[step]), default=None)
    return Losses(
        steps_one=len(one),
        steps_other=len(other),
        shared_steps=len(shared),
        first_step=differing[0] if differing else None,
        largest_nats=None if most is None else abs(one[most] - other[most]),
        largest_step=most,
    )


def _weights(one: _Run, other: _Run) -> tuple[bool | None, str]:
    """Whether the newest checkpoints hold the same weights by their hash, and of which step they are."""
    for run in (one, other):
        if run.state is None:
            return None, f"{run.folder} has no checkpoint"
    states = [run.state or {} for run in (one, other)]
    steps = [state["counters"]["run_step"] for state in states]
    if steps[0] != steps[1]:
        return None, f"the newest checkpoints are of steps {steps[0]} and {steps[1]}"
    hashes = [weights_fingerprint(state) for state in states]
    return hashes[0] == hashes[1], f"after step {steps[0]}"


def as_text(found: Difference) -> str:
    """Return a difference as lines for a terminal, one section for each group."""
    lines = [f"one:   {found.one} ({found.status_one})", f"other: {found.other} ({found.status_other})"]
    for name in ("recipe", "data", "code", "environment", "layout"):
        lines += ["", *_section(name, getattr(found, name))]
    lines += ["", "numbers"]
    for title, group in (("evaluations", found.scores), ("ledger", found.ledger)):
        lines += [f"  {line}" for line in _section(title, group)]
    lines.append(f"  losses: {_losses_line(found.losses)}")
    verdict = {True: "the same", False: "different", None: "not compared"}[found.weights_equal]
    lines.append(f"  weights: {verdict} ({found.weights})")
    took = [f"{s:.1f} s" if s is not None else "unknown" for s in (found.seconds_one, found.seconds_other)]
    lines.append(f"  took: {took[0]} and {took[1]}")
    return "\n".join(lines)


def _section(title: str, group: Group) -> list[str]:
    if group.same:
        return [f"{title}: the same"]
    return [title, *(f"  {_change_line(change)}" for change in group.changes), *(f"  not compared: {a}" for a in group.absent)]


def _change_line(change: Change) -> str:
    if change.only_in is not None:
        return f"{change.path}: only in {change.only_in}: {_shown(getattr(change, change.only_in))}"
    line = f"{change.path}: {_shown(change.one)} -> {_shown(change.other)}"
    measured = [isinstance(v, float) for v in (change.one, change.other)]
    return f"{line} ({change.other - change.one:+.6g})" if all(measured) else line


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _losses_line(losses: Losses) -> str:
    steps = f"{losses.steps_one} and {losses.steps_other} steps"
    if not losses.shared_steps:
        return f"not compared: {steps}, none in both"
    if losses.first_step is None or losses.largest_nats is None:
        both = f"the same at all {losses.shared_steps} steps"
        return both if losses.same else f"{both} that are in both ({steps})"
    exact = "not finite" if not math.isfinite(losses.largest_nats) else f"{losses.largest_nats:.6g} nats"
    return f"first differ at step {losses.first_step}; largest difference {exact}, at step {losses.largest_step} ({steps})"
