"""Every number of a comparison derived again from the run folders, and every run held against its own files and its plan."""

import json
from pathlib import Path
from typing import Any

from seedbed import evaluate
from seedbed.core.errors import DataError
from seedbed.core.json_files import read_object
from seedbed.core.protocols import Evaluator
from seedbed.core.run_record import COMPARISON, RunRecord, read_comparison
from seedbed.experiments.plan.run_plan import plan_hash, read_plan
from seedbed.experiments.run.evaluations import evaluations_of, of_branch
from seedbed.experiments.study.comparison import compared
from seedbed.experiments.study.design import ADVICE, read_design


def check_comparison(folder: str | Path) -> list[str]:
    """Derive every number of comparison.json again from the run folders; return where it differs (empty: it holds)."""
    file = Path(folder) / COMPARISON
    if not file.is_file():
        raise DataError(f"{folder} has no {COMPARISON}; give the folder of a finished study")
    written = read_comparison(Path(folder))
    derived = json.loads(json.dumps(compared(Path(folder), write=False).data))
    derived["looks"] = written.get("looks")  # when a verdict was read is history, not a derived number
    if "unit" not in read_object(file, advice=ADVICE):  # of what the first format described, and no more
        known = written.get("described", {})
        derived["described"] = {name: found for name, found in derived.get("described", {}).items() if name in known}
        derived = {k: v for k, v in derived.items() if v or k in written}
        for c in derived["contrasts"]:
            del c["tokens_to_reference"]["crossing"]
    return [*_run_differences(Path(folder)), *differences(written, derived, at="")]


def _run_differences(folder: Path) -> list[str]:
    """Hold every run's final.json against its items, its metrics and the plan that the study fixed."""
    design, found = read_design(folder), []
    for arm in (design.control, *design.arms):
        for seed in design.seeds:
            run = folder / arm / f"seed-{seed}"
            record = RunRecord(run)
            final = record.final() or {}
            if plan_hash(run) != design.plans[arm]:
                found.append(f"{arm}/seed-{seed}: resolved.yaml is not the plan that the study fixed")
            if final.get("status") != "done":
                continue
            for name, told in final["evaluations"].items():
                items = record.items(name)
                if items or not record.is_first_format:  # which kept those of texts alone
                    derived = dict(_part_of(record, name, told["kind"]).summary(items))
                    found += differences(told["numbers"], derived, at=f"{arm}/seed-{seed}.{name}")
            shown = {s: sum(lines["tokens"].values()) for s, lines in final["ledger"].items()}
            found += differences(shown, {x["stage"]: x["tokens"] for x in record.metrics()}, at=f"{arm}/seed-{seed}.tokens")
    return found


def _part_of(record: RunRecord, name: str, kind: str) -> Evaluator:
    """Return the evaluator that a run was read with; of the first format its kind says all."""
    if record.is_first_format:
        found: Evaluator = evaluate.parts.build(kind)
        return found
    branch, _, asked = name.rpartition("/")
    plan = read_plan(record.folder)
    return evaluations_of(of_branch(plan, branch) if branch else plan)[asked].part


def differences(written: Any, derived: Any, *, at: str) -> list[str]:
    if isinstance(written, dict) and isinstance(derived, dict):
        keys = sorted({*written, *derived})
        return [d for k in keys for d in differences(written.get(k), derived.get(k), at=f"{at}.{k}".strip("."))]
    if isinstance(written, list) and isinstance(derived, list) and len(written) == len(derived):
        return [d for i, (w, x) in enumerate(zip(written, derived, strict=True)) for d in differences(w, x, at=f"{at}.{i}")]
    numbers = isinstance(written, int | float) and isinstance(derived, int | float)
    same = abs(written - derived) <= 1e-12 + 1e-9 * abs(derived) if numbers else written == derived
    return [] if same else [f"{at}: written {written!r}, derived {derived!r}"]
