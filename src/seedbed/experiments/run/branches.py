"""Branches: side runs that begin at a checkpoint of a run, the trunk, and move nothing of it (an annealed read-out, a test).

A branch is a run of its own in RUN/branches/NAME: it takes over weights, moments and clock, reads its streams on from where
the trunk's cursor stood, has a ledger and evaluations of its own, and is stopped and resumed as any run. The trunk's final.json
says what came of it, and its ledger has a line for it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from seedbed.core.errors import ConfigError, RunFailedError, StoppedRunError
from seedbed.core.ledger import Ledger
from seedbed.core.run_record import BRANCHES
from seedbed.engine.checkpoints import FINAL, read_state
from seedbed.engine.ranks import Ranks
from seedbed.experiments.assemble import build_model, build_system, steps_of
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import RECIPE, RUN, TRUNK, WeightsSpec
from seedbed.experiments.run.borders import of_run
from seedbed.experiments.run.evaluations import of_branch
from seedbed.experiments.run.givers import place_in
from seedbed.experiments.run.layout import Session, SideRun
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


def check_branches(plan: RunPlan) -> None:
    """Raise ConfigError, before anything is trained, for a branch from behind the run's end, or without its moments."""
    if not plan.branches:
        return
    ends: dict[str, int] = {}
    for spec in plan.stages:
        with torch.device("meta"):
            model = build_model(plan, spec, vocab_size=8)
            before = next(reversed(ends.values()), 0)
            ends[spec.name] = before + steps_of(plan, spec, build_system(plan, spec, model))
    for name, branch in plan.branches.items():
        last = next(reversed(ends.values()))
        if isinstance(branch.at, int) and branch.at > last:
            raise ConfigError(f"branches.{name}.at: the run has {last} steps, and there is no step {branch.at}")
        at = branch.at if isinstance(branch.at, str) else next(stage for stage, end in ends.items() if branch.at <= end)
        giving, first = next(s for s in plan.stages if s.name == at), branch.stages[0]
        moments = first.weights is None or "moments" in first.carry
        kinds = [o if isinstance(o, str) else o["kind"] for o in (giving.optimizer, first.optimizer)]
        if moments and kinds[0] != kinds[1]:
            raise ConfigError(
                f"branches.{name}.stages.{first.name}.optimizer: moments of {kinds[0]} cannot go on with {kinds[1]}; take the "
                f"same, or say `weights: {{from: {TRUNK}, fresh: []}}`, which takes weights alone"
            )


def _step_of(checkpoint: Path) -> int:
    """Return a checkpoint's step; a kill at the very end may have left it under its last name."""
    step: int = read_state(checkpoint if checkpoint.is_dir() else checkpoint.with_name(FINAL))["counters"]["run_step"]
    return step


def run_branches(
    plan: RunPlan,
    folder: Path,
    *,
    state: RunState,
    ranks: Ranks,
    side_run: SideRun,
    session: Session,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Run what is not done yet of a run's branches; return by name where each began and what it found."""
    found: dict[str, Any] = {}
    for name, spec in plan.branches.items():
        at = spec.at if isinstance(spec.at, int) else _step_of(folder / "checkpoints" / state.borders[spec.at])
        place = folder / BRANCHES / name
        begun = ranks.from_first((place / "resolved.yaml").is_file())
        log(f"branch {name} {'goes on' if begun else 'begins'}, from step {at}")
        begin = None if begun else branch_plan(plan, name, folder, step=at)
        try:
            final = side_run(begin, place, session=replace(session, track=()), say=log)
        except StoppedRunError:
            raise
        except RunFailedError as e:  # the trunk is none the worse
            log(f"branch {name} failed: {e}")
            found[name] = {"at": at, "failed": str(e), "evaluations": {}}
            continue
        if not ranks.first:
            continue
        spent = Ledger.from_json(final["ledger"]).total()
        state.ledger.charge(plan.stages[-1].name, "branches", spent)
        found[name] = {"at": at, **{k: final[k] for k in ("evaluations", "ledger")}}
    return found
