"""Passes over prepared documents: a column from a file or from duplicates, an order by a column. Each is one function."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from seedbed import tokenizers
from seedbed.core.errors import DataError
from seedbed.curate.near_duplicates import NearDuplicates
from seedbed.sources.columns import (
    SPLITS,
    Column,
    check_column_place,
    check_order_place,
    read_column,
    write_column,
    write_order,
)
from seedbed.sources.fields import Record
from seedbed.sources.files import BadInput, Bounds, FoundFile
from seedbed.sources.lines import jsonl_records
from seedbed.sources.shards import Shards, ShardStore

_LINE = '{"id": ..., "value": number or label}'


def open_prepared(folder: str | Path, *, columns: Sequence[str] = ()) -> ShardStore:
    """Open a prepared folder with its own tokenizer. Raises DataError for what is missing or altered."""
    shards = Shards(path=str(folder), columns=tuple(columns))
    return shards.store(tokenizers.parts.build(shards.tokenizer_spec(), path="tokenizer"))


def column_from_file(folder: str | Path, name: str, file: str | Path) -> Path:
    """Join a file of lines {"id": ..., "value": number or label} to the documents of a prepared folder."""
    check_column_place(Path(folder), name)
    if not Path(file).is_file():
        raise DataError(f"there is no file {file}; give one of lines {_LINE}")
    values: dict[str, float | str] = {}
    for record in jsonl_records(FoundFile(Path(file), str(file)), Bounds(), once=("id", "value")):
        if isinstance(record, BadInput):
            raise record
        of, value = _id_and_value(record)
        if of in values:
            raise record.bad("an id twice", problem=f"the id {of!r} has a value already", advice="give each document one")
        values[of] = value
    return _written(folder, name, values, made_by=f"file {Path(file).name}")


def _id_and_value(record: Record) -> tuple[str, float | str]:
    fields = record.fields if isinstance(record.fields, dict) else {}
    of, value = fields.get("id"), fields.get("value")
    if isinstance(of, bool) or not isinstance(of, str | int):
        raise record.bad("no id", problem="it has no id that is a text or a whole number", advice=f"every line is {_LINE}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise record.bad("no value", problem="its value is neither a number nor a label", advice=f"every line is {_LINE}")
    try:
        if isinstance(value, str) or isfinite(float(value)):
            return str(of), value
    except OverflowError:
        pass
    raise record.bad(
        "no finite value", problem=f"its value is {value!r:.40}", advice="give a finite number, or leave the document out"
    )


def column_of_duplicates(folder: str | Path, name: str, *, threshold: float = 0.8) -> Path:
    """Label every document with the id of the earliest one that it nearly duplicates (its own, if none)."""
    check_column_place(Path(folder), name)
    store = open_prepared(folder)
    near = NearDuplicates(threshold=threshold)
    ids = [i for split in SPLITS for _, some in store.records(split) for i in some]
    signatures = [near.signature(d.text) for split in SPLITS for d in store.documents(split)]
    found = near.clusters(near.find(np.stack(signatures))) if signatures else np.empty(0, np.int64)
    labels = {i: ids[int(n)] for i, n in zip(ids, found, strict=True)}
    return _written(folder, name, labels, made_by=f"near_duplicates, threshold {threshold:g}")


def order_by(folder: str | Path, name: str, *, column: str, descending: bool = False) -> Path:
    """Write the order of the training documents by a column (equal values: as they stand)."""
    check_order_place(Path(folder), name)
    store = open_prepared(folder)
    found: Column = read_column(Path(folder), column, store.manifest)
    values = -found.values["train"] if descending else found.values["train"]
    made_by = f"column {column}, {'descending' if descending else 'ascending'}"
    return write_order(Path(folder), name, np.argsort(values, kind="stable"), manifest=store.manifest, made_by=made_by)


def _written(folder: str | Path, name: str, values: Any, *, made_by: str) -> Path:
    store = open_prepared(folder)
    ids = {split: [i for _, some in store.records(split) for i in some] for split in SPLITS}
    return write_column(Path(folder), name, values, ids=ids, manifest=store.manifest, made_by=made_by)
