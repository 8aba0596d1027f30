"""The seal: units become shards, one after the other; duplicates leave, every document gets its side, the manifest is last."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from seedbed import __version__
from seedbed.core.durable import sync_folder, write_json, write_whole
from seedbed.core.errors import DataError
from seedbed.core.json_files import read_object
from seedbed.core.places import homeless
from seedbed.core.records import Cost
from seedbed.experiments.prepare.inputs import other_documents, stored_keys
from seedbed.experiments.prepare.preparation import Preparation, PreparedFolder
from seedbed.experiments.prepare.units import ORIGINAL, ORIGINALS, WORK, Work, unit_folder
from seedbed.sources.shards import (
    FORMAT,
    MANIFEST,
    SPLITS,
    SUFFIXES,
    Shard,
    ShardWriter,
    content_key,
    file_hash,
    manifest_hash,
    token_dtype,
)
from seedbed.sources.text import side

_BLOCK_TOKENS = 2**22  # copied at one time while sealing


COST = "cost.json"  # what it took, which is not the same from run to run


def seal(folder: Path, work: Work, *, say: Callable[[str], None]) -> PreparedFolder:
    """Turn the units into shards and write the manifest. Raises DataError if nothing is left."""
    places = [unit_folder(folder, n) for n in range(len(work.units))]
    facts = [read_object(place / "facts.json", advice=f"remove {place} and run the same command again") for place in places]
    final = folder / WORK / "shards"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir(parents=True)
    dropped = Counter(d["reason"] for f in facts for d in f["dropped"])
    shards = _shards(final, work, places, facts, reasons=_duplicates(folder, work, places, facts), dropped=dropped)
    if not sum(e["documents"] for e in shards):
        why = ", ".join(f"{reason}: {n}" for reason, n in sorted(dropped.items())) or "the files are empty"
        raise DataError(
            f"{', '.join(work.preparation.paths)} leaves no document ({why}); give other files, or loosen what leaves "
            "documents out"
        )
    for name, raw in work.preparation.build_tokenizer().files().items():
        write_whole(final / name, raw)
    manifest = _manifest(final, work, facts, shards, dropped)
    cost = sum((Cost(**f["cost"]) for f in facts), Cost())
    write_whole(final / COST, json.dumps(asdict(cost)))
    sync_folder(final)
    for file in sorted(final.iterdir()):
        os.replace(file, folder / file.name)
    sync_folder(folder)
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    _tell(folder, manifest, facts, say=say)
    return PreparedFolder(folder=folder, manifest=manifest)


def _shards(
    final: Path,
    work: Work,
    places: Sequence[Path],
    facts: Sequence[Mapping[str, Any]],
    *,
    reasons: np.ndarray,
    dropped: Counter[str],
) -> list[dict[str, Any]]:
    """Write the shards of every side, and dropped.jsonl; return the shards' entries, and count in `dropped`."""
    p = work.preparation
    dtype = token_dtype(p.build_tokenizer().vocab_size)
    writers = {split: _Rolling(final, split, dtype=dtype, most_tokens=p.shard_tokens) for split in SPLITS}
    first = 0
    with (final / "dropped.jsonl").open("w", encoding="utf-8", errors="surrogateescape") as listed:
        for place, f in zip(places, facts, strict=True):
            unit = Shard(place, "unit", dtype=dtype)
            for d in f["dropped"]:
                listed.write(json.dumps(d, ensure_ascii=False) + "\n")
            mine = reasons[first : first + len(unit.records)]
            for n in np.flatnonzero(mine).tolist():
                reason = _REASONS[int(mine[n])]
                dropped[reason] += 1
                listed.write(json.dumps({"id": json.loads(unit.line(n))["id"], "reason": reason}, ensure_ascii=False) + "\n")
            _copy(unit, mine == 0, writers, p)
            first += len(unit.records)
        listed.flush()
        os.fsync(listed.fileno())
    return [{"split": split, **entry} for split in SPLITS for entry in writers[split].close()]


