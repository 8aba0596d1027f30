"""Every place that a plan names, from the root on, so that a run folder can be used from any other."""

from pathlib import Path
from typing import Any

from seedbed import columns, curate, orders, sources, tokenizers
from seedbed.core.places import DATA, places_of, whole
from seedbed.core.registry import Registry
from seedbed.experiments.plan.specs import HF, RECIPE, RUN, with_settings


def with_whole_places(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's settings with every place from the root on, so that a run folder can be used from any other."""
    tree = _with_whole_code(tree)
    for stream in tree.get("streams", {}).values():
        for name in ("source", "tokenizer"):
            if name in stream:
                stream[name] = _whole_part(stream[name], sources.parts if name == "source" else tokenizers.parts)
        stream["sources"] = {k: _whole_part(v, sources.parts) for k, v in (stream.get("sources") or {}).items()}
    for block in (tree.get("prepare") or {}).values():
        if isinstance(block, dict):
            block |= _whole_preparing(block)
    for branch in (tree.get("branches") or {}).values():
        _with_whole_givers(branch.get("stages", []))
        branch["evaluate"] = with_whole_corpora(branch.get("evaluate"))
    for stage in tree.get("stages", []):
        if stage.get("weights"):
            stage["weights"]["from"] = whole_giver(stage["weights"]["from"])
    for lent in (tree.get("models") or {}).values():
        if isinstance(lent, dict) and isinstance(lent.get("from"), str):
            lent["from"] = whole_giver(lent["from"])
    return tree


def _whole_preparing(block: dict[str, Any]) -> dict[str, Any]:
    """Return what of a block that makes an artefact names places: paths, evaluation sets, a tokenizer's file, parts.

    What is named data:NAME/... stays so: it is looked up when the artefact is made, and not needed from then on.
    """
    found: dict[str, Any] = {}
    for name in ("paths", "against", "decontaminate"):
        if isinstance(block.get(name), list):
            given = block[name]
            found[name] = [whole(p) if isinstance(p, str) and not p.startswith(DATA) else p for p in given]
    tokenizer = block.get("tokenizer")
    if isinstance(tokenizer, str) and tokenizer.partition(":")[0] not in tokenizers.parts:
        found["tokenizer"] = whole(tokenizer)
    for name, room in (("columns", columns.parts), ("orders", orders.parts)):
        if isinstance(block.get(name), dict):
            found[name] = {k: _whole_part(v, room) for k, v in block[name].items()}
    if isinstance(block.get("refine"), list):
        found["refine"] = [_whole_part(part, curate.parts) for part in block["refine"]]
    return found


def _with_whole_givers(stages: list[Any]) -> None:
    for stage in stages:
        if stage.get("weights"):
            stage["weights"]["from"] = whole_giver(stage["weights"]["from"])


def with_whole_corpora(evaluate: Any) -> Any:
    """Return evaluations whose corpora (`over`, as a part) name their places from the root on."""
    if not isinstance(evaluate, dict):
        return evaluate
    asked = with_settings(_with_whole_code(evaluate))
    return {
        name: {**spec, "over": _whole_part(spec["over"], sources.parts)} if isinstance(spec.get("over"), dict) else spec
        for name, spec in asked.items()
    }


def _with_whole_code(value: Any) -> Any:
    """Return a copy in which every part from a file, FILE.py:CLASS, names its file from the root on."""
    if isinstance(value, dict):
        return {k: _with_whole_code(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_whole_code(v) for v in value]
    file, colon, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return f"{whole(file)}:{name}" if colon and file.endswith(".py") and name.isidentifier() else value


def _whole_part(spec: Any, registry: Registry) -> Any:
    kind = spec if isinstance(spec, str) else spec.get("kind") if isinstance(spec, dict) else None
    if not isinstance(kind, str):
        return spec
    if isinstance(spec, str) or ".py:" in kind or kind not in registry:
        return spec
    named = {name: spec[name] for name in places_of(registry.resolve(kind)) if name in spec}
    found: dict[str, Any] = {name: whole(value) for name, value in named.items() if isinstance(value, str)}
    several = {name: value for name, value in named.items() if isinstance(value, list)}
    found |= {name: [whole(v) if isinstance(v, str) else v for v in value] for name, value in several.items()}
    return {**spec, **found}


def whole_giver(name: str) -> str:
    """A run's folder from the root on; a model folder too, if it is one and not the name of one on the hub."""
    for kind in (RUN, HF, RECIPE):
        path = name.removeprefix(kind)
        if name.startswith(kind) and (kind == RUN or Path(path).exists()):
            return kind + whole(path)
    return name
