"""The parts of a stage, each built once through its room: equal settings are one object."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from seedbed import models, objectives, optimizers, schedules, transfer
from seedbed.core.config import merged
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.protocols import ModelKind, OptimizerKind, Schedule, Transfer
from seedbed.core.records import Progress
from seedbed.engine.step import Term
from seedbed.experiments.plan.numbers import Part
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import StageSpec


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """What a stage is trained with; `rules` say what becomes of each weight over its border, if something arrives there."""

    kind: ModelKind
    terms: tuple[Term, ...]
    optimizer: OptimizerKind
    schedule: Schedule
    rules: Transfer | None


def stage_parts(plan: RunPlan, spec: StageSpec) -> StageParts:
    """Return the parts of a stage. Raises ConfigError, with the path in the recipe, for what does not fit."""
    path = f"stages.{spec.name}"
    return StageParts(
        kind=model_kind(plan, spec),
        terms=terms_of(spec),
        optimizer=optimizers.parts.once(spec.optimizer, path=f"{path}.optimizer"),
        schedule=schedules.parts.once(spec.schedule, path=f"{path}.schedule"),
        rules=None if spec.weights is None else rules_of(spec),
    )


def model_kind(plan: RunPlan, spec: StageSpec | None = None) -> ModelKind:
    """Return the settings of the model, with a stage's changes of it."""
    changed = spec is not None and spec.model
    kind: ModelKind = models.parts.once(
        model_part(plan, spec), path=f"stages.{spec.name}.model" if spec and changed else "model"
    )
    return kind


def model_part(plan: RunPlan, spec: StageSpec | None = None) -> Part:
    """Return the part that `model_kind` builds."""
    if spec is None or not spec.model:
        return plan.model
    return merged({"kind": plan.model} if isinstance(plan.model, str) else plan.model, spec.model)


def rules_of(spec: StageSpec) -> Transfer:
    """Return what says what becomes of each weight over a stage's border."""
    assert spec.weights is not None
    rules: Transfer = transfer.parts.once(spec.weights.part, path=f"stages.{spec.name}.weights")
    return rules


def lent_to(spec: StageSpec) -> list[str]:
    """Return the names of the recipe's models that a stage's objectives call."""
    return list(dict.fromkeys(name for term in terms_of(spec) for name in term.objective.models))


def terms_of(spec: StageSpec) -> tuple[Term, ...]:
    """Return a stage's weighted objectives. Raises ConfigError for what is no term, with its path."""
    terms: list[Term] = []
    for i, given in enumerate(spec.objective):
        term = _term(given, spec, path=f"stages.{spec.name}.objective.{i}")
        same = sum(t.name.partition("_")[0] == term.name for t in terms)
        terms.append(replace(term, name=f"{term.name}_{same + 1}") if same else term)
    return tuple(terms)


def _term(spec: Part, stage: StageSpec, *, path: str) -> Term:
    settings: dict[str, Any] = {"kind": spec} if isinstance(spec, str) else dict(spec)
    weight, stream = settings.pop("weight", 1.0), settings.pop("stream", stage.stream)
    known = [stage.stream, *stage.further]
    if stream not in known:
        raise ConfigError(f"{path}.stream: the stage has no stream {stream!r}; {nearest(str(stream), known)}")
    scheduled = {name: _schedule(v, path=f"{path}.{name}") for name, v in settings.items() if _is_schedule(v)}
    settings |= {name: schedule(_BEGIN) for name, schedule in scheduled.items()}
    if _is_schedule(weight):
        weight = _schedule(weight, path=f"{path}.weight")
    elif isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"{path}.weight: must be a finite number, or {{schedule: KIND, ...}}; got {weight!r}")
    objective = objectives.parts.once(settings, path=path)
    name = str(settings["kind"]).rpartition(":")[2].replace(".", "_")
    return Term(name=name, objective=objective, weight=weight, scheduled=scheduled, stream=stream)


_BEGIN = Progress(step=0, steps=1)


def _is_schedule(value: Any) -> bool:
    return isinstance(value, dict) and "schedule" in value


def _schedule(value: Mapping[str, Any], *, path: str) -> Schedule:
    settings = {k: v for k, v in value.items() if k != "schedule"}
    schedule: Schedule = schedules.parts.once({"kind": value["schedule"], **settings}, path=path)
    return schedule
