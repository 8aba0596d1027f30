"""What there is: parts of every room, shipped recipes, what each is and does. Makes METHODS.md."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from seedbed.core.bounds import range_of
from seedbed.core.errors import ConfigError, DataError, SeedbedError, nearest
from seedbed.core.json_files import read_object
from seedbed.core.run_record import COMPARISON
from seedbed.experiments.assemble import rooms
from seedbed.experiments.parts import rules_of
from seedbed.experiments.plan.load import load, shipped
from seedbed.experiments.run.evaluations import evaluations_of
from seedbed.experiments.run.run import finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartFacts:
    """One registered part."""

    room: str
    name: str
    module: str
    summary: str
    settings: dict[str, tuple[str, str]]  # name -> (type, default)
    doc: str


def parts() -> list[PartFacts]:
    """Return every registered part of every room; of one whose code cannot be loaded the summary says why."""
    return [_facts(room, name) for room, registry in rooms().items() for name in registry]


def recipes() -> list[dict[str, str]]:
    """Return the shipped recipes: name, title, paper, and the comment at the head of the file."""
    found = []
    for name, path in shipped().items():
        loaded = load(name)
        header = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        found.append({"name": name, "title": loaded.recipe.title, "paper": loaded.recipe.paper, "header": "\n".join(header)})
    return found


def explain(name: str) -> str:
    """Return what a part or a recipe is. Raises ConfigError for an unknown name, with the nearest right ones."""
    known = {**{p.name: p for p in parts()}, **{f"{p.room}.{p.name}": p for p in parts()}}
    if name in known:
        p = known[name]
        lines = [f"{p.room}.{p.name} ({p.module})", "", p.doc, "", "settings:"]
        lines += [f"  {n}: {kind} = {default}" for n, (kind, default) in p.settings.items()] or ["  none"]
        return "\n".join(lines)
    if name in shipped() or name.endswith((".yaml", ".yml")):
        return _explain_recipe(name)
    raise ConfigError(f"no part or recipe {name!r}; {nearest(name, [*known, *shipped()])}")


def _explain_recipe(name: str) -> str:
    loaded = load(name)
    r = loaded.recipe
    lines = [f"{r.name}: {r.title}", r.paper, ""]
    for artefact, made in r.prepare.items():
        parts = {"refine": made.refine, "columns": list(made.columns), "orders": list(made.orders)}
        said = ", ".join(f"{what} {some}" for what, some in parts.items() if some)
        lines.append(f"prepare {artefact}: {', '.join(made.paths)}{said and '; '}{said}")
    for spec in r.stages:
        budget = spec.budget.model_dump(exclude_none=True)
        origin = f", weights from {spec.weights.from_} by {rules_of(spec)}" if spec.weights else ""
        lines.append(f"stage {spec.name}: {budget} of stream {spec.stream}{origin}")
    if r.study:
        lines += ["", f"control: {r.study.control.name}: {r.study.control.change or 'the recipe as it is'}"]
        lines += [f"arm {arm}: {change or 'the recipe as it is'}" for arm, change in r.study.arms.items()]
        asked = ", ".join(
            f"{name} ({one.spec.kind})" for name, one in evaluations_of(loaded.plan(arm=loaded.arms[0], seed=0)).items()
        )
        lines += [f"evaluations: {asked}"]
        metric = r.study.metric or "of the first evaluation"
        lines += [f"seeds {r.study.seeds}, metric {metric}, alpha {r.study.alpha}, margin {r.study.margin}"]
    lines += ["", f"scales: {', '.join(r.scales) or 'none'}"]
    return "\n".join(lines)


def methods_page() -> str:
    """Return METHODS.md: every part by room, every recipe."""
    lines = [
        "# Methods",
        "",
        "Every part that a recipe can name, by room, and every shipped recipe. Made by `make methods`; do not edit.",
    ]
    for room in rooms():
        lines += ["", f"## {room}", "", "| part | what it is | settings |", "|---|---|---|"]
        for p in (p for p in parts() if p.room == room):
            settings = ", ".join(f"`{n}`" for n in p.settings) or "none"
            lines.append(f"| `{p.name}` | {p.summary} | {settings} |")
    lines += ["", "## Recipes", "", "| recipe | title | paper |", "|---|---|---|"]
    lines += [f"| `{r['name']}` | {r['title']} | {r['paper']} |" for r in recipes()]
    return "\n".join(lines) + "\n"


def _facts(room: str, name: str) -> PartFacts:
    try:
        part: Any = rooms()[room].resolve(name)
    except ConfigError as e:
        return PartFacts(room=room, name=name, module="", summary=f"not to be used: {e}", settings={}, doc=str(e))
    module = inspect.getmodule(part)
    doc = inspect.getdoc(module) or ""
    return PartFacts(
        room=room,
        name=name,
        module=part.__module__,
        summary=" ".join(doc.split("\n\n")[0].split()),
        settings={f.name: (_kind(f.type) + _range(f), _default(f)) for f in dataclasses.fields(part) if f.init},
        doc=doc,
    )


def _kind(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) and not hasattr(kind, "__args__") else str(kind).replace("typing.", "")


def _range(f: "dataclasses.Field[Any]") -> str:
    allowed = range_of(f)
    return f" in {allowed}" if allowed else ""


def _default(f: "dataclasses.Field[Any]") -> str:
    if f.default is not dataclasses.MISSING:
        return repr(f.default)
    return "required" if f.default_factory is dataclasses.MISSING else repr(f.default_factory())


def runs(folder: Path) -> list[dict[str, str]]:
    """Return run and study folders below a folder with what became of them; of one that cannot be read, why."""
    found = []
    for file in sorted([*folder.rglob("resolved.yaml"), *folder.rglob("study.json")]):
        try:
            status = _verdict(file.parent) if file.name == "study.json" else _status(file.parent)
        except SeedbedError as e:
            status = f"broken: {e}"
        found.append({"folder": str(file.parent), "status": status})
    return found


def _verdict(study: Path) -> str:
    file = study / COMPARISON
    if not file.is_file():
        return "study, not ended"
    advice = f"write it again with `seedbed resume {study}`"
    verdict = read_object(file, advice=advice).get("verdict")
    if not isinstance(verdict, str):
        raise DataError(f"{file} says no verdict; {advice}")
    return verdict


def _status(run: Path) -> str:
    final = finished(run)
    return str(final["status"]) if final else "not ended"
