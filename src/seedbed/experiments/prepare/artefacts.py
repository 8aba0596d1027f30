"""The artefacts of a recipe, made: a prepared folder, then its columns, then its orders, and last of all artefact.json.

What is there is not made again, and after a kill the same command goes on. What it is made from is noted before it is begun, in
the folder .NAME-HASH beside it, where models of recipes that are lent are trained as well. What all of it took stands in
artefact.json, and is charged to every run that reads the artefact, or given.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seedbed.core.durable import BusyError, locked, write_json
from seedbed.core.errors import ConfigError, DataError, SeedbedError
from seedbed.core.json_files import read_object
from seedbed.core.ledger import Ledger
from seedbed.core.records import Cost
from seedbed.core.registry import validated
from seedbed.experiments.assemble import check_parts
from seedbed.experiments.estimate.timing import timed
from seedbed.experiments.plan.load import load
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import RECIPE, RUN, PrepareSpec
from seedbed.experiments.prepare.inputs import look_at, states_of
from seedbed.experiments.prepare.lending import Lending, state_of
from seedbed.experiments.prepare.passes import WORK as PASSES
from seedbed.experiments.prepare.passes import check_pass, files_of, make_column, make_order
from seedbed.experiments.prepare.preparation import Preparation, settings_of_preparing
from seedbed.experiments.prepare.prepare import prepare
from seedbed.experiments.prepare.seal import COST
from seedbed.experiments.prepare.units import WORK
from seedbed.experiments.run.artefact_facts import MADE, folder_of, unmade
from seedbed.experiments.run.borders import check_givers
from seedbed.experiments.run.givers import chain_of, lender_plan, lent_to_artefacts, place_in, recipe_hash
from seedbed.experiments.run.of_streams import check_readings as check_of_streams
from seedbed.experiments.run.prepared import make_all
from seedbed.experiments.run.run import create, execute
from seedbed.experiments.streams import build_stream
from seedbed.sources.columns import cost_of
from seedbed.sources.data_sets import data_place
from seedbed.sources.shards import MANIFEST

_BEGUN = "inputs.json"
_ADVICE = "remove the folder, and make the artefact again"


def prepare_recipe(recipe: str | Path, *, workers: int = 1, say: Callable[[str], None] = print, **settings: Any) -> list[Path]:
    """Make the artefacts of a recipe, of all its arms, and return their folders; `settings` as for `load`.

    Raises ConfigError if the recipe's sources name none, and what `make_artefacts` raises.
    """
    loaded = load(recipe, **settings)
    plans = [loaded.plan(arm=arm, seed=loaded.seeds[0]) for arm in loaded.arms]
    if not any(plan.prepare for plan in plans):
        raise ConfigError(
            f"no source of the recipe {loaded.recipe.name} reads an artefact (path: prepared:NAME, with NAME under `prepare`), "
            "so there is nothing to prepare; to prepare files, give --out"
        )
    return make_artefacts(plans, workers=workers, say=say)


def make_artefacts(plans: Iterable[RunPlan], *, workers: int = 1, say: Callable[[str], None] = print) -> list[Path]:
    """Make what is not made yet of all that plans read, each once, and return the folders.

    Raises ConfigError for parts that do not fit each other, DataError for input that cannot be read, or that has changed since
    an artefact was made from it.
    """
    found: dict[Path, None] = {}
    for plan in plans:
        for name in plan.prepare:
            folder = folder_of(plan, name)
            if folder not in found:
                found[folder] = None
                _check(plan, name)
                if not (folder / MADE).is_file():
                    with _alone(_beside(folder), say=say):
                        if not (folder / MADE).is_file():
                            _make(plan, name, folder, workers=workers, say=say)
                _refuse_changed(plan, name, folder / MADE)
    return list(found)


def check_artefacts(plan: RunPlan) -> list[Path]:
    """Look at all that makes a plan's artefacts; return the folders of those not made yet. Raises as `make_artefacts`."""
    for name in plan.prepare:
        _check(plan, name)
        if (folder_of(plan, name) / MADE).is_file():
            _refuse_changed(plan, name, folder_of(plan, name) / MADE)
    return unmade(plan)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}")


