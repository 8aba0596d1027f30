"""Budgets in seconds: a step is timed once, before the first run, and from then on the budget is a number of steps.

The timing stands in resolved.yaml (`budget: {seconds: 600, timed: {...}}`). A study times each arm once and all its seeds keep
that; a resume reads it. So two arms with the same seconds differ in steps as their steps differ in time on that machine.
"""

from seedbed.experiments.environment import processor
from seedbed.experiments.estimate.estimate import estimate
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import Budget, Timing

_ANY = 1000  # steps of which the time of one is asked; how many they are moves nothing


def timed(plan: RunPlan, *, known: RunPlan | None = None) -> RunPlan:
    """Return a plan in which every budget in seconds has its timing: that of a `known` plan, or measured now."""
    missing = [s.name for s in plan.stages if s.budget.seconds is not None and s.budget.timed is None]
    if not missing:
        return plan
    budgets = {s.name: s.budget for s in known.stages} if known else _measured(plan)
    if any(budgets.get(s.name, s.budget).seconds != s.budget.seconds for s in plan.stages if s.name in missing):
        return timed(plan)  # they are of another recipe, which whoever goes on with it says
    stages = [s.model_copy(update={"budget": budgets[s.name]}) if s.name in missing else s for s in plan.stages]
    return plan.model_copy(update={"stages": stages})


def _measured(plan: RunPlan) -> dict[str, Budget]:
    any_steps = [
        s.model_copy(update={"budget": Budget(steps=_ANY)}) if s.budget.seconds is not None else s for s in plan.stages
    ]
    found = {e.stage: e.step_seconds for e in estimate(plan.model_copy(update={"stages": any_steps}))}
    budgets = {}
    for spec in plan.stages:
        seconds, each = spec.budget.seconds, found[spec.name]
        if seconds is not None:
            timing = Timing(steps=max(1, round(seconds / each)), step_seconds=each, processor=processor())
            budgets[spec.name] = Budget(seconds=seconds, timed=timing)
    return budgets
