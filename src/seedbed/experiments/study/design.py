"""What a study fixed before its first run (study.json), and what may be added to it later."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seedbed.core import format1
from seedbed.core.errors import DataError, RefusedError
from seedbed.core.json_files import read_object
from seedbed.core.run_record import COMPARISON, RUNS, RunRecord, runs_of
from seedbed.experiments.study.outcomes import Outcome

ADVICE = "put it back, or start the study again with another --out"


@dataclass(frozen=True, kw_only=True)
class Design:
    """What was fixed before the first run; study.json of a study folder."""

    name: str
    title: str
    control: str
    arms: tuple[str, ...]  # beside the control
    seeds: tuple[int, ...]
    metric: str  # see outcomes.py
    unit: str
    better: Literal["less", "more"]
    alpha: float
    margin: float
    looks: tuple[int, ...]
    contrasts: tuple[tuple[str, str], ...]
    main_stage: str
    budget: dict[str, Any]
    schedule: str  # of the main stage
    published_nats: float | None
    aa: bool
    tuned: dict[str, dict[str, Any]]
    tuning_records: tuple[str, ...]
    tuned_by_search: tuple[str, ...]  # arms that had a grid of their own
    plans: dict[str, str]  # arm -> fingerprint of its plan with the first seed
    commit: str
    command: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All contrasts: every arm against the control, then the declared ones."""
        return [(arm, self.control) for arm in self.arms] + [c for c in self.contrasts if c[1] != self.control]

    def alpha_at(self) -> float:
        """The level of one look: alpha shared evenly over the declared looks (Bonferroni)."""
        return self.alpha / max(1, len(self.looks))

    @property
    def outcome(self) -> Outcome:
        return Outcome.parse(self.metric)


def read_design(folder: Path) -> Design:
    file = folder / "study.json"
    if not file.is_file():
        raise DataError(f"{folder} is not a study folder: it has no study.json; give the folder that `seedbed compare` wrote")
    raw = read_object(file, advice=ADVICE)
    try:
        if "unit" not in raw:
            raw = format1.design(raw, main=_first_main(folder))
        for name in ("arms", "seeds", "looks", "tuning_records", "tuned_by_search"):
            raw[name] = tuple(raw[name])
        raw["contrasts"] = tuple((a, b) for a, b in raw["contrasts"])
        return Design(**raw)
    except (ValueError, TypeError, KeyError) as e:
        raise DataError(f"{file} is broken: {e}; {ADVICE}") from None


def _first_main(folder: Path) -> str:
    """Return the held-out set that a study of the first format was judged by."""
    finals = (RunRecord(run).final() or {} for run in runs_of(folder))
    sets: dict[str, Any] = next((f["evaluations"] for f in finals if f.get("evaluations")), {})
    return next((name for name, found in sets.items() if "bytes" in found["numbers"]), format1.TEXT)


def looks_of(folder: Path, design: Design) -> list[dict[str, Any]]:
    """Earlier looks, then this one, if it is new."""
    file = folder / COMPARISON
    before = read_object(file, advice=ADVICE).get("looks", []) if file.is_file() else []
    now = {"seeds": len(design.seeds), "declared": list(design.looks)}
    return before if before and before[-1] == now else [*before, now]


def refuse_late_seeds(folder: Path, design: Design, wanted: Sequence[int]) -> None:
    """Raise RefusedError if more seeds are asked for after a verdict, unless the recipe declared that look."""
    if set(wanted) == set(design.seeds) or not _results_seen(folder):
        return
    if not set(wanted) > set(design.seeds) or len(wanted) not in design.looks or len(design.seeds) not in design.looks:
        declared = (
            f"its recipe declares looks at {list(design.looks)} seeds" if design.looks else "its recipe declares no looks"
        )
        raise RefusedError(
            f"{folder} has results of its {len(design.seeds)} seeds, and {declared}, so going on with {len(wanted)} is "
            "refused: adding seeds until it fits is not a test; declare study.looks before the first run, or start afresh "
            "with another --out"
        )


def _results_seen(folder: Path) -> bool:
    """Whether any run of the study has ended: from then on its numbers can have been looked at."""
    return (folder / RUNS).is_file() or any(folder.glob("*/seed-*/final.json"))
