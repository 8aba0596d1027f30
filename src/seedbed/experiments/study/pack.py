"""`seedbed pack STUDY`: a finished study as a record to keep and to show: every number of every run, in a file of some 100 kB.

The new folder holds study.json, recipe.yaml, comparison.json and runs.xz (see core/run_record.py). It has no weights, and no
page or figures, which `seedbed report` draws again. An item's text, where an evaluation kept one, stays only if the licence of
the held-out set lets it be passed on.
"""

import re
from collections.abc import Callable
from pathlib import Path

from seedbed.core.durable import check_place, refuse_existing, whole_folder
from seedbed.core.errors import DataError, RefusedError
from seedbed.core.run_record import COMPARISON, RUNS, RunRecord, pack_runs, runs_of
from seedbed.experiments.plan.run_plan import read_plan
from seedbed.experiments.run.carried import noted_licences
from seedbed.experiments.run.evaluations import evaluations_of, of_branch
from seedbed.experiments.study.check import check_comparison
from seedbed.experiments.study.design import read_design

_STUDY = ("study.json", "recipe.yaml", COMPARISON)
_FREE = r"\s*(cc0|cc[- ]by(?![- ]n)|public domain|mit\b|apache|bsd|odc[- ]by|isc\b|unlicense)"  # allow texts to be passed on


def pack(study: str | Path, *, out: str | Path | None = None) -> Path:
    """Write the record of a finished study to a new folder (STUDY-packed, unless said) and return it; STUDY stays as it is.

    Raises DataError if runs have not ended, RefusedError if the folder is taken, the study is packed already, or its comparison
    does not follow from its runs.
    """
    study = Path(study)
    out = Path(out) if out else study.with_name(f"{study.name}-packed")
    refuse_existing(out, empty=True)
    check_place(out, folder=True)
    read_design(study)
    if (study / RUNS).is_file():
        raise RefusedError(f"{study} is packed already; copy the folder to have it twice")
    if not (study / COMPARISON).is_file():
        raise DataError(f"{study} has no {COMPARISON} yet; let it end with `seedbed resume {study}`")
    _refuse_unfounded(study)
    runs = {f"{place.parent.name}/{place.name}": RunRecord(place) for place in runs_of(study)}
    shown = next((key for key, run in runs.items() if any(run.exhibits())), None)
    kept = {key: _free(run) for key, run in runs.items()}
    content = pack_runs(runs, keep_text=kept, pictures={shown} if shown else set())
    with whole_folder(out) as folder:
        (folder / RUNS).write_bytes(content)
        for name in _STUDY:
            (folder / name).write_bytes((study / name).read_bytes())
        _refuse_unfounded(folder)
    return out


def _refuse_unfounded(study: Path) -> None:
    differing = check_comparison(study)
    if differing:
        raise RefusedError(
            f"{COMPARISON} of {study} does not follow from its runs ({'; '.join(differing[:3])}); put back what was altered, "
            f"or write it again with `seedbed resume {study}`"
        )


def _free(run: RunRecord) -> Callable[[str], bool]:
    """Return whether texts of an evaluation's items may be passed on: those of a source whose noted licence says so, or of a
    corpus in the package; of no others."""
    plan, told = read_plan(run.folder), (run.final() or {}).get("evaluations", {})

    def free(name: str) -> bool:
        branch, _, asked = name.rpartition("/")
        own = of_branch(plan, branch) if branch else plan
        stage = next((s for s in own.stages if s.name == told.get(name, {}).get("stage")), own.stages[-1])
        parts = dict(own.streams[stage.stream].named_sources)
        over = evaluations_of(own)[asked].spec.part.get("over")
        if isinstance(over, dict):
            parts, over = {"": over}, ""
        elif over is None and len(parts) == 1:
            over = next(iter(parts))
        return re.match(_FREE, noted_licences(run.folder, parts).get(over or "", ""), re.IGNORECASE) is not None

    return free
