"""Probe matrices: candidates, each tried by a short branch from one point of a run, and what that does to every outcome.

A recipe names the point, one stage and the candidates' changes of it; each candidate is a branch (branches.py), so the trunk is
not moved and every try is charged. What comes of it is a matrix: which data help which evaluation, for a mixture's graph of
skills or the choice of a filter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.run_record import RunRecord
from seedbed.experiments.plan.arms import branch_of


@dataclass(frozen=True, kw_only=True)
class ProbeMatrix:
    """`values[c][o]`: outcome o after candidate c; `trunk[o]`: of the run itself. None: it was not asked that, or failed."""

    candidates: tuple[str, ...]
    outcomes: tuple[str, ...]  # EVALUATION.NUMBER
    units: tuple[str, ...]
    better: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    trunk: tuple[float | None, ...]


def matrices(
    probes: Mapping[str, Sequence[str]], branches: Mapping[str, Any], trunk: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what final.json says of a run's probes; `branches` and `trunk` hold what was evaluated of each."""
    found = {}
    for probe, candidates in probes.items():
        told = {c: branches[branch_of(probe, c)]["evaluations"] for c in candidates}
        known = {(name, n): m for each in told.values() for name, one in each.items() for n, m in one["measures"].items()}
        asked, measures = list(known), list(known.values())
        found[probe] = {
            "candidates": list(candidates),
            "outcomes": [f"{name}.{number}" for name, number in asked],
            "units": [m["unit"] for m in measures],
            "better": [m["better"] for m in measures],
            "values": [[_number(told[c], name, number) for name, number in asked] for c in candidates],
            "trunk": [_number(trunk, name, number) for name, number in asked],
        }
    return found


def _number(told: Mapping[str, Any], name: str, number: str) -> float | None:
    return told[name]["numbers"].get(number) if name in told else None


def probe_matrix(run: str | Path, probe: str) -> ProbeMatrix:
    """Return a matrix of a finished run (in its folder, or packed). Raises DataError before it has ended."""
    final = RunRecord(Path(run)).final()
    if final is None or final["status"] != "done":
        raise DataError(f"{run} has not ended, so its probes are not all tried; go on with `seedbed resume {run}`")
    probes = final.get("probes", {})
    if probe not in probes:
        raise ConfigError(f"{run} has no probe {probe!r}; {nearest(probe, probes)}")
    facts = probes[probe]
    values = tuple(tuple(row) for row in facts["values"])
    return ProbeMatrix(values=values, **{k: tuple(facts[k]) for k in ("candidates", "outcomes", "units", "better", "trunk")})
