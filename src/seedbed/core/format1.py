"""The frozen reader of records of the first format: it gives them as today's, and no run goes on with them.

Then held-out text and the floors of one stage were all there was to evaluate: final.json had `test`, `held_out` and `stage0`,
metrics.jsonl `valid_loss_nats`, a run one items.jsonl, and a plan's hash covered what stood in it, its own defaults included.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from seedbed.core.records import bar_beside

TEXT, RULES = "text", "rules"  # the names that a single held-out set, and those floors, have today
_MARGIN = 0.1
_WHERE = ("device", "threads", "data_workers", "deterministic", "compiled", "recompute", "shard", "keep_last", "keep_every")
_CAME_LATER: list[tuple[str, str, Any]] = [
    ("streams", "sources", {}),
    ("stages", "evaluate_at", []),
    ("stages", "carry", ["weights"]),
    ("stages", "further", []),
    ("stages", "model", None),
    ("evaluate", "sets", {}),
    ("evaluate", "main", None),
]
_BITS = {"unit": "bits per byte", "better": "less", "per_token": False}
_NATS = {"unit": "nats per token", "better": "less", "per_token": True}
_MEASURES = {"bits_per_byte": _BITS, "loss_nats": _NATS}
_PATCH_NATS = {"unit": "nats per patch token", "better": "less", "per_token": True}


def plan_hash(plan: Mapping[str, Any]) -> str:
    """Return the fingerprint that the version which wrote a plan (resolved.yaml) gave it."""
    facts = json.loads(json.dumps({k: v for k, v in plan.items() if k not in _WHERE}))
    for where, name, default in _CAME_LATER:
        specs = facts[where].values() if where == "streams" else facts[where] if where == "stages" else [facts[where]]
        for spec in specs:
            if spec.get(name, default) == default:
                spec.pop(name, None)
    for name in ("models", "branches", "positions"):
        if not facts.get(name):
            facts.pop(name, None)
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def final(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return final.json of a run as today's has it."""
    if old["status"] != "done":
        return dict(old)
    stage = next(reversed(old["ledger"]))
    sets: dict[str, Any] = old.get("held_out") or ({TEXT: old["test"]} if "test" in old else {})
    evaluations = {name: _text(numbers, stage) for name, numbers in sets.items()}
    for of, found in old.get("stage0", {}).items():
        evaluations[RULES if len(old["stage0"]) == 1 else f"{RULES}_{of}"] = _rules(found, of)
    kept = {k: v for k, v in old.items() if k not in ("test", "held_out", "main", "stage0")}
    return {**kept, "evaluations": evaluations}


def metrics_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of metrics.jsonl as today's."""
    kept = {k: v for k, v in line.items() if k != "valid" and not k.startswith("valid_")}
    numbers = {k.removeprefix("valid_"): v for k, v in line.items() if k.startswith("valid_")}
    if not numbers:
        return kept
    return {
        **kept,
        "watched": line.get("valid") or {TEXT if len(numbers) > 1 else RULES: numbers},
    }  # of rows there was a loss alone


def design(old: Mapping[str, Any], *, main: str) -> dict[str, Any]:
    """Return study.json as today's; `main` is the name of the held-out set that was judged."""
    number = old["metric"].removeprefix("test_")
    measure = _MEASURES[number]
    return {**old, "metric": f"{main}.{number}", "unit": measure["unit"], "better": "less"}


def comparison(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return comparison.json as today's."""
    main = old.get("main", TEXT)
    moved = ("stage0", "held_out", "main", "text_lost")
    new = {**{k: v for k, v in old.items() if k not in moved}, **design({"metric": old["metric"]}, main=main)}
    new["bars"] = {}
    verdict = old["verdict"]
    for arm, seeds in old["stage0"].items():
        for seed, found in seeds.items():
            shown = bar_beside(_rules(found, found["stage"]))
            new["bars"].setdefault(RULES, {}).setdefault(arm, {})[seed] = shown
            verdict = verdict.replace("stage 0 did not learn", f"stage {found['stage']} did not learn")
    new["verdict"] = verdict
    new["paired"] = old["paired"].replace("test documents", f"what {main} asks")
    new["contrasts"] = [_contrast(c) for c in old["contrasts"]]
    if "held_out" in old:
        about = {"number": "bits_per_byte", "unit": _BITS["unit"], "better": "less"}
        new["described"] = {name: {**about, **found} for name, found in old["held_out"].items()}
    if "text_lost" in old:
        new["notes"] = old["text_lost"]
    return new


def _contrast(old: Mapping[str, Any]) -> dict[str, Any]:
    speed = dict(old["tokens_to_reference"])
    speed["per_seed"] = {
        seed: {("earlier_tokens" if k == "stage0_tokens" else k): v for k, v in found.items()}
        for seed, found in speed["per_seed"].items()
    }
    return {**old, "tokens_to_reference": speed}


def _text(numbers: Mapping[str, Any], stage: str) -> dict[str, Any]:
    lost = _loss_of_text(numbers)
    return {
        "kind": "bits_per_byte",
        "stage": stage,
        "measures": _MEASURES,
        "numbers": dict(numbers),
        "questions": f"{numbers['bytes']} bytes in {numbers['tokens']} tokens",
        **({"notes": [lost]} if lost else {}),
    }


def _rules(old: Mapping[str, Any], stage: str) -> dict[str, Any]:
    floors = {f"floor: {name}": nats for name, nats in old["floors_nats"].items()}
    by_frame = old["by_frame_nats"]
    return {
        "kind": "rule_inference",
        "stage": stage,
        "measures": {"loss_nats": _PATCH_NATS},
        "numbers": {k: old[k] for k in ("loss_nats", "rows", "tokens")},
        "questions": f"{old['tokens']} tokens of {old['rows']} rows",
        "bar": {
            "number": "loss_nats",
            "level": min(floors.values()) - old.get("margin_nats", _MARGIN),
            "met": old["learned"],
            "unmet": "did not learn: nothing to transfer",
            "levels": floors,
        },
        "facts": {k: old[k] for k in ("margin_nats", "by_frame_nats", "floors_by_frame_nats", "completion") if k in old},
        "figure": {
            "caption": "Rules that the model never saw: loss by frame, beside what simple statistics reach from frame 1 on.",
            "xlabel": "frame",
            "ylabel": "nats per patch token",
            "lines": {"model": [list(range(1, len(by_frame) + 1)), by_frame]},
            "levels": floors,
        },
    }


def exhibit(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an exhibit as they are today: what was drawn of it is said in words."""
    if "ratios" not in old:
        return dict(old)
    return {
        "caption": old["caption"],
        "histogram": {
            "name": "complexity",
            "caption": f"How complex random rules are: {old['acceptance']:.0%} of them lie in the accepted band.",
            "values": old["ratios"],
            "xlabel": "compression ratio of ten frames",
            "ylabel": f"rules (of {len(old['ratios'])})",
            "span": {"from": old["band"][0], "to": old["band"][1], "label": "accepted band"},
            "line": {"at": old["ceiling"], "label": "random tokens"},
        },
    }


def _loss_of_text(numbers: Mapping[str, Any]) -> str:
    """In the words of that format, which its comparisons hold."""
    if not numbers.get("changed_documents"):
        return ""
    return (
        f"the tokenizer gives {numbers['changed_documents']} of {numbers['documents']} documents back changed, and what it "
        "loses is not predicted: this number compares with that of no other tokenizer"
    )
