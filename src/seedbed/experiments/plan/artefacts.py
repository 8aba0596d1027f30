"""Where artefacts of a recipe lie: prepared:NAME becomes a folder whose name changes with whatever decides what is in it."""

import json
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from seedbed import curate
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.registry import code_of
from seedbed.experiments.plan.checking import checked_as
from seedbed.experiments.plan.run_plan import RunPlan, essential
from seedbed.experiments.plan.specs import PREPARED, PrepareSpec
from seedbed.experiments.prepare.preparation import settings_of_preparing

FOLDERS = "SEEDBED_PREPARED"  # names the folder of artefacts; without it, prepared/ in the one that one stands in


def with_artefacts(plan: RunPlan) -> RunPlan:
    """Return a plan whose sources name the folders of their artefacts, and which keeps the blocks of those alone.

    Raises ConfigError for an artefact that the recipe does not say how to make.
    """
    tree = json.loads(plan.model_dump_json(by_alias=True))
    read = {name for stage in plan.all_stages for name in (stage.stream, *stage.further)}
    used = {}
    for where, part in _with_path({k: tree[k] for k in ("streams", "evaluate", "branches")}):
        if part["path"].startswith(PREPARED):
            name = part["path"].removeprefix(PREPARED)
            if name not in plan.prepare:
                raise ConfigError(f"{part['path']}: no {name!r} under `prepare`; {nearest(name, plan.prepare)}")
            _check_read(part, plan.prepare[name], name)
            folder = _root() / f"{name}-{identity(plan.prepare[name], plan.models)}"
            part["path"] = str(folder)
            if where[0] != "streams" or where[1] in read:
                used[name] = {**tree["prepare"][name], "folder": str(folder)}
    checked: RunPlan = checked_as(RunPlan, {**tree, "prepare": used})
    return checked


def _check_read(part: Mapping[str, Any], spec: PrepareSpec, name: str) -> None:
    """Raise ConfigError if a source reads an order or a column that its artefact does not have, the block says what no block
    can, or its code may not be run."""
    allowed = [*settings_of_preparing(), *(set(PrepareSpec.model_fields) - {"folder"})]
    for setting in spec.settings:
        if setting not in allowed:
            raise ConfigError(f"prepare.{name}.{setting}: unknown setting; {nearest(setting, sorted(allowed))}")
    orders = [part["order"]] if part.get("order") else []
    for what, read, there in (("order", orders, spec.orders), ("column", part.get("columns") or (), spec.columns)):
        for one in read:
            if one not in there:
                raise ConfigError(f"{PREPARED}{name}: its block makes no {what} {one!r}; {nearest(str(one), there)}")
    for own in (*spec.refine, *spec.columns.values(), *spec.orders.values(), *spec.lent.values()):
        kind = str(own if isinstance(own, str) else own.get("kind"))
        if ".py:" in kind:
            curate.parts.check_local(kind)


def _with_path(tree: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Give every mapping below that has a path, with the names that lead to it."""
    if isinstance(tree, dict):
        if isinstance(tree.get("path"), str):
            yield where, tree
        for name, value in tree.items():
            yield from _with_path(value, (*where, name))
    if isinstance(tree, list):
        for value in tree:
            yield from _with_path(value, where)


def _root() -> Path:
    return Path(os.environ.get(FOLDERS) or "prepared").expanduser().absolute()


def identity(spec: PrepareSpec, models: Mapping[str, Any]) -> str:
    """Return a hash of all that the recipe says of an artefact: the models that it names and the code of a user's own parts
    included, what is charged not."""
    facts = [essential(spec, without=("charged", "folder")), code_of(essential(spec))]
    named = {
        value for part in spec.lent.values() if isinstance(part, dict) for value in part.values() if isinstance(value, str)
    }
    facts.append({name: essential(model, without=("charged",)) for name, model in models.items() if name in named})
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
