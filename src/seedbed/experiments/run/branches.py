"""Branches: side runs that begin at a checkpoint of a run, the trunk, and move nothing of it (an annealed read-out, a test).

A branch is a run of its own in RUN/branches/NAME: it takes over weights, moments and clock, reads its streams on from where
the trunk's cursor stood, has a ledger and evaluations of its own, and is stopped and resumed as any run. The trunk's final.json
says what came of it, and its ledger has a line for it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from seedbed.core.ledger import Ledger
from seedbed.core.run_record import BRANCHES
from seedbed.engine.checkpoints import read_state
from seedbed.engine.ranks import Ranks
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import RECIPE, RUN, TRUNK, WeightsSpec
from seedbed.experiments.run.borders import of_run
from seedbed.experiments.run.evaluations import of_branch
from seedbed.experiments.run.givers import place_in
from seedbed.experiments.run.layout import SideRun, Sitting
from seedbed.experiments.run.state import RunState


def branch_plan(plan: RunPlan, name: str, folder: Path, *, step: int) -> RunPlan:
    """Return the plan of a branch of the run in a folder, from its checkpoint of a step."""
    giver = f"{RUN}{folder.absolute()}@{step}"
    _, checkpoint = of_run(giver)
    stages = list(plan.branches[name].stages)
    first = stages[0]
    weights = first.weights or WeightsSpec.model_validate({"from": TRUNK, "fresh": []})
    carry = first.carry if first.weights else ["weights", "moments", "clock"]
    stages[0] = first.model_copy(update={"weights": weights.model_copy(update={"from_": giver}), "carry": carry})
    own = {
        k: m.model_copy(update={"from_": f"{RUN}{place_in(folder.absolute(), m.from_)}"})
        for k, m in plan.models.items()
        if m.from_.startswith(RECIPE)
    }
    return of_branch(plan, name).model_copy(
        update={
            "models": {**plan.models, **own},  # those that the trunk had trained
            "stages": stages,
            "positions": read_state(checkpoint)["counters"]["positions"],
        }
    )


def run_branches(
    plan: RunPlan,
    folder: Path,
    *,
    state: RunState,
    ranks: Ranks,
    side_run: SideRun,
    sitting: Sitting,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Run what is not done yet of a run's branches; return by name where each began and what it found."""
    found: dict[str, Any] = {}
    for name, spec in plan.branches.items():
        at = (
            spec.at
            if isinstance(spec.at, int)
            else read_state(folder / "checkpoints" / state.borders[spec.at])["counters"]["run_step"]
        )
        place = folder / BRANCHES / name
        begun = ranks.from_first((place / "resolved.yaml").is_file())
        log(f"branch {name} {'goes on' if begun else 'begins'}, from step {at}")
        begin = None if begun else branch_plan(plan, name, folder, step=at)
        final = side_run(begin, place, sitting=replace(sitting, track=()), say=log)
        if not ranks.first:
            continue
        spent = Ledger.from_json(final["ledger"]).total()
        state.ledger.charge(plan.stages[-1].name, "branches", spent)
        found[name] = {"at": at, **{k: final[k] for k in ("evaluations", "ledger")}}
    return found
