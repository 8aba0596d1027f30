"""An arm's change of a recipe, the branches of its probes, and the seeds of a study."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from seedbed.core.bounds import LARGEST_SEED
from seedbed.core.config import set_path
from seedbed.core.errors import ConfigError, nearest
from seedbed.experiments.plan.checking import checked_as
from seedbed.experiments.plan.numbers import MOST_SEEDS
from seedbed.experiments.plan.specs import Budget, Recipe


def stages_left_out(recipe: Mapping[str, Any], tree: Mapping[str, Any]) -> set[str]:
    """The names of stages that an arm does not have."""
    return {s["name"] for s in recipe["stages"]} - {s["name"] for s in tree["stages"]}


def parse_seeds(seeds: str | Sequence[int]) -> list[int]:
    """Return [0, 1, 2] for "0-2" and [0, 3] for "0,3". Raises ConfigError for anything else, or doubles."""
    given = seeds
    if isinstance(seeds, str):
        spans = [re.fullmatch(r"\s*(\d{1,19})(?:\s*-\s*(\d{1,19}))?\s*", part) for part in seeds.split(",")]
        if not all(spans):
            raise ConfigError(f"cannot read the seeds {seeds!r}; write 0-4 or 0,2,5")
        ranges = [range(int(span[1]), int(span[2] or span[1]) + 1) for span in spans if span]
        if sum(map(len, ranges)) > MOST_SEEDS:
            raise ConfigError(f"a study has at most {MOST_SEEDS:,} seeds; got {seeds!r}")
        seeds = [n for some in ranges for n in some]
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED or len(seeds) > MOST_SEEDS:
        raise ConfigError(
            "seeds must be different numbers in 0..2^63 - 1, at least one, the first of a span not above its last; got "
            f"{given!r}"
        )
    return list(seeds)


def apply_change(tree: dict[str, Any], change: Mapping[str, Any], *, where: str) -> None:
    """Make an arm's change: `without` a stage, `give_budget_to` (who gets its budget), else paths and their values."""
    change = dict(change)
    without, heir = change.pop("without", None), change.pop("give_budget_to", None)
    if without is None and heir is not None:
        raise ConfigError(f"{where}.give_budget_to: only the budget of a stage named under `without` can be given")
    if without is not None:
        _remove_stage(tree, without, heir, where=where)
    for path, value in change.items():
        if "." not in path and path not in Recipe.model_fields:
            known = ["without", "give_budget_to", *Recipe.model_fields]
            raise ConfigError(f"{where}.{path}: no such change; {nearest(path, known)} (or a setting by its path, a.b.c)")
        set_path(tree, path, value)


def with_probes(tree: dict[str, Any]) -> dict[str, list[str]]:
    """Put a branch for each candidate of each probe in place of the probes of a tree; return the candidates by probe."""
    probes = tree.pop("probes", None) or {}
    for name, probe in probes.items():
        for candidate, change in probe["candidates"].items():
            stage = copy.deepcopy(probe["stage"])
            for path, value in change.items():
                set_path(stage, path, value)
            asked = {"evaluate": probe["evaluate"]} if "evaluate" in probe else {}
            branches = tree["branches"] = dict(tree.get("branches") or {})
            if branch_of(name, candidate) in branches:
                raise ConfigError(
                    f"probes.{name}.candidates.{candidate}: there is a branch {branch_of(name, candidate)} already"
                )
            branches[branch_of(name, candidate)] = {"at": probe["at"], "stages": [stage], **asked}
    return {name: list(probe["candidates"]) for name, probe in probes.items()}


def branch_of(probe: str, candidate: str) -> str:
    """Return the name of the branch that tries a candidate."""
    return f"{probe}-{candidate}"


def _remove_stage(tree: dict[str, Any], name: str, heir: str | None, *, where: str) -> None:
    stages = tree["stages"]
    names = [s["name"] for s in stages]
    if name not in names:
        raise ConfigError(f"{where}.without: no stage {name!r}; {nearest(name, names)}")
    gone = stages.pop(names.index(name))
    for stage in stages:
        if (stage.get("weights") or {}).get("from") == name:  # leaving a stage out hands its origin on
            if gone.get("weights"):
                stage["weights"]["from"] = gone["weights"]["from"]
            else:
                del stage["weights"]
    if heir is not None:
        taker = next((s for s in stages if s["name"] == heir), None)
        if taker is None:
            raise ConfigError(f"{where}.give_budget_to: no stage {heir!r}; {nearest(heir, [s['name'] for s in stages])}")
        mine, theirs = (checked_as(Budget, s["budget"]) for s in (taker, gone))
        rows = [tree["streams"].get(s["stream"], {}) for s in (taker, gone)]
        sizes = {(row.get("seq_len"), row.get("batch_size")) for row in rows}
        if mine.currency == "steps" and len(sizes) > 1:
            raise ConfigError(
                f"{where}.give_budget_to: a step of {heir} shows other tokens than one of {name}; give both budgets in tokens"
            )
        if mine.currency != theirs.currency:
            raise ConfigError(f"{where}.give_budget_to: {heir} counts {mine.currency}, {name} counted {theirs.currency}")
        currency = mine.currency
        taker["budget"] = {currency: getattr(mine, currency) + getattr(theirs, currency)}
