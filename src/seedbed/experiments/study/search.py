"""Many settings of one recipe, side by side: what a tuning and a map of settings have in common."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seedbed.core.durable import locked, write_json, write_whole
from seedbed.core.errors import RefusedError
from seedbed.core.json_files import read_json
from seedbed.experiments.plan.load import recipe_text_of
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.run.prepared import make_all
from seedbed.experiments.run.run import create
from seedbed.experiments.study.side_by_side import RunStatus, quiet, run_all
from seedbed.experiments.study.study import check_data, timed_plans


def run_search(
    folder: Path,
    *,
    name: str,
    facts: Mapping[str, Any],
    plans: Mapping[tuple[str, int], RunPlan],
    recipe: str | Path,
    jobs: int,
    threads: int,
    watch: Callable[[list[RunStatus]], None] | None,
) -> None:
    """Run many settings of one recipe (or what is left of them); `facts` are kept in `name` and decide what goes on.

    Raises RefusedError if the folder holds another search.
    """
    make_all(plans.values(), say=print)
    plans = timed_plans(plans, folder)
    facts = {**facts, "plans": {f"{a}/{s}": p.fingerprint() for (a, s), p in plans.items()}}
    check_data(list({arm: plan for (arm, _), plan in plans.items()}.values()))
    with locked(folder):
        known = folder / name
        if known.is_file() and read_json(known, advice="give another --out") != json.loads(json.dumps(facts)):
            raise RefusedError(f"{folder} holds another search; give another --out")
        if not known.is_file() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
            raise RefusedError(f"{folder} is not empty and holds no search; nothing is overwritten: give another --out")
        write_json(known, facts)
        recipe_text = recipe_text_of(recipe)
        write_whole(folder / "recipe.yaml", recipe_text)
        for (setting, seed), plan in plans.items():
            if not (folder / setting / f"seed-{seed}" / "resolved.yaml").is_file():
                create(plan, folder / setting / f"seed-{seed}", recipe_text=recipe_text)
        run_all(folder, plans, jobs=jobs, threads=threads, watch=watch or quiet)
