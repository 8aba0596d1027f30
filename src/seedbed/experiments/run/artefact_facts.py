"""What is known of the artefacts that a run reads: whether they are made, what they cost, who is charged."""

from pathlib import Path
from typing import Any

from seedbed.core.errors import DataError
from seedbed.core.json_files import read_object
from seedbed.core.ledger import Ledger
from seedbed.core.records import Cost
from seedbed.experiments.plan.run_plan import RunPlan

MADE = "artefact.json"  # written last: an artefact with it is whole


def folder_of(plan: RunPlan, name: str) -> Path:
    return Path(plan.prepare[name].folder)


def unmade(plan: RunPlan) -> list[Path]:
    """Return the folders of the artefacts that a plan reads and nobody has made."""
    return [folder for name in plan.prepare if not ((folder := folder_of(plan, name)) / MADE).is_file()]


def refuse_unmade(plan: RunPlan) -> None:
    """Raise DataError if an artefact is not made yet, where it is not made on the way."""
    missing = unmade(plan)
    if missing:
        raise DataError(
            f"{', '.join(map(str, missing))} is not made yet, so there are no data to look at; `seedbed prepare RECIPE` makes "
            "what a recipe reads, and so do `seedbed run` and `seedbed compare`"
        )


def facts_of(plan: RunPlan) -> dict[str, dict[str, Any]]:
    """Return artefact.json of each artefact of a plan, by name. Raises DataError if one is gone."""
    refuse_unmade(plan)
    advice = "remove its folder, and make the artefact again"
    return {name: read_object(folder_of(plan, name) / MADE, advice=advice) for name in plan.prepare}


def charge(plan: RunPlan, ledger: Ledger) -> dict[str, dict[str, str]]:
    """Charge what the artefacts of a plan took to its first stage; return what is said of each, by name."""
    found = {}
    for name, facts in facts_of(plan).items():
        charged = plan.prepare[name].charged
        if charged:
            ledger.charge(plan.stages[0].name, "prepare", Cost(**facts["cost"]))
        found[name] = {"cost": "charged" if charged else "given", "manifest": facts["manifest"]}
    return found
