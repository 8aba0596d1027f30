"""What a run leaves behind, from its folder or from a packed study: one reader for whoever tells of runs.

A run folder holds final.json, env.json, resolved.yaml, metrics.jsonl, items/ (NAME.jsonl of each evaluation), log.txt and
exhibits/. A packed study
(`seedbed pack`) holds all of them for all of its runs in one file, RUNS; its runs go by the same names, STUDY/ARM/seed-N.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from seedbed.core import format1
from seedbed.core.columns_file import Line, packed, unpacked
from seedbed.core.errors import DataError
from seedbed.core.json_files import read_json_lines, read_object, read_text
from seedbed.core.records import Item

RUNS = "runs.xz"
FORMAT = 1
FINAL, ENVIRONMENT, PLAN = "final.json", "env.json", "resolved.yaml"
BRANCHES, COMPARISON = "branches", "comparison.json"  # of a run, of a study
METRICS, ITEMS, FEEDBACK, LOG, EXHIBITS = "metrics.jsonl", "items", "feedback.jsonl", "log.txt", "exhibits"
_ADVICE = "put it back, or remove it and resume the run"


@dataclass(frozen=True)
class RunRecord:
    """One run's record; `folder` names it whether it is there or packed."""

    folder: Path

    @property
    def is_first_format(self) -> bool:
        """Whether core/format1.py reads it; of a folder without a plan nothing is known."""
        if not self.is_packed and not (self.folder / PLAN).is_file():
            return False
        return re.search(r"^format: ", self.plan_text(), re.MULTILINE) is None

    def commit(self) -> str:
        """Return the commit of the code that wrote it, "unknown" if it does not say."""
        return str((self.environment() or {}).get("commit", "unknown"))

    @property
    def is_packed(self) -> bool:
        return not self.folder.is_dir() and _study_of(self.folder) is not None

    def final(self) -> dict[str, Any] | None:
        """Return final.json of a run that is done or has failed. Raises DataError if it is broken."""
        found = self._final()
        return format1.final(found) if found is not None and self.is_first_format else found

    def _final(self) -> dict[str, Any] | None:
        if self.is_packed:
            return self._facts()["final"]
        file = self.folder / FINAL
        found = read_object(file, advice=_ADVICE) if file.is_file() else None
        if found is not None and found.get("status") not in ("done", "failed"):
            raise DataError(f"{file} is broken: it does not say whether the run is done or has failed; {_ADVICE}")
        return found

    def environment(self) -> dict[str, Any] | None:
        if self.is_packed:
            return self._facts()["environment"]
        file = self.folder / ENVIRONMENT
        return read_object(file, advice=_ADVICE) if file.is_file() else None

    def plan_text(self) -> str:
        """Return resolved.yaml. Raises DataError if this is no run."""
        if self.is_packed:
            return str(self._facts()["plan"])
        file = self.folder / PLAN
        if not file.is_file():
            raise DataError(
                f"{self.folder} is not a run folder: it has no {PLAN}; give the folder that `seedbed run` wrote, or a run of a "
                "packed study as STUDY/ARM/seed-N"
            )
        return read_text(file, advice=_ADVICE)

    def metrics(self) -> Iterator[Line]:
        """Give the lines of metrics.jsonl, none if there is no such file yet; of one in pieces a kill left no more."""
        lines: Iterable[Line] = ()
        if self.is_packed:
            lines = self._table("metrics")
        elif (self.folder / METRICS).is_file():
            lines = read_json_lines(self.folder / METRICS, advice="put it back, or take that line out")
        yield from map(format1.metrics_line, lines) if self.is_first_format else lines

    def watched(self, evaluation: str, number: str, *, stage: str) -> list[tuple[int, float]]:
        """Return (tokens of the stage, value) at every step at which a number of an evaluation was read on the way."""
        lines = (x for x in self.metrics() if x["stage"] == stage)
        return [(x["tokens"], v) for x in lines if (v := x.get("watched", {}).get(evaluation, {}).get(number)) is not None]

    def evaluations(self) -> list[str]:
        """Return the names of the evaluations whose items are there; BRANCH/NAME of a branch."""
        if self.is_packed:
            begin = f"{_key(self.folder)}/{ITEMS}/"
            return [name.removeprefix(begin) for name in _opened(self.folder)[0] if name.startswith(begin)]
        own = sorted(file.stem for file in (self.folder / ITEMS).glob("*.jsonl"))
        sides = sorted((self.folder / BRANCHES).glob(f"*/{ITEMS}/*.jsonl"))
        return own + [f"{file.parent.parent.name}/{file.stem}" for file in sides]

    def items(self, evaluation: str) -> list[Item]:
        """Return the scored items of an evaluation, none if it was not read."""
        if self.is_first_format:
            items = self._first_items()
            own = [i for i in items if i.group == evaluation]
            return own or (items if evaluation == format1.TEXT else [])
        if self.is_packed:
            known = evaluation in self.evaluations()
            return [Item(**_nested(line)) for line in self._table(f"{ITEMS}/{evaluation}")] if known else []
        branch, _, name = evaluation.rpartition("/")
        file = (self.folder / BRANCHES / branch if branch else self.folder) / ITEMS / f"{name}.jsonl"
        return [Item(**line) for line in read_json_lines(file, advice=_ADVICE)] if file.is_file() else []

    def _first_items(self) -> list[Item]:
        if self.is_packed:
            return [Item(**_nested(line)) for line in self._table("items")]
        file = self.folder / "items.jsonl"
        return [Item(**line) for line in read_json_lines(file, advice=_ADVICE)] if file.is_file() else []

    def feedback_text(self) -> str:
        """Return feedback.jsonl, "" if the run's mixtures asked for none."""
        return self._text(FEEDBACK, "feedback")

    def log_text(self) -> str:
        """Return log.txt, "" if there is none."""
        return self._text(LOG, "log")

    def _text(self, name: str, packed_as: str) -> str:
        if self.is_packed:
            return str(self._facts()[packed_as])
        file = self.folder / name
        return read_text(file, advice=_ADVICE) if file.is_file() else ""

    def exhibits(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Give facts and PNG picture of everything that the run shows."""
        if self.is_packed:
            for facts, picture in self._facts()["exhibits"]:
                yield format1.exhibit(facts), bytes.fromhex(picture)
            return
        for record in sorted((self.folder / EXHIBITS).glob("*.json")):
            yield format1.exhibit(read_object(record, advice=_ADVICE)), record.with_suffix(".png").read_bytes()

    def _facts(self) -> dict[str, Any]:
        return _opened(self.folder)[1][_key(self.folder)]

    def _table(self, name: str) -> list[Line]:
        return _opened(self.folder)[0][f"{_key(self.folder)}/{name}"]


def runs_of(study: Path) -> list[Path]:
    """Return the run folders of a study, in the order of their names, packed or not."""
    if (study / RUNS).is_file():
        return [study / key for key in _read(study / RUNS, (study / RUNS).stat().st_mtime_ns)[1]]
    return sorted(place.parent for place in study.glob(f"*/seed-*/{PLAN}"))


def read_comparison(study: Path) -> dict[str, Any]:
    """Return comparison.json of a study, of either format. Raises DataError if it is broken."""
    file, advice = study / COMPARISON, f"write it again with `seedbed resume {study}`"
    found = read_object(file, advice=advice)
    try:
        return found if "unit" in found else format1.comparison(found)
    except (KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{file} is broken ({type(e).__name__}: {e}); {advice}") from None


def pack_runs(runs: Mapping[str, RunRecord], *, keep_text: Mapping[str, Callable[[str], bool]], pictures: set[str]) -> bytes:
    """Return the content of RUNS for runs by key (ARM/seed-N).

    Items keep their text only if `keep_text` of their run says so of their evaluation, and only named runs keep pictures.
    """
    tables: dict[str, list[Line]] = {}
    facts: dict[str, Any] = {}
    for key, run in runs.items():
        tables[f"{key}/metrics"] = list(run.metrics())
        for name in run.evaluations():
            items = [asdict(i) if keep_text[key](name) else {**asdict(i), "text": ""} for i in run.items(name)]
            tables[f"{key}/{ITEMS}/{name}"] = [_flat(item) for item in items]
        shown = [[f, p.hex()] for f, p in run.exhibits()] if key in pictures else []
        facts[key] = {
            "final": run.final(),
            "environment": run.environment(),
            "plan": run.plan_text(),
            "feedback": run.feedback_text(),
            "log": run.log_text(),
            "exhibits": shown,
        }
    return packed(tables, {"format": FORMAT, "runs": facts})


def _flat(item: Mapping[str, Any]) -> Line:
    return {k: v for k, v in item.items() if k != "values"} | {f"values.{k}": v for k, v in item["values"].items()}


def _nested(line: Line) -> Line:
    plain = {k: v for k, v in line.items() if not k.startswith("values.")}
    return plain | {"values": {k.removeprefix("values."): v for k, v in line.items() if k.startswith("values.")}}


def _study_of(run: Path) -> Path | None:
    study = run.parent.parent
    return study if (study / RUNS).is_file() and _key(run) in _opened(run)[1] else None


def _key(run: Path) -> str:
    return f"{run.parent.name}/{run.name}"


def _opened(run: Path) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    file = run.parent.parent / RUNS
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, modified: int) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    """Return lines by KEY/metrics and KEY/items/NAME, and facts by key."""
    try:
        tables, facts = unpacked(file.read_bytes())
        if facts["format"] != FORMAT:
            raise DataError(
                f"{file} has format {facts['format']}, this version reads {FORMAT}; read it with the one that wrote it"
            )
        return tables, facts["runs"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{file} is broken: {e}; put it back") from None