def _manifest(
    final: Path, work: Work, facts: Sequence[Mapping[str, Any]], shards: list[dict[str, Any]], dropped: Counter[str]
) -> dict[str, Any]:
    p, tokenizer = work.preparation, work.preparation.build_tokenizer()
    beside = {f.name: f for f in sorted(final.iterdir()) if f.suffix not in SUFFIXES or f.name == "dropped.jsonl"}
    files: dict[str, dict[str, Any]] = {}
    for entry in (e for f in facts for e in f["files"]):
        known = files.setdefault(entry["name"], {**entry, "documents": 0})
        known["documents"] += entry["documents"]
    checked, lossless = _looked_at(facts)
    rewritten = sum((Counter(f["rewritten"]) for f in facts), Counter())
    manifest = {
        "format": FORMAT,
        "documents": sum(e["documents"] for e in shards),
        "bytes": sum(e["bytes"] for e in shards),
        "tokens": sum(e["tokens"] for e in shards),
        "splits": {
            split: {k: sum(e[k] for e in shards if e["split"] == split) for k in ("documents", "bytes", "tokens", "seconds")}
            for split in SPLITS
        },
        "dropped": dict(sorted(dropped.items())),
        **({"rewritten": dict(sorted(rewritten.items()))} if rewritten else {}),
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "tokenizer": {
            "part": {**p.tokenizer_part, **({"path": "."} if "path" in p.tokenizer_part else {})},
            "fingerprint": tokenizer.fingerprint(),
            "vocab_size": tokenizer.vocab_size,
            "boundary_id": tokenizer.boundary_id,
            "lossless": f"{lossless} of {checked} documents looked at",
        },
        "made_by": {"seedbed": __version__, **_shown(p)},
        **({"lent": p.lending.fingerprints()} if p.lending.parts else {}),
        "licence": p.licence,
        "evaluation_texts_too_short": work.contamination.short_texts if work.contamination else 0,
        "files": list(files.values()),
        "files_beside": {name: {"size": f.stat().st_size, "sha256": file_hash(f)} for name, f in beside.items()},
        "shards": shards,
    }
    return {**manifest, "sha256": manifest_hash(json.loads(json.dumps(manifest)))}