@contextmanager
def _alone(place: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Hold an artefact for this process; while another one makes it, wait."""
    waited = False
    while True:
        try:
            with locked(place):
                yield
            return
        except BusyError:
            if not waited:
                say(f"another process makes {place.name[1:]}: waiting for it")
            waited = True
            time.sleep(1)


def _check(plan: RunPlan, name: str) -> None:
    """Raise what settings, parts and paths of an artefact have to say, before anything is made."""
    spec, path = plan.prepare[name], f"prepare.{name}"
    lending = Lending(parts=spec.lent, models={m: model.from_ for m, model in plan.models.items()})
    preparation = _preparation(spec, lending, path=path)
    there: list[str] = []
    for column, part in spec.columns.items():
        check_pass("columns", part, lending, there, path=f"{path}.columns.{column}")
        there.append(column)
    for order, part in spec.orders.items():
        check_pass("orders", part, lending, there, path=f"{path}.orders.{order}")
    if (folder_of(plan, name) / MADE).is_file():
        return  # what it was made from is not needed any more
    preparation.build_tokenizer()
    look_at(preparation)
    for file in files_of({**spec.columns, **spec.orders}):
        states_of([file])
    alone = plan.model_copy(update={"stages": [], "branches": {}, "prepare": {name: spec}})
    list(chain_of(alone))  # raises for a recipe that takes from itself
    for _, giver in lent_to_artefacts(alone):
        try:
            _check_giving(lender_plan(plan, name, giver))
        except SeedbedError as e:
            raise type(e)(f"{path}.lent: {giver}: {e}") from None


def _check_giving(giving: RunPlan) -> None:
    """Look at what a recipe that lends a model is made of, as `seedbed validate` does."""
    check_parts(giving)
    check_givers(giving)
    if not unmade(giving):
        check_of_streams(giving, {name: build_stream(name, spec) for name, spec in giving.used_streams.items()})


def _preparation(spec: PrepareSpec, lending: Lending, *, path: str) -> Preparation:
    names, own = list(settings_of_preparing()), list(PrepareSpec.model_fields)
    given = validated(Preparation, {"paths": spec.paths, **spec.settings}, path=path, names=[*names, *own])
    settings = {name: getattr(given, name) for name in ("paths", *names)}
    for places in ("paths", "against", "decontaminate"):
        settings[places] = tuple(_found(place) for place in settings[places])
    try:
        lending.kinds  # noqa: B018  # raises for what does not fit
        return Preparation(**settings, refine=spec.refine, lending=lending)
    except ConfigError as e:
        raise ConfigError(f"{path}.{e}") from None


def _found(place: str) -> str:
    """Return where data:NAME/... lies, if it lies anywhere."""
    try:
        return data_place(place)
    except DataError:
        return place  # which is told when it is read


def _make(plan: RunPlan, name: str, folder: Path, *, workers: int, say: Callable[[str], None]) -> None:
    spec, beside = plan.prepare[name], _beside(folder)
    say(f"prepare {name}, in {folder}")
    begun = beside / _BEGUN
    if begun.is_file() and folder.is_dir():
        _refuse_changed(plan, name, begun)
    else:
        write_json(begun, {"from": _made_from(plan, name)})
    lending, cost = _lent(plan, name, beside, say=say)
    preparation = _preparation(spec, lending, path=f"prepare.{name}")
    if not (folder / MANIFEST).is_file():
        prepare(preparation.paths, folder, workers=workers, say=say, **_settings(preparation))
    for column, part in spec.columns.items():
        if not (folder / "columns" / column).is_dir():
            say(f"column {column}")
            make_column(folder, column, part, lending=lending)
    for order, part in spec.orders.items():
        if not (folder / "orders" / order).is_dir():
            say(f"order {order}")
            make_order(folder, order, part, seed=spec.seed, lending=lending)
    for left in (WORK, PASSES):  # by a kill behind what they were for
        shutil.rmtree(folder / left, ignore_errors=True)
    passes = [*(folder / "columns" / c for c in spec.columns), *(folder / "orders" / o for o in spec.orders)]
    costs = [Cost(**read_object(folder / COST, advice=_ADVICE)), *(Cost(**cost_of(place)) for place in passes)]
    facts = {
        "name": name,
        "manifest": read_object(folder / MANIFEST, advice=_ADVICE)["sha256"],
        "from": read_object(begun, advice=_ADVICE)["from"],
        "lent": lending.fingerprints(),
        "cost": asdict(sum(costs, cost)),
    }
    write_json(folder / MADE, facts)


def _settings(preparation: Preparation) -> dict[str, Any]:
    names = ["refine", "lending", *settings_of_preparing()]
    return {name: getattr(preparation, name) for name in names if name != "paths"}


def _models(plan: RunPlan, name: str) -> dict[str, str]:
    """Return what the models that an artefact's helpers read come from, by name."""
    spec = plan.prepare[name]
    models = {name: model.from_.replace("{seed}", str(spec.seed)) for name, model in plan.models.items()}
    used = {model for kind in Lending(parts=spec.lent, models=models).kinds.values() for model in kind.models}
    return {name: models[name] for name in sorted(used)}


def _lent(plan: RunPlan, name: str, beside: Path, *, say: Callable[[str], None]) -> tuple[Lending, Cost]:
    """Return what is lent, its recipes trained, and what is charged for that."""
    models, cost = _models(plan, name), Cost()
    for model, giver in models.items():
        if giver.startswith(RECIPE):
            models[model], took = _trained(lender_plan(plan, name, giver), giver, beside, say=say)
            cost += took if plan.models[model].charged else Cost()
    return Lending(parts=plan.prepare[name].lent, models=models), cost


def _trained(giving: RunPlan, giver: str, beside: Path, *, say: Callable[[str], None]) -> tuple[str, Cost]:
    """Return run:FOLDER of a recipe's model, trained now or before, and what it took; another plan is another run."""
    place = place_in(beside, giver)
    run = place.with_name(f"{place.name}-{recipe_hash(giving)}")
    say(f"{giver} is trained first, in {run}")
    if not (run / "resolved.yaml").is_file():
        make_all([giving], say=say)
        create(timed(giving), run, recipe_text="")
    final = execute(run, say=say).final
    return f"{RUN}{run}", Ledger.from_json(final["ledger"]).total()


def _made_from(plan: RunPlan, name: str) -> dict[str, Any]:
    """Return the state of all that an artefact is made from, as far as it is there: files, tokenizer, models."""
    spec = plan.prepare[name]
    found: dict[str, Any] = {}
    preparation = _preparation(spec, Lending(parts=spec.lent, models=_models(plan, name)), path=f"prepare.{name}")
    for path in (*preparation.reads, *files_of(spec.columns), *files_of(spec.orders)):
        try:
            found |= states_of([path])
        except DataError:
            continue  # it is gone
    if not Path(preparation.tokenizer).is_absolute() or Path(preparation.tokenizer).exists():
        found[f"the tokenizer {preparation.tokenizer}"] = preparation.build_tokenizer().fingerprint()
    for giver in _models(plan, name).values():
        found[giver] = recipe_hash(lender_plan(plan, name, giver)) if giver.startswith(RECIPE) else state_of(giver)
    return dict(json.loads(json.dumps(found)))


def _refuse_changed(plan: RunPlan, name: str, noted: Path) -> None:
    """Raise DataError if something that an artefact was made from is another one now, or came to it.

    What is gone is not needed any more.
    """
    known, now = read_object(noted, advice=_ADVICE).get("from"), _made_from(plan, name)
    if not isinstance(known, dict):
        raise DataError(f"{noted} was written by another version of seedbed; {_ADVICE}")
    changed = [what for what, state in now.items() if known.get(what) != state]
    if changed:
        folder = folder_of(plan, name)
        raise DataError(
            f"{', '.join(changed)} changed since {folder} was made from it (files: by size and time); remove that folder, and "
            "the artefact is made anew (runs that read it cannot be gone on with then), or put back what it was made from"
        )
