"""Recipes of the first form, in which two things alone could be evaluated: refused, with the new lines."""

from collections.abc import Mapping
from typing import Any

from seedbed import evaluate
from seedbed.core.config import dump_yaml
from seedbed.core.errors import ConfigError

_OLD = ("sets", "main", "valid_bytes", "test", "test_bytes", "stride", "samples", "sample_tokens")
_METRICS = {"test_bits_per_byte": "bits_per_byte", "test_loss_nats": "loss_nats"}


def refuse_first_form(tree: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the lines that say the same in today's form, if a recipe is of the first one."""
    asked, study = (_mapping(tree.get(name)) for name in ("evaluate", "study"))
    old = {k: v for k, v in asked.items() if k in _OLD and not _is_part(v)}
    stages = [s for s in tree.get("stages") or [] if isinstance(s, dict)]
    floors = [s for s in stages if "floor_rows" in s]
    metric = study.get("metric")
    found = [f"evaluate.{k}" for k in old] + [f"stages.{s.get('name')}.floor_rows" for s in floors]
    if metric in _METRICS:
        found.append(f"study.metric: {metric}")
    if not found:
        return
    if old or floors:
        new = _evaluations(old, stages, tree)
        new |= {k: v for k, v in asked.items() if k not in old}
    else:
        new = {}
    lines: dict[str, Any] = {"evaluate": new} if new else {}
    if "samples" in old or "sample_tokens" in old:
        lines["samples"] = {"prompts": old.get("samples", [])} | (
            {"tokens": old["sample_tokens"]} if "sample_tokens" in old else {}
        )
    if "test" in old:
        lines["test"] = old["test"]
    if metric in _METRICS:
        main = old.get("main") or "text"
        lines["study"] = {"metric": f"{main}.{_METRICS[metric]}"}
    raise ConfigError(
        f"{', '.join(found)}: evaluations are parts with names now; in place of these lines write:\n{dump_yaml(lines)}"
    )


def _is_part(value: Any) -> bool:
    return "kind" in value if isinstance(value, dict) else isinstance(value, str) and value in evaluate.parts


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _evaluations(old: Mapping[str, Any], stages: list[Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluations that old settings asked for."""
    settings = {k: old[k] for k in ("valid_bytes", "test_bytes", "stride") if k in old}
    last = (tree.get("streams") or {}).get(stages[-1].get("stream") if stages else None) or {}
    over: dict[str, Any] = dict(old.get("sets") or {})
    if not over and isinstance(last.get("sources"), dict):
        over = {name: name for name in last["sources"]}
    new: dict[str, Any] = {name: {"kind": "bits_per_byte", "over": part, **settings} for name, part in over.items()}
    if not over and old:
        new["text"] = {"kind": "bits_per_byte", **settings}
    for stage in stages:
        if "floor_rows" in stage:
            new["rules"] = {"kind": "rule_inference", "stage": stage.get("name"), "rows": stage["floor_rows"]}
    return new
