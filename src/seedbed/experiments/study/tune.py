"""A grid of settings for every arm, run on validation data and on seeds that no study uses; every arm gets as many trials.

The best settings are printed and written down with all trials, for a recipe's `study.tuned`; the test part is never read.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.core.durable import check_place, write_json
from seedbed.core.errors import ConfigError
from seedbed.core.run_record import RunRecord
from seedbed.engine.precision import available_threads
from seedbed.experiments.assemble import check_parts
from seedbed.experiments.environment import commit, processor
from seedbed.experiments.plan.load import load
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import SamplesSpec
from seedbed.experiments.plan.study_specs import TuneSpec
from seedbed.experiments.run.evaluations import evaluations_of, number_of
from seedbed.experiments.run.run import finished
from seedbed.experiments.study.outcomes import settled
from seedbed.experiments.study.search import run_search
from seedbed.experiments.study.side_by_side import RunStatus


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The record of a search: `data` is tuning.json."""

    folder: Path
    data: dict[str, Any]


def tune(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    scale: str | None = None,
    sets: Mapping[str, Any] | None = None,
    jobs: int = 1,
    device: str = "auto",
    watch: Callable[[list[RunStatus]], None] | None = None,
) -> Tuning:
    """Run the recipe's `tune:` block (or what is left of it) and return its record; writes tuning.json.

    Raises ConfigError if there is no such block or an arm has more trials than another, RefusedError for another's folder.
    """
    loaded = load(recipe, scale=scale, sets=sets)
    spec = loaded.recipe.tune
    if spec is None:
        raise ConfigError(f"the recipe {loaded.recipe.name} has no `tune:` block")
    if set(spec.seeds) & set(loaded.seeds):
        raise ConfigError("tune.seeds and the study's seeds overlap; tuning seeds are never used again")
    threads = max(1, available_threads() // jobs)
    metric = loaded.recipe.study.metric if loaded.recipe.study else None
    plans: dict[tuple[str, int], RunPlan] = {}
    settings: dict[str, dict[str, Any]] = {}
    for arm, grid in spec.grids.items():
        for number, chosen in enumerate(trials(grid)):
            name = f"{arm}-{number}"
            settings[name] = {"arm": arm, "settings": chosen}
            for seed in spec.seeds:
                plan = loaded.plan(arm=arm, seed=seed, changes=chosen, device=device, threads=threads)
                plans[name, seed] = plan.model_copy(update={"arm": name, "test": False, "samples": SamplesSpec()})
                check_parts(plans[name, seed])
                _check_watched(plan, metric)
    _check_fair(spec)
    folder = Path(out) if out else Path("runs") / f"{loaded.recipe.name}-tuning"
    check_place(folder, folder=True)
    run_search(
        folder,
        name="tune.json",
        facts={"settings": settings},
        plans=plans,
        recipe=recipe,
        jobs=jobs,
        threads=threads,
        watch=watch,
    )
    data = _record(folder, loaded.recipe.name, spec, settings, plans, metric=metric)
    write_json(folder / "tuning.json", data)
    return Tuning(folder=folder, data=data)


def trials(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid's values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _check_watched(plan: RunPlan, metric: str | None) -> None:
    outcome, _ = settled(plan, metric)
    name = outcome.evaluation
    if "/" in name:
        raise ConfigError(f"a search is read off what the run itself is asked on the way, and {name} is a branch's")
    spec = evaluations_of(plan)[name].spec
    if spec.stage not in (None, plan.main_stage):
        raise ConfigError(f"a search is read off the main stage, {plan.main_stage}, and {name} is about stage {spec.stage}")
    if not spec.watch:
        raise ConfigError(f"a search is read off {name} on the way, and it is not watched; set evaluate.{name}.watch: true")


def _last_watched(run: Path, stage: str, evaluation: str, number: str) -> float:
    curve = RunRecord(run).watched(evaluation, number, stage=stage)
    if not curve:
        raise ConfigError(f"{run} has read no {evaluation}.{number} on the way through stage {stage}; name another metric")
    return curve[-1][1]


def _check_fair(spec: TuneSpec) -> None:
    counts = {arm: len(trials(grid)) for arm, grid in spec.grids.items()}
    if len(set(counts.values())) != 1:
        raise ConfigError(f"tune.grids: every arm must get as many trials as the others, got {counts}")


def _record(
    folder: Path,
    name: str,
    spec: TuneSpec,
    settings: Mapping[str, Any],
    plans: Mapping[tuple[str, int], RunPlan],
    *,
    metric: str | None,
) -> dict[str, Any]:
    plan = next(iter(plans.values()))
    outcome, _ = settled(plan, metric)
    evaluation, number, measure = number_of(plan, f"{outcome.evaluation}.{outcome.number}")
    better = min if measure.better == "less" else max
    found = []
    for trial, facts in settings.items():
        losses, errors = {}, {}
        for seed in spec.seeds:
            run = folder / trial / f"seed-{seed}"
            final = finished(run)
            if final is not None and final["status"] == "done":
                losses[str(seed)] = _last_watched(run, plans[trial, seed].main_stage, evaluation, number)
            else:
                errors[str(seed)] = final["error"] if final else "not ended"
        mean = sum(losses.values()) / len(losses) if losses and not errors else None
        found.append({"trial": trial, **facts, "values": losses, "mean": mean, "failures": errors})
    best = {}
    for arm in spec.grids:
        ended = [t for t in found if t["arm"] == arm and t["mean"] is not None]
        best[arm] = better(ended, key=lambda t: t["mean"])["settings"] if ended else None
    return {
        "recipe": name,
        "seeds": spec.seeds,
        "trials_per_arm": len(trials(next(iter(spec.grids.values())))),
        "metric": f"{evaluation}.{number} on validation data at the main stage's last step, {measure.unit}",
        "better": measure.better,
        "best": best,
        "trials": found,
        "commit": commit(),
        "processor": processor(),
    }
