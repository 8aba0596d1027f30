"""Passes over prepared documents: a column or an order, by a part of the rooms `columns` and `orders`.

A part reads documents some at a time; what it returns of them is on disk before the next ones are read, so that the same
command goes on after a kill.
Letters: N documents.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from seedbed import columns, orders, tokenizers
from seedbed.core.durable import locked, whole_folder, write_json
from seedbed.core.errors import ConfigError, DataError, RefusedError, nearest
from seedbed.core.json_files import read_object
from seedbed.core.places import places_of
from seedbed.core.protocols import ColumnKind, Helper, OrderKind, Pass
from seedbed.core.records import Cost
from seedbed.core.registry import Registry, calling, code_of
from seedbed.experiments.plan.numbers import Part
from seedbed.experiments.prepare.lending import Lending, spent
from seedbed.sources.columns import SPLITS, check_column_place, check_order_place, shards_hash, write_column, write_order
from seedbed.sources.shards import Shards, ShardStore

WORK = ".passes"
_AT_ONCE = 256  # documents


def open_prepared(folder: str | Path, *, columns: Sequence[str] = ()) -> ShardStore:
    """Open a prepared folder with its own tokenizer. Raises DataError for what is missing or altered."""
    shards = Shards(path=str(folder), columns=tuple(columns))
    return shards.store(tokenizers.parts.build(shards.tokenizer_spec(), path="tokenizer"))


def make_column(folder: str | Path, name: str, part: Part, *, lending: Lending | None = None) -> Path:
    """Give every document of a prepared folder a value, and return the column's folder.

    Raises ConfigError for a part that does not fit, RefusedError if there is such a column, or the beginnings of another one,
    DataError for values that are no numbers or labels.
    """
    place, given = Path(folder), lending or Lending()
    check_column_place(place, name)
    kind: ColumnKind = _built(columns.parts, part, given)
    with locked(place):
        store = open_prepared(place, columns=kind.columns)
        work = _begun(place, f"column-{name}", part, store, given)
        found, cost = _read(work, kind, store, SPLITS, given)
        ids = {split: [i for _, some in store.records(split) for i in some] for split in SPLITS}
        all_ids = [i for some in ids.values() for i in some]
        with calling(kind, f"all {len(all_ids)} documents"):
            values = dict(zip(all_ids, kind.values(found, ids=all_ids), strict=True))
        made = write_column(place, name, values, ids=ids, manifest=store.manifest, made_by=_said(part), cost=asdict(cost))
        shutil.rmtree(work)
    return made


def make_order(folder: str | Path, name: str, part: Part, *, seed: int = 0, lending: Lending | None = None) -> Path:
    """Put the training documents of a prepared folder in order, and return the order's folder; raises as `make_column`."""
    place, given = Path(folder), lending or Lending()
    check_order_place(place, name)
    kind: OrderKind = _built(orders.parts, part, given)
    with locked(place):
        store = open_prepared(place, columns=kind.columns)
        work = _begun(place, f"order-{name}", part, store, given)
        found, cost = _read(work, kind, store, SPLITS[:1], given)
        with calling(kind, f"all {len(found)} documents"):
            order_N = np.asarray(kind.arrange(found, seed=seed))
        made = write_order(place, name, order_N, manifest=store.manifest, made_by=_said(part), cost=asdict(cost))
        shutil.rmtree(work)
    return made


def check_pass(room: str, part: Part, lending: Lending, there: Sequence[str], *, path: str) -> None:
    """Raise ConfigError, with the path, for a part of `columns` or `orders` that does not fit, or calls what is not lent, or
    reads a column that is not `there` by then."""
    kind: Pass = _built({"columns": columns, "orders": orders}[room].parts, part, lending, path=path)
    for column in kind.columns:
        if column not in there:
            raise ConfigError(f"{path}: it reads the column {column!r}, which is not made before it; {nearest(column, there)}")


def files_of(parts: Mapping[str, Part]) -> list[str]:
    """Return the files that parts of `columns` and `orders` name."""
    rooms = (columns.parts, orders.parts)
    found = []
    for part in parts.values():
        kind = part if isinstance(part, str) else part["kind"]
        room = next((room for room in rooms if kind in room), None)
        names = places_of(room.resolve(kind)) if room is not None and isinstance(part, dict) else []
        found += [part[name] for name in names if isinstance(part, dict) and part.get(name)]
    return found


def _built(room: Registry, part: Part, lending: Lending, *, path: str = "") -> Any:
    kind = room.build(part, path=path or room.room)
    lending.check(type(kind).__name__, kind.calls, path=path or room.room)
    return kind


def _said(part: Part) -> str:
    return part if isinstance(part, str) else json.dumps(part, sort_keys=True)


def _begun(place: Path, name: str, part: Part, store: ShardStore, lending: Lending) -> Path:
    """Note what is being made. Raises RefusedError if the beginnings of something else go by the name."""
    work = place / WORK / name
    facts = [part, shards_hash(store.manifest), code_of(part), asdict(lending), lending.fingerprints()]
    note = {"fingerprint": sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}
    known = read_object(work / "plan.json", advice=f"remove {work}") if (work / "plan.json").is_file() else None
    if known is not None and known != note and any(p.is_dir() for p in work.iterdir()):
        raise RefusedError(f"{work} holds the beginnings of another {name}; remove it, or give another name")
    if known != note:
        write_json(work / "plan.json", note)
    return work


def _read(work: Path, kind: Pass, store: ShardStore, splits: Sequence[str], lending: Lending) -> tuple[np.ndarray, Cost]:
    """Return what a part reads of all documents, one entry each, and what that cost. What is there is not read again."""
    addresses = [(store.documents(split), n) for split in splits for n in range(len(store.documents(split)))]
    parts, cost = [np.empty(0)] if not addresses else [], Cost()
    lent: dict[str, Helper] | None = None
    for first in range(0, len(addresses), _AT_ONCE):
        some, done = addresses[first : first + _AT_ONCE], work / f"{first:09d}"
        if not done.is_dir():
            began, lent = perf_counter(), lending.opened() if lent is None else lent
            documents = [of_split[n] for of_split, n in some]
            with calling(kind, f"{documents[0].id} to {documents[-1].id}"):
                read = kind.read(documents, lent={name: lent[name] for name in kind.calls})
                mixed = isinstance(read, list | tuple) and len({isinstance(x, str) for x in read}) > 1
                found = np.asarray(read)
            if mixed:
                raise DataError(f"{type(kind).__name__} mixes numbers and labels; give one kind")
            alike = all(p.dtype.kind == found.dtype.kind and p.shape[1:] == found.shape[1:] for p in parts[:1])
            if found.dtype == object or found.shape[:1] != (len(some),) or not alike:
                before = "" if alike else f", after {parts[0].dtype} of shape {parts[0].shape}"
                raise DataError(
                    f"{type(kind).__name__} returned {found.dtype} of shape {found.shape} for {len(some)} documents{before}; "
                    "return one number, text or vector for each"
                )
            with whole_folder(done) as folder:
                np.save(folder / "found.npy", found)
                took = replace(spent(lent), seconds=perf_counter() - began)
                (folder / "cost.json").write_text(json.dumps(asdict(took)), encoding="utf-8")
        parts.append(np.load(done / "found.npy"))
        cost += Cost(**read_object(done / "cost.json", advice=f"remove {done}"))
    return np.concatenate(parts), cost
