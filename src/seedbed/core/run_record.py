"""What a run leaves behind, from its folder or from a packed study: one reader for whoever tells of runs.

A run folder holds final.json, env.json, resolved.yaml, metrics.jsonl, items.jsonl, log.txt and exhibits/. A packed study
(`seedbed pack`) holds all of them for all of its runs in one file, RUNS; its runs go by the same names, STUDY/ARM/seed-N.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from seedbed.core.columns_file import Line, packed, unpacked
from seedbed.core.errors import DataError
from seedbed.core.json_files import read_json_lines, read_object, read_text
from seedbed.core.records import Item

RUNS = "runs.xz"
FORMAT = 1
FINAL, ENVIRONMENT, PLAN = "final.json", "env.json", "resolved.yaml"
METRICS, ITEMS, FEEDBACK, LOG, EXHIBITS = "metrics.jsonl", "items.jsonl", "feedback.jsonl", "log.txt", "exhibits"
_ADVICE = "put it back, or remove it and resume the run"


@dataclass(frozen=True)
class RunRecord:
    """One run's record; `folder` names it whether it is there or packed."""

    folder: Path

    @property
    def is_packed(self) -> bool:
        return not self.folder.is_dir() and _study_of(self.folder) is not None

    def final(self) -> dict[str, Any] | None:
        """Return final.json of a run that is done or has failed. Raises DataError if it is broken."""
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
        if self.is_packed:
            yield from self._table("metrics")
        elif (self.folder / METRICS).is_file():
            yield from read_json_lines(self.folder / METRICS, advice="put it back, or take that line out")

    def items(self) -> list[Item]:
        """Return the scored items of the test part, none if it was not read."""
        if self.is_packed:
            return [Item(**_nested(line)) for line in self._table("items")]
        if not (self.folder / ITEMS).is_file():
            return []
        return [Item(**line) for line in read_json_lines(self.folder / ITEMS, advice=_ADVICE)]

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
                yield facts, bytes.fromhex(picture)
            return
        for record in sorted((self.folder / EXHIBITS).glob("*.json")):
            yield read_object(record, advice=_ADVICE), record.with_suffix(".png").read_bytes()

    def _facts(self) -> dict[str, Any]:
        return _opened(self.folder)[1][_key(self.folder)]

    def _table(self, name: str) -> list[Line]:
        return _opened(self.folder)[0][f"{_key(self.folder)}/{name}"]


def runs_of(study: Path) -> list[Path]:
    """Return the run folders of a study, in the order of their names, packed or not."""
    if (study / RUNS).is_file():
        return [study / key for key in _read(study / RUNS, (study / RUNS).stat().st_mtime_ns)[1]]
    return sorted(place.parent for place in study.glob(f"*/seed-*/{PLAN}"))


def pack_runs(runs: Mapping[str, RunRecord], *, keep_text: Mapping[str, Callable[[str], bool]], pictures: set[str]) -> bytes:
    """Return the content of RUNS for runs by key (ARM/seed-N).

    Items keep their text only if `keep_text` of their run says so of their group, and only the runs named keep their pictures.
    """
    tables: dict[str, list[Line]] = {}
    facts: dict[str, Any] = {}
    for key, run in runs.items():
        items = [asdict(i) if keep_text[key](i.group) else {**asdict(i), "text": ""} for i in run.items()]
        tables[f"{key}/metrics"] = list(run.metrics())
        tables[f"{key}/items"] = [_flat(item) for item in items]
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
    """Return lines by KEY/metrics and KEY/items, and facts by key."""
    try:
        tables, facts = unpacked(file.read_bytes())
        if facts["format"] != FORMAT:
            raise DataError(
                f"{file} has format {facts['format']}, this version reads {FORMAT}; read it with the one that wrote it"
            )
        return tables, facts["runs"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{file} is broken: {e}; put it back") from None


def loss_of_text(numbers: Mapping[str, float]) -> str:
    """Return in words what a tokenizer lost of the text of a summary; "" if nothing, or if it was not measured."""
    if not numbers.get("changed_documents"):
        return ""
    return (
        f"the tokenizer gives {numbers['changed_documents']} of {numbers['documents']} documents back changed, and what it "
        "loses is not predicted: this number compares with that of no other tokenizer"
    )