def _looked_at(facts: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return how many documents' ids were decoded again, and how many came back as they were."""
    return sum(f["checked"] for f in facts), sum(f["lossless"] for f in facts)


def _tell(folder: Path, manifest: Mapping[str, Any], facts: Sequence[Mapping[str, Any]], *, say: Callable[[str], None]) -> None:
    splits = ", ".join(f"{s} {manifest['splits'][s]['documents']:,}" for s in SPLITS)
    say(
        f"{manifest['documents']:,} documents ({splits}), {manifest['tokens']:,} tokens, "
        f"{manifest['bytes']:,} bytes in {folder}"
    )
    for reason, n in manifest["dropped"].items():
        say(f"left out, {reason}: {n:,} (see dropped.jsonl)")
    for reason, n in manifest.get("rewritten", {}).items():
        say(f"rewritten, {reason}: {n:,}")
    if not manifest["splits"]["train"]["documents"]:
        say("note: no document is left to train on; what leaves documents out stands above")
    checked, lossless = _looked_at(facts)
    if lossless < checked:
        say(
            f"note: the tokenizer gave {checked - lossless} of {checked} documents back changed; `seedbed "
            "tokenizer check` shows where"
        )


_REASONS = {1: "exact duplicate", 2: "near duplicate"}


def _refuse_damage(place: Path, facts: Mapping[str, Any]) -> None:
    """Raise DataError if a unit is not what was written, as a disk or a shared folder may have it."""
    hashes = {f"unit{suffix}": facts["entry"]["sha256"][suffix] for suffix in SUFFIXES} | {ORIGINALS: facts["originals"]}
    for name, digest in hashes.items():
        if file_hash(place / name) != digest:
            raise DataError(f"{place / name} was altered since it was written; remove {place} and run the same command again")


def _duplicates(folder: Path, work: Work, places: Sequence[Path], facts: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return for every written document 0 (kept) or a key of _REASONS. Only what was read before it can leave it out.

    What a refiner left out counts as read: the other sides are the same with any refiner and with none.
    """
    p, near = work.preparation, work.preparation.near
    for place, f in zip(places, facts, strict=True):
        _refuse_damage(place, f)
    originals = [np.fromfile(place / ORIGINALS, ORIGINAL) for place in places]
    mine, written = [o["key"] for o in originals], np.concatenate([o["written"] for o in originals]) > 0
    if p.duplicates == "keep":
        return np.zeros(int(written.sum()), np.int8)
    stacked = folder / WORK / "signatures.bin"
    theirs: list[tuple[int, int]] = []
    with stacked.open("wb") as file:
        for path in p.against:
            stored = stored_keys(path)
            theirs += stored
            for document in other_documents(path, p) if p.duplicates == "near" or not stored else ():
                if not stored:
                    theirs.append(content_key(document.text))
                if p.duplicates == "near":
                    file.write(near.signature(document.text).tobytes())
        for place in places if p.duplicates == "near" else ():
            with (place / "signatures.bin").open("rb") as part:
                shutil.copyfileobj(part, file)
    keys = np.concatenate([np.array(theirs, np.uint64).reshape(-1, 2), *mine])
    order = np.lexsort(keys.T)  # equal keys side by side, the first of them first
    reasons = np.zeros(len(keys), np.int8)
    reasons[order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]] = 1
    if p.duplicates == "near" and len(keys):
        signatures_NP = np.memmap(stacked, np.uint32, "r", shape=(len(keys), near.permutations))
        reasons[(near.find(signatures_NP) >= 0) & (reasons == 0)] = 2
    return reasons[len(theirs) :][written]


class _Rolling:
    """The shards of one split, each of at most `most_tokens` tokens and at least one document."""

    def __init__(self, folder: Path, split: str, *, dtype: np.dtype, most_tokens: int) -> None:
        self._folder, self._split, self._dtype, self._most = folder, split, dtype, most_tokens
        self._writer: ShardWriter | None = None
        self._done: list[dict[str, Any]] = []

    def add(self, ids_T: np.ndarray, records_N: np.ndarray, lines: list[bytes]) -> None:
        """Append documents; a shard ends where the next document would pass its size."""
        ends = records_N["end"].astype(np.int64)
        start = 0
        while start < len(records_N):
            base = int(ends[start - 1]) if start else 0
            room = self._most - (self._writer.tokens if self._writer else 0)
            stop = int(np.searchsorted(ends - base, room, side="right"))
            if stop <= start and self._writer and self._writer.documents:
                self._roll()
                continue
            stop = max(stop, start + 1)
            if self._writer is None:
                self._writer = ShardWriter(self._folder, f"{self._split}-{len(self._done):05d}", dtype=self._dtype)
            some = records_N[start:stop].copy()
            some["end"] -= base
            some["line"] = np.cumsum([len(x) for x in lines[start:stop]])
            self._writer.add(ids_T[base : int(ends[stop - 1])], some, b"".join(lines[start:stop]))
            start = stop

    def _roll(self) -> None:
        if self._writer is not None:
            self._done.append(self._writer.close())
            self._writer = None

    def close(self) -> list[dict[str, Any]]:
        self._roll()
        return self._done


def _copy(unit: Shard, kept_N: np.ndarray, writers: Mapping[str, _Rolling], p: Preparation) -> None:
    """Copy the kept documents of a unit, block by block, each to its side."""
    ends = unit.records["end"].astype(np.int64)
    ranks = unit.records["rank"] / 2.0**64
    sides = np.array(
        [SPLITS.index(side(r, valid_share=p.valid_share, test_share=p.test_share)) for r in ranks.tolist()], np.int8
    )
    start = 0
    while start < len(ends):
        base = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, base + _BLOCK_TOKENS, side="right")))
        lengths = np.diff(ends[start:stop], prepend=base)
        ids_T = np.asarray(unit.ids[base : int(ends[stop - 1])])
        lines = unit.lines(start, stop).split(b"\n")[:-1]
        for s, split in enumerate(SPLITS):
            mine = kept_N[start:stop] & (sides[start:stop] == s)
            if mine.any():
                records = unit.records[start:stop][mine].copy()
                records["end"] = np.cumsum(lengths[mine])
                writers[split].add(ids_T[np.repeat(mine, lengths)], records, [lines[i] + b"\n" for i in np.flatnonzero(mine)])
        start = stop


def _shown(p: Preparation) -> dict[str, Any]:
    """The settings as a manifest may show them: places by their last name, no home folder."""
    facts = asdict(p)
    del facts["lending"]
    for name in ("paths", "against", "decontaminate"):
        facts[name] = [x if ":" in x.split("/")[0] else Path(x).name for x in facts[name]]
    facts["tokenizer"] = Path(p.tokenizer).name if "path" in p.tokenizer_part else p.tokenizer
    facts["refine"] = json.loads(homeless(json.dumps(p.refine)))
    return facts
