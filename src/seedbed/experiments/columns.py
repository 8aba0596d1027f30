"""Passes over prepared documents: a column from a file or from duplicates, an order by a column. Each is one function."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seedbed import tokenizers
from seedbed.core.errors import DataError
from seedbed.curate.near_duplicates import NearDuplicates
from seedbed.sources.columns import SPLITS, Column, read_column, write_column, write_order
from seedbed.sources.shards import Shards, ShardStore


def open_prepared(folder: str | Path, *, columns: Sequence[str] = ()) -> ShardStore:
    """Open a prepared folder with its own tokenizer. Raises DataError for what is missing or altered."""
    shards = Shards(path=str(folder), columns=tuple(columns))
    return shards.store(tokenizers.parts.build(shards.tokenizer_spec(), path="tokenizer"))


def column_from_file(folder: str | Path, name: str, file: str | Path) -> Path:
    """Join a file of lines {"id": ..., "value": number or label} to the documents of a prepared folder."""
    values: dict[str, float | str] = {}
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read {file}: {e}; give a .jsonl file of lines with id and value") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            facts = json.loads(line)
            value = facts["value"]
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError(f"value {value!r} is neither a number nor a label")
            values[str(facts["id"])] = value
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(f'{file}, line {number}: {e}; every line is {{"id": ..., "value": number or label}}') from None
    return _written(folder, name, values, made_by=f"file {Path(file).name}")


def column_of_duplicates(folder: str | Path, name: str, *, threshold: float = 0.8) -> Path:
    """Label every document with the id of the earliest one that it nearly duplicates (its own, if none)."""
    store = open_prepared(folder)
    near = NearDuplicates(threshold=threshold)
    ids = [i for split in SPLITS for _, some in store.records(split) for i in some]
    signatures = [near.signature(d.text) for split in SPLITS for d in store.documents(split)]
    found = near.clusters(near.find(np.stack(signatures))) if signatures else np.empty(0, np.int64)
    labels = {i: ids[int(n)] for i, n in zip(ids, found, strict=True)}
    return _written(folder, name, labels, made_by=f"near_duplicates, threshold {threshold:g}")


def order_by(folder: str | Path, name: str, *, column: str, descending: bool = False) -> Path:
    """Write the order of the training documents by a column (equal values: as they stand)."""
    store = open_prepared(folder)
    found: Column = read_column(Path(folder), column, store.manifest)
    values = -found.values["train"] if descending else found.values["train"]
    made_by = f"column {column}, {'descending' if descending else 'ascending'}"
    return write_order(Path(folder), name, np.argsort(values, kind="stable"), manifest=store.manifest, made_by=made_by)


def _written(folder: str | Path, name: str, values: Any, *, made_by: str) -> Path:
    store = open_prepared(folder)
    ids = {split: [i for _, some in store.records(split) for i in some] for split in SPLITS}
    return write_column(Path(folder), name, values, ids=ids, manifest=store.manifest, made_by=made_by)
