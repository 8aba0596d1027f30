"""Models that a run takes from recipes (`recipe:NAME`): each is trained first, as a run of its own in RUN/givers/NAME.

It is the recipe's control (or its only arm) with the seed, and where it computes, of the run that takes it; it is stopped and
gone on with as any run. What its training took is charged to the taker's ledger, or, with `charged: false`, given.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from seedbed.core.errors import ConfigError
from seedbed.core.ledger import Ledger
from seedbed.core.records import Cost
from seedbed.engine.ranks import Ranks
from seedbed.experiments.parts import lent_to
from seedbed.experiments.plan.load import load
from seedbed.experiments.plan.run_plan import RunPlan, read_plan
from seedbed.experiments.plan.specs import RECIPE, ModelSpec, WeightsSpec
from seedbed.experiments.prepare.lending import Lending
from seedbed.experiments.run.artefact_facts import facts_of
from seedbed.experiments.run.layout import Session, SideRun
from seedbed.experiments.run.state import RunState

FOLDER = "givers"
_WHERE = ("device", "precision", "threads", "data_workers", "deterministic", "compiled", "recompute", "shard")


def recipes_of(plan: RunPlan) -> dict[str, bool]:
    """Return the recipes that a plan takes models from, recipe:NAME, and whether their training is charged."""
    lent = {name for spec in plan.all_stages for name in lent_to(spec)}
    taken: list[WeightsSpec | ModelSpec] = [
        *(s.weights for s in plan.stages if s.weights),
        *(model for name, model in plan.models.items() if name in lent),
    ]
    found: dict[str, bool] = {}
    for spec in taken:
        if spec.from_.startswith(RECIPE):
            found[spec.from_] = found.get(spec.from_, False) or spec.charged
    return found


def lent_to_artefacts(plan: RunPlan) -> Iterator[tuple[str, str]]:
    """Give the recipes that lend a model to what makes a plan's artefacts: recipe:NAME behind the artefact's name."""
    for artefact, spec in plan.prepare.items():
        lending = Lending(parts=spec.lent, models={name: model.from_ for name, model in plan.models.items()})
        for giver in dict.fromkeys(lending.models[model] for kind in lending.kinds.values() for model in kind.models):
            if giver.startswith(RECIPE):
                yield artefact, giver


def place_in(folder: Path, name: str) -> Path:
    """Return the folder of a giver's run; `name` is recipe:NAME, of which two may end alike."""
    stem = re.sub(r"[^\w.-]+", "-", Path(name.removeprefix(RECIPE)).stem)
    return folder / FOLDER / f"{stem}-{sha256(name.encode()).hexdigest()[:8]}"


def giver_plan(plan: RunPlan, name: str) -> RunPlan:
    """Return the plan of the run that gives. Raises what reading the recipe raises."""
    loaded = load(name.removeprefix(RECIPE))
    where = {name: getattr(plan, name) for name in _WHERE}
    return loaded.plan(arm=loaded.arms[0], seed=plan.seed, **where)


def lender_plan(plan: RunPlan, artefact: str, name: str) -> RunPlan:
    """Return the plan of a run that lends its model to an artefact: with that one's seed, and nothing of who reads it that
    moves a number."""
    loaded = load(name.removeprefix(RECIPE))
    where = {name: getattr(plan, name) for name in _WHERE if name != "precision"}
    return loaded.plan(arm=loaded.arms[0], seed=plan.prepare[artefact].seed, **where)


def chain_of(plan: RunPlan, *, before: tuple[str, ...] = ()) -> Iterator[RunPlan]:
    """Give the plans of all givers, those of givers included. Raises ConfigError for a recipe that takes from itself."""
    taken = [(name, lambda name: giver_plan(plan, name)) for name in recipes_of(plan)]
    taken += [(name, partial(lender_plan, plan, artefact)) for artefact, name in lent_to_artefacts(plan)]
    for name, planned in taken:
        if name in before:
            raise ConfigError(f"{' -> '.join((*before, name))}: a recipe takes a model from itself; name another giver")
        giving = planned(name)
        yield giving
        yield from chain_of(giving, before=(*before, name))


def train_first(
    plan: RunPlan,
    folder: Path,
    *,
    state: RunState,
    ranks: Ranks,
    side_run: SideRun,
    session: Session,
    log: Callable[[str], None],
) -> None:
    """Train what is not trained yet of the models that a run takes from recipes, and charge it."""
    from seedbed.experiments.estimate.timing import timed  # which measures with lent models, those of this file among them

    for name, charged in recipes_of(plan).items():
        place = place_in(folder, name)
        begun = ranks.from_first((place / "resolved.yaml").is_file())
        log(f"{name} is trained first, in {place}" if not begun else f"{name}, which is trained first, goes on")
        final = side_run(None if begun else timed(giver_plan(plan, name)), place, session=replace(session, track=()), say=log)
        if name not in state.trained_first:
            if ranks.first and charged:
                spent = Ledger.from_json(final["ledger"]).total() + _charged_already(plan, read_plan(place)).times(-1)
                state.ledger.charge(plan.stages[0].name, "givers", spent)
            state.trained_first[name] = {"cost": "charged" if charged else "given", "plan": recipe_hash(read_plan(place))}


def _charged_already(plan: RunPlan, giving: RunPlan) -> Cost:
    """Return what a giver was charged for artefacts that its taker is charged for as well."""
    mine = {spec.folder for spec in plan.prepare.values() if spec.charged}
    both = [name for name, spec in giving.prepare.items() if spec.charged and spec.folder in mine]
    facts = facts_of(giving) if both else {}
    return sum((Cost(**facts[name]["cost"]) for name in both), Cost())


def recipe_hash(giving: RunPlan) -> str:
    """Return a hash of what a giver's recipe asked for, the same for all seeds and whatever a step took."""
    stages = [s.model_copy(update={"budget": s.budget.model_copy(update={"timed": None})}) for s in giving.stages]
    return giving.model_copy(update={"seed": 0, "stages": stages}).fingerprint()
