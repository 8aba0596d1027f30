"""What a pass of its own found out about prepared documents: columns (score, label, duplicate cluster) and orders.

A column is one value a document, joined by the document's id when it is written; an order is a permutation of a split's
documents, read before packing. Both lie beside the shards, name the shards that they belong to, and are refused beside others.
Letters: N documents.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from seedbed.core.durable import refuse_existing, whole_folder
from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.json_files import read_object

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Column:
    """Values of every split by document number: numbers as they are, labels as codes into `labels`."""

    name: str
    values: Mapping[str, np.ndarray]
    labels: tuple[str, ...] = ()
    made_by: str = ""

    def value(self, split: str, number: int) -> float | str:
        found = self.values[split][number]
        return self.labels[int(found)] if self.labels else float(found)


def shards_hash(manifest: Mapping[str, Any]) -> str:
    """Return what ties a column or an order to its shards."""
    return sha256(json.dumps([e["sha256"] for e in manifest["shards"]], sort_keys=True).encode()).hexdigest()[:16]


def write_column(
    folder: Path,
    name: str,
    values: Mapping[str, float | str],
    *,
    ids: Mapping[str, Sequence[str]],
    manifest: Mapping[str, Any],
    made_by: str,
    cost: Mapping[str, Any],
) -> Path:
    """Join values to documents by id and write the column. `ids` are the documents' ids by split.

    Raises DataError if a document has no value, or a value no document; RefusedError if the column exists.
    """
    known = {i for some in ids.values() for i in some}
    missing = next((i for i in known if i not in values), None)
    unknown = next((i for i in values if i not in known), None)
    if missing is not None or unknown is not None:
        what = (
            f"the document {missing!r} has no value"
            if missing is not None
            else f"the value of {unknown!r} belongs to no document"
        )
        raise DataError(
            f"the column {name!r} does not fit {folder}: {what}; give one value for the id of each document (see its *.jsonl)"
        )
    kinds = {isinstance(v, str) for v in values.values()}
    if len(kinds) > 1:
        raise DataError(f"the column {name!r} mixes numbers and labels; give one kind")
    labels = tuple(sorted({str(v) for v in values.values()})) if kinds == {True} else ()
    codes = {label: float(i) for i, label in enumerate(labels)}
    arrays = {
        split: np.array([codes[str(values[i])] if labels else float(values[i]) for i in some], dtype="<f8")
        for split, some in ids.items()
    }
    endless = next(
        (i for split, some in ids.items() for i, v in zip(some, arrays[split], strict=True) if not np.isfinite(v)), None
    )
    if endless is not None:
        raise DataError(f"the column {name!r} has {values[endless]} for {endless!r}; a value is a finite number or a label")
    facts = {"name": name, "labels": list(labels), "made_by": made_by, "shards": shards_hash(manifest), "cost": dict(cost)}
    return _write(folder / "columns" / name, arrays, facts)


def read_column(folder: Path, name: str, manifest: Mapping[str, Any]) -> Column:
    """Return a column. Raises DataError if it is not there, broken, or belongs to other shards."""
    facts, arrays = _read(folder / "columns" / name, manifest, what="column", dtype="<f8")
    return Column(name=name, values=arrays, labels=tuple(facts["labels"]), made_by=facts["made_by"])


def write_order(
    folder: Path,
    name: str,
    order_N: Int64[np.ndarray, "N"],
    *,
    manifest: Mapping[str, Any],
    made_by: str,
    cost: Mapping[str, Any],
) -> Path:
    """Write an order of the training documents. Raises ConfigError if it is no permutation, RefusedError if it exists."""
    count = manifest["splits"]["train"]["documents"]
    if len(order_N) != count or not np.array_equal(np.sort(order_N), np.arange(count)):
        raise ConfigError(f"the order {name!r} is no permutation of the {count} training documents of {folder}")
    facts = {"made_by": made_by, "shards": shards_hash(manifest), "cost": dict(cost)}
    return _write(folder / "orders" / name, {"train": order_N.astype("<i8")}, facts)


def read_order(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Int64[np.ndarray, "N"]]:
    """Return an order by split (the training documents'). Raises DataError as `read_column` does."""
    return _read(folder / "orders" / name, manifest, what="order", dtype="<i8")[1]


def cost_of(place: Path) -> dict[str, Any]:
    """Return what a column or an order (its folder) cost when it was made."""
    return dict(read_object(place / "facts.json", advice=f"remove {place} and make it again").get("cost", {}))


def check_column_place(folder: Path, name: str) -> None:
    """Raise ConfigError for a name that no column may have, RefusedError if there is one already."""
    _check_name(name)
    refuse_existing(folder / "columns" / name, empty=True)


def check_order_place(folder: Path, name: str) -> None:
    """Raise as `check_column_place` does, of an order."""
    _check_name(name)
    refuse_existing(folder / "orders" / name, empty=True)


def _check_name(name: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9_-]+", name) is None:
        raise ConfigError(f"a column's or order's name is letters, digits, - and _; got {name!r}")


def _write(place: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
    _check_name(place.name)
    with whole_folder(place) as folder:
        for split, array in arrays.items():
            (folder / f"{split}.bin").write_bytes(array.tobytes())
        hashes = {split: sha256(array.tobytes()).hexdigest() for split, array in arrays.items()}
        (folder / "facts.json").write_text(json.dumps({**facts, "sha256": hashes}, indent=1) + "\n", encoding="utf-8")
    return place


def _read(place: Path, manifest: Mapping[str, Any], *, what: str, dtype: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not (place / "facts.json").is_file():
        there = [p.name for p in place.parent.iterdir() if (p / "facts.json").is_file()] if place.parent.is_dir() else []
        raise DataError(f"there is no {what} {place.name!r} in {place.parent}; {nearest(place.name, there)}")
    facts = read_object(place / "facts.json", advice=f"make the {what} again")
    try:
        digests = dict(facts["sha256"])
        facts["shards"], facts["made_by"]
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{place / 'facts.json'} is broken ({e}); make the {what} again") from None
    if facts["shards"] != shards_hash(manifest):
        raise DataError(f"the {what} {place} belongs to other shards; make it again for these")
    arrays = {}
    for split, digest in digests.items():
        raw = (place / f"{split}.bin").read_bytes() if (place / f"{split}.bin").is_file() else b""
        if sha256(raw).hexdigest() != digest:
            raise DataError(f"{place / split}.bin is missing or was altered since it was written; make the {what} again")
        arrays[split] = np.frombuffer(raw, dtype=dtype)
    return facts, arrays
