"""Makes docs/systems.md: what each of the systems in systems.tsv claims, and what a study of ours says of it.

    python tools/systems.py > docs/systems.md        (or: make systems)

A recipe names its system by number and says the claim and who should use it; every number comes from the committed record of
that recipe's study under results/. A system without a recipe, or without a record, says so.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seedbed.core.run_record import RunRecord, read_comparison, runs_of
from seedbed.experiments.plan.load import load, shipped
from seedbed.experiments.plan.specs import Recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
DETECT_NATS = 0.02  # per token: what a judged contrast has to be able to see, or the claimed effect if that is larger

HEAD = """# Systems

What each method of the field claims, and what our own study of it found. Made by `make systems` from recipes and committed
records; do not edit. The verdict is that of the recipe's first contrast, at the size of the study: a small model, a small
corpus, a matched budget, paired seeds. **Not told**: undecided, and the study could not have seen 0.02 nats per token (or the
claimed effect, if that is larger). Detectable: the true difference found with 80 % power. What the words mean:
[verdicts](verdicts.md).

| # | system | claim | recipe | verdict | effect (interval) | detectable | cost | who should use it |
|---|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """Return docs/systems.md."""
    with (ROOT / "tools" / "systems.tsv").open(encoding="utf-8", newline="") as file:
        systems = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    of = _recipes()
    return HEAD + "".join(f"| {' | '.join(_row(system, of.get(int(system['number']))))} |\n" for system in systems)


def _recipes() -> dict[int, Recipe]:
    found: dict[int, Recipe] = {}
    for recipe in (load(name).recipe for name in shipped()):
        if recipe.system is not None:
            if recipe.system in found:
                raise ValueError(f"{recipe.name} and {found[recipe.system].name} both judge system {recipe.system}; one does")
            found[recipe.system] = recipe
    return found


def _row(system: dict[str, str], recipe: Recipe | None) -> Iterator[str]:
    """Give the cells of one system."""
    yield system["number"]
    yield f"**{system['system']}**: {system['paper']} ({system['year']})"
    if recipe is None:
        yield from ("", "", "not built", "", "", "", "")
        return
    yield recipe.claim
    yield f"`{recipe.name}`"
    file = RESULTS / recipe.name / "comparison.json"
    if not file.is_file():
        yield from ("not run", "", "", "", recipe.use_when)
        return
    data: dict[str, Any] = read_comparison(file.parent)
    contrast = data["contrasts"][0]
    unit = data["unit"]
    low, high = contrast["interval"]
    yield verdict(contrast, published=data["published_nats"])
    yield (
        f"{contrast['arm']} − {contrast['reference']}: {contrast['mean']:+.4f} {unit} ({low:+.4f} to {high:+.4f}), "
        f"{len(data['seeds'])} paired seeds, Holm p {contrast['p_holm']:.3f}"
    )
    yield f"{contrast['minimum_detectable']:.4f} {unit}; {contrast['minimum_detectable_nats']:.4f} nats per token"
    yield _cost(file.parent, data, contrast)
    yield recipe.use_when


def verdict(contrast: dict[str, Any], *, published: float | None) -> str:
    """Return a contrast's verdict; one that is undecided and could not have seen what it should is not told."""
    enough = max(DETECT_NATS, published or 0.0)
    blind = contrast["minimum_detectable_nats"] is None or contrast["minimum_detectable_nats"] > enough
    return "not told" if contrast["verdict"] == "undecided" and blind else str(contrast["verdict"])


def _cost(study: Path, data: dict[str, Any], contrast: dict[str, Any]) -> str:
    """What the arm spends against its reference, and what the whole study took on which machine."""
    arm, reference = (data["ledger"][contrast[side]]["total"]["flops_run"] for side in ("arm", "reference"))
    seconds = sum(spent["total"]["seconds"] for spent in data["ledger"].values()) * len(data["seeds"])
    runs = [RunRecord(place) for place in runs_of(study)]
    machines = {str((run.environment() or {}).get("processor", "unknown")) for run in runs}
    spent = f"study: {len(runs)} runs, {seconds / 3600:.2f} h one after the other, {', '.join(sorted(machines))}"
    return f"{arm / reference:.2f} times the reference's FLOPs; {spent}"


if __name__ == "__main__":
    print(page(), end="")
