"""Recipes: YAML to one checked plan. A study's arm is the recipe with one named change; the control is another.

Order in which a recipe takes shape: `extends`, the scale, `--set`, the arm's change, the arm's tuned settings (where `--set`
names the same setting, it wins).
"""

import copy
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from seedbed.core.config import merged, read_yaml, set_path
from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.json_files import read_text
from seedbed.experiments.plan.arms import apply_change, parse_seeds, stages_left_out, with_probes
from seedbed.experiments.plan.artefacts import with_artefacts
from seedbed.experiments.plan.checking import checked_as
from seedbed.experiments.plan.first_form import refuse_first_form
from seedbed.experiments.plan.places import with_whole_corpora, with_whole_places
from seedbed.experiments.plan.run_plan import RunPlan, filled, settled
from seedbed.experiments.plan.specs import Recipe, with_settings


def shipped() -> dict[str, Path]:
    """Return the recipes inside the package by name."""
    folder = Path(str(resources.files("seedbed.recipes")))
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def find(recipe: str) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped one."""
    known = shipped()
    if recipe in known:
        return known[recipe]
    if Path(recipe).suffix in (".yaml", ".yml"):
        if not Path(recipe).is_file():
            raise DataError(f"there is no recipe file {recipe}; give the path of a YAML file or one of: {', '.join(known)}")
        return Path(recipe)
    raise ConfigError(f"no recipe {recipe!r}; {nearest(recipe, known)} (or give the path of a .yaml file)")


def recipe_text_of(recipe: str | Path) -> str:
    return read_text(find(str(recipe)), advice="give the path of a YAML file")


def load(
    recipe: str | Path,
    *,
    scale: str | None = None,
    sets: Mapping[str, Any] | None = None,
    corpus: str | None = None,
) -> "Loaded":
    """Return a recipe, read and checked. Raises ConfigError with the path in the file for whatever does not fit."""
    tree = _extended(find(str(recipe)), seen=())
    scales = tree.get("scales") or {}
    if scale is not None:
        if scale not in scales:
            raise ConfigError(f"the recipe has no scale {scale!r}; {nearest(scale, scales)}")
        for path, value in scales[scale].items():
            set_path(tree, path, value)
    sets = dict(sets or {})
    if corpus is not None:
        texts = [name for name, stream in (tree.get("streams") or {}).items() if _kind(stream) in ("text", "shards")]
        if not texts:
            raise ConfigError(
                "--corpus needs a recipe with a text source; this one has none, or several by name (give "
                "each its path with --set)"
            )
        prepared = (Path(corpus) / "manifest.json").is_file()
        for name in texts:
            if prepared:  # with the folder's own tokenizer
                sets |= {f"streams.{name}.source": {"kind": "shards", "path": corpus}, f"streams.{name}.tokenizer": None}
            else:
                sets[f"streams.{name}.source.path"] = corpus
    for path, value in sets.items():
        set_path(tree, path, value)
    refuse_first_form(tree)
    loaded = Loaded(tree=tree, recipe=checked_as(Recipe, tree), sets=sets, scale=scale)
    for arm in loaded.arms:
        loaded.plan(arm=arm, seed=0)
    return loaded


def _kind(stream: Any) -> Any:
    source = stream.get("source") if isinstance(stream, dict) else None
    return source.get("kind") if isinstance(source, dict) else source


class Loaded:
    """A recipe as read, from which the plan of every arm and seed is derived."""

    def __init__(self, *, tree: dict[str, Any], recipe: Recipe, sets: Mapping[str, Any], scale: str | None) -> None:
        self.tree, self.recipe, self.sets, self.scale = tree, recipe, sets, scale

    @property
    def arms(self) -> list[str]:
        """The control first; a recipe without a study has one arm called "run"."""
        study = self.recipe.study
        return [study.control.name, *study.arms] if study else ["run"]

    @property
    def seeds(self) -> list[int]:
        return parse_seeds(self.recipe.study.seeds) if self.recipe.study else [0]

    def plan(
        self,
        *,
        arm: str,
        seed: int,
        changes: Mapping[str, Any] | None = None,
        **where: Any,
    ) -> RunPlan:
        """Return one run's plan. `changes` are further settings (of a tuning trial or an A/A study).

        `where` are settings of RunPlan that say where and how it computes: device, precision (None: the recipe's), threads,
        data_workers, deterministic, compiled, recompute, shard.
        """
        tree = copy.deepcopy(self.tree)
        study = self.recipe.study
        if arm not in self.arms:
            raise ConfigError(f"the recipe has no arm {arm!r}; {nearest(arm, self.arms)}")
        if study:
            change = study.control.change if arm == study.control.name else study.arms[arm]
            apply_change(tree, change, where=f"study.arms.{arm}")
            gone = stages_left_out(self.tree, tree)
            for path, value in study.tuned.get(arm, {}).items():
                if not (path.startswith("stages.") and path.split(".")[1] in gone):
                    set_path(tree, path, self.sets.get(path, value))
        for path, value in (changes or {}).items():
            set_path(tree, path, value)
        gone = stages_left_out(self.tree, tree)  # and with a stage, what is asked about it alone
        if isinstance(tree.get("evaluate"), dict):
            asked = with_settings(tree["evaluate"])
            tree["evaluate"] = {name: spec for name, spec in asked.items() if spec.get("stage") not in gone}
        probes = with_probes(tree)
        about_many = ("study", "tune", "map", "scales", "precision", "system", "claim", "use_when")
        body = {k: v for k, v in tree.items() if k in Recipe.model_fields and k not in about_many}
        checked = checked_as(Recipe, body)
        main = (study.main_stage if study else None) or checked.stages[-1].name
        plan = {
            **with_whole_places(body),
            "probes": probes,
            "scale": self.scale,
            "arm": arm,
            "seed": seed,
            "evaluate": with_whole_corpora(body.get("evaluate")),
            **{name: getattr(checked, name) for name in ("checkpoint_every", "keep_last", "keep_every")},
            "main_stage": main,
            **where,
            "precision": where.get("precision") or self.recipe.precision,
        }
        if main not in [s.name for s in checked.stages]:
            raise ConfigError(f"arm {arm}: its main stage {main!r} is gone; name another under study.main_stage")
        checked_plan: RunPlan = checked_as(RunPlan, plan)
        placed: RunPlan = with_artefacts(checked_as(RunPlan, json.loads(json.dumps(filled(settled(checked_plan))))))
        return placed


def _extended(file: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in seen:
        raise ConfigError(f"{file} extends itself: {' -> '.join(p.name for p in (*seen, file))}")
    tree = read_yaml(file)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    beside = file.parent / str(base)
    parent = beside if beside.is_file() else find(str(base))
    extended = _extended(parent, seen=(*seen, file.resolve()))
    changes = {k: tree.pop(k) for k in [k for k in tree if "." in k]}
    out = merged(extended, tree)
    for path, value in changes.items():
        set_path(out, path, value)
    return out
