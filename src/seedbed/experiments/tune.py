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
from seedbed.engine.precision import available_threads
from seedbed.experiments.assemble import check_parts
from seedbed.experiments.comparison import valid_curve
from seedbed.experiments.environment import commit, processor
from seedbed.experiments.recipe import RunPlan, TuneSpec, load
from seedbed.experiments.run import finished
from seedbed.experiments.study import RunStatus, run_search


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

    Raises ConfigError if there is no such block or an arm has more trials than another, RefusedError if the folder holds
    another search.
    """
    loaded = load(recipe, scale=scale, sets=sets)
    spec = loaded.recipe.tune
    if spec is None:
        raise ConfigError(f"the recipe {loaded.recipe.name} has no `tune:` block")
    if set(spec.seeds) & set(loaded.seeds):
        raise ConfigError("tune.seeds and the study's seeds overlap; tuning seeds are never used again")
    threads = max(1, available_threads() // jobs)
    plans: dict[tuple[str, int], RunPlan] = {}
    settings: dict[str, dict[str, Any]] = {}
    for arm, grid in spec.grids.items():
        for number, chosen in enumerate(trials(grid)):
            name = f"{arm}-{number}"
            settings[name] = {"arm": arm, "settings": chosen}
            for seed in spec.seeds:
                plan = loaded.plan(arm=arm, seed=seed, changes=chosen, device=device, threads=threads)
                untested = plan.evaluate.model_copy(update={"test": False, "samples": []})
                plans[name, seed] = plan.model_copy(update={"arm": name, "evaluate": untested})
                check_parts(plans[name, seed])
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
    data = _record(folder, loaded.recipe.name, spec, settings, plans)
    write_json(folder / "tuning.json", data)
    return Tuning(folder=folder, data=data)


def trials(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid's values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _check_fair(spec: TuneSpec) -> None:
    counts = {arm: len(trials(grid)) for arm, grid in spec.grids.items()}
    if len(set(counts.values())) != 1:
        raise ConfigError(f"tune.grids: every arm must get as many trials as the others, got {counts}")


def _record(
    folder: Path, name: str, spec: TuneSpec, settings: Mapping[str, Any], plans: Mapping[tuple[str, int], RunPlan]
) -> dict[str, Any]:
    found = []
    for trial, facts in settings.items():
        losses, errors = {}, {}
        for seed in spec.seeds:
            run = folder / trial / f"seed-{seed}"
            final = finished(run)
            if final is not None and final["status"] == "done":
                losses[str(seed)] = valid_curve(run, plans[trial, seed].main_stage)[-1][1]
            else:
                errors[str(seed)] = final["error"] if final else "not ended"
        mean = sum(losses.values()) / len(losses) if losses and not errors else None
        found.append({"trial": trial, **facts, "valid_loss_nats": losses, "mean": mean, "failures": errors})
    best = {}
    for arm in spec.grids:
        ended = [t for t in found if t["arm"] == arm and t["mean"] is not None]
        best[arm] = min(ended, key=lambda t: t["mean"])["settings"] if ended else None
    return {
        "recipe": name,
        "seeds": spec.seeds,
        "trials_per_arm": len(trials(next(iter(spec.grids.values())))),
        "metric": "validation loss of the main stage at its last step, nats per token",
        "best": best,
        "trials": found,
        "commit": commit(),
        "processor": processor(),
    }
