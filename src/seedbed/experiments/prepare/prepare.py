"""From what users have to shards: `seedbed prepare`, to be read from top to bottom.

1. Plan: the input is cut into units (files, or ranges of lines of a large .jsonl) that depend on the input alone.
2. Units, side by side: read, cut into sections, hold against what is left out, tokenize, write. A unit is whole or absent.
3. Seal, one after the other: leave out duplicates, give every document its side, write shards; the manifest last.
Bytes are the same for any number of workers; after a kill, the same command goes on with the units that are not there yet.
Memory holds one unit's batch, what is said of units, and for duplicates some 60 bytes a document (near ones: 90 more, and 512
on disk).
Letters: N documents, T tokens, P permutations.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seedbed import __version__, tokenizers
from seedbed.core.bounds import MOST_BYTES, MOST_WORKERS, Range, check_range, check_ranges, within
from seedbed.core.durable import locked, refuse_existing, sync_folder, whole_folder, write_json, write_whole
from seedbed.core.errors import ConfigError, DataError, RefusedError, RunFailedError
from seedbed.core.json_files import read_json, read_object
from seedbed.core.protocols import Tokenizer
from seedbed.core.records import Document
from seedbed.core.speaking import heard_or_not
from seedbed.core.workers import worker_pool
from seedbed.curate.decontaminate import Contamination, Decontaminate
from seedbed.curate.length import Length
from seedbed.curate.near_duplicates import NearDuplicates
from seedbed.sources.files import BadInput, Bounds, FoundFile, find_files, shown
from seedbed.sources.formats import line_ranges, read_documents, read_strings
from seedbed.sources.hub import hub_documents
from seedbed.sources.shards import (
    DOCUMENT,
    FORMAT,
    MANIFEST,
    SPLITS,
    SUFFIXES,
    Shard,
    Shards,
    ShardWriter,
    content_key,
    file_hash,
    is_shards,
    manifest_hash,
    read_manifest,
    token_dtype,
)
from seedbed.sources.text import sections, side

WORK = ".work"
WORKERS = Range(1, MOST_WORKERS)
UNIT_BYTES = 2**23  # small files go together up to this size; a larger plain .jsonl is cut into ranges of about this size
_BATCH_BYTES, _BATCH_DOCUMENTS = 2**20, 1024  # tokenized at one time
_BLOCK_TOKENS = 2**22  # copied at one time while sealing
_NUMBERED = {"integers": "vocab"}  # tokenizers that are given as KIND:NUMBER, and the setting that the number is
_LOSSLESS_CHECKED = 20  # documents a unit whose ids are decoded again


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What `seedbed prepare` was asked for. Shares are of documents; None leaves a bound off."""

    paths: tuple[str, ...]
    tokenizer: str = "bytes"  # bytes, integers:VOCABULARY, or a tokenizer.json
    boundary: str | None = None  # of a tokenizer.json: the special token in front of documents; None: what the file says
    on_error: Literal["stop", "skip"] = "stop"
    text_key: str = "text"
    meta: Mapping[str, str] | None = None  # what is kept under another name: {"language": "lang"}
    section_bytes: int = within(0, MOST_BYTES, default=0)  # longer documents are cut at empty lines; all stand on one side
    valid_share: float = within(0, 1, default=0.01, below=True)
    test_share: float = within(0, 1, default=0.01, below=True)
    duplicates: Literal["keep", "exact", "near"] = "exact"  # what of them is left out
    threshold: float = within(
        0, 1, default=0.8, above=True
    )  # estimated Jaccard similarity from which documents are near duplicates
    against: tuple[str, ...] = ()  # other corpora, prepared folders or text: what they hold is left out here
    decontaminate: tuple[str, ...] = ()  # evaluation sets: what shares 13 words in a row with them is left out
    least_bytes: int = within(0, MOST_BYTES, default=1)
    most_bytes: int | None = within(1, MOST_BYTES, default=None)
    document_bytes: int = within(1, MOST_BYTES, default=2**26)  # a longer document is bad input
    file_bytes: int = within(1, MOST_BYTES, default=2**36)  # a file that unpacks to more is bad input
    shard_tokens: int = within(1, 2**40, default=2**27)
    licence: str = ""  # noted in the manifest

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.valid_share + self.test_share >= 1:
            raise ConfigError(
                f"valid_share and test_share must leave something to train on; got {self.valid_share} and {self.test_share}"
            )
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error must be stop or skip, got {self.on_error!r}")
        if self.duplicates not in ("keep", "exact", "near"):
            raise ConfigError(f"duplicates must be keep, exact or near, got {self.duplicates!r}")
        if self.against and self.duplicates == "keep":
            raise ConfigError(
                "against takes duplicates out, and duplicates is keep; set it to exact or near, or leave against out"
            )
        if not self.paths:
            raise ConfigError("prepare needs at least one PATH: a file, a folder, a glob, builtin:NAME or hub:NAME")

    @property
    def bounds(self) -> Bounds:
        return Bounds(file_bytes=self.file_bytes, document_bytes=self.document_bytes)

    @cached_property
    def tokenizer_part(self) -> dict[str, Any]:
        """Return the tokenizer as a recipe names it."""
        part = self._tokenizer_kind()
        if self.boundary is not None and "path" not in part:
            raise ConfigError(
                f"the tokenizer {self.tokenizer} has its own boundary; leave --boundary out, which is for a tokenizer.json"
            )
        return part if self.boundary is None else {**part, "boundary": self.boundary}

    def _tokenizer_kind(self) -> dict[str, Any]:
        kind, colon, number = self.tokenizer.partition(":")
        if kind in _NUMBERED and colon:
            if not number.isdigit():
                raise ConfigError(f"--tokenizer {kind}:NUMBER needs a whole number, got {self.tokenizer!r}")
            return {"kind": kind, _NUMBERED[kind]: int(number)}
        if self.tokenizer in tokenizers.parts and not Path(self.tokenizer).exists():
            return {"kind": self.tokenizer}
        if not Path(self.tokenizer).exists():
            raise DataError(
                f"there is no tokenizer {self.tokenizer!r}; give bytes, integers:VOCABULARY, or the path of a "
                "tokenizer.json (`seedbed tokenizer train` makes one)"
            )
        return {"kind": "file", "path": str(Path(self.tokenizer).resolve())}

    def build_tokenizer(self) -> Tokenizer:
        """Return the tokenizer; the same one for every unit of a process, with what it remembers."""
        place = self.tokenizer_part.get("path")
        files = [] if place is None else [f for f in (Path(place), Path(place) / "tokenizer.json") if f.exists()]
        return _built(json.dumps(self.tokenizer_part), tuple(f.stat().st_mtime_ns for f in files))


@lru_cache(maxsize=1)
def _built(part: str, modified: tuple[int, ...]) -> Tokenizer:
    return tokenizers.parts.build(json.loads(part), path="tokenizer")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of the input: a file, a range of the lines of one, or a hub data set."""

    name: str
    path: str = ""  # empty: a hub data set
    size: int = 0
    modified: int = 0  # nanoseconds
    start: int = 0  # bytes of the file
    stop: int | None = None
    first_line: int = 1
    named: bool = True  # by its own path, and not found in a folder
    prepared: bool = False  # a prepared folder, whose documents are prepared anew


@dataclass(frozen=True, kw_only=True)
class Work:
    """What workers are given: the preparation, the units, and what the curating parts found out beforehand."""

    preparation: Preparation
    units: tuple[tuple[Piece, ...], ...]
    contamination: Contamination | None

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the shards' bytes, the input's sizes and times included."""
        facts = [asdict(self.preparation), [[asdict(p) for p in u] for u in self.units]]
        facts.append(self.contamination.fingerprint() if self.contamination else "")
        facts.append(self.preparation.build_tokenizer().fingerprint())
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What came of it; `manifest` is manifest.json."""

    folder: Path
    manifest: dict[str, Any]


def prepare(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    workers: int = 1,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Prepared:
    """Turn files into shards under `out` and return their manifest; `settings` as in `Preparation`.

    Raises DataError for input that cannot be read (`on_error="stop"`), RefusedError if `out` holds a finished preparation or
    the beginnings of another one, RunFailedError if a worker was killed; what was done is kept, the same call goes on.
    """
    check_range("workers", workers, WORKERS)
    say = heard_or_not(say)
    preparation = Preparation(paths=tuple(map(str, paths)), **settings)
    folder = Path(out)
    if os.path.lexists(folder) and not folder.is_dir():
        refuse_existing(folder)
    _refuse_finished(folder)
    look_at(preparation)
    work = plan(preparation)
    with locked(folder):
        _refuse_finished(folder)
        begin(folder, work)
        waiting = [n for n in range(len(work.units)) if not unit_folder(folder, n).is_dir()]
        if len(waiting) < len(work.units):
            say(f"going on: {len(work.units) - len(waiting)} of {len(work.units)} units are there")
        try:
            make_units(folder, work, waiting, workers=workers, say=say)
            return seal(folder, work, say=say)
        except OSError as e:
            raise RunFailedError(
                f"cannot write to {folder}: {e.strerror or e}; what was done is kept: mend that (free some space), and run the "
                "same command again"
            ) from e


def _refuse_finished(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder / WORK, ignore_errors=True)  # of a run that was killed after its last step
        raise RefusedError(
            f"{folder} holds a finished preparation and nothing is overwritten; give another --out, or remove it"
        )


def look_at(p: Preparation) -> None:
    """Raise DataError, before anything is read, for whatever was named and is not there."""
    for path in (*p.paths, *p.against, *p.decontaminate):
        if not path.startswith("hub:"):
            next(pieces_of(path), None)


# --- 1. Plan


def plan(preparation: Preparation) -> Work:
    """Return the units of the input. Reads large .jsonl files once, to find where their lines begin."""
    preparation.build_tokenizer().fingerprint()  # a tokenizer that cannot be read is found before anything else
    NearDuplicates(threshold=preparation.threshold)
    Length(least_bytes=preparation.least_bytes, most_bytes=preparation.most_bytes)
    units: list[tuple[Piece, ...]] = []
    group: list[Piece] = []
    grouped = 0  # bytes
    inside = told_apart(preparation.paths)
    for piece in (piece for path in preparation.paths for piece in pieces_of(path, inside=inside[path])):
        alone = not piece.path or piece.prepared or piece.stop is not None or piece.size >= UNIT_BYTES
        if group and (alone or grouped + piece.size > UNIT_BYTES):
            units.append(tuple(group))
            group, grouped = [], 0
        if alone:
            units.append((piece,))
        else:
            group.append(piece)
            grouped += piece.size
    if group:
        units.append(tuple(group))
    doubled = [name for name, n in Counter((p.name, p.start) for u in units for p in u).items() if n > 1]
    if doubled:
        raise ConfigError(
            f"{doubled[0][0]!r} is given twice (documents are known by their file's name below the given path); give it once"
        )
    found = None
    if preparation.decontaminate:
        apart = told_apart(preparation.decontaminate)
        sets = preparation.decontaminate
        texts = chain.from_iterable(evaluation_texts(path, preparation, inside=apart[path]) for path in sets)
        found = Decontaminate().index(texts)
    return Work(preparation=preparation, units=tuple(units), contamination=found)


def pieces_of(path: str, *, inside: str = "") -> Iterator[Piece]:
    """Yield a path's files in order, a large plain .jsonl as ranges of lines; names begin with the folder `inside`."""
    if path.startswith("hub:"):
        yield Piece(name=path)
        return
    if is_prepared(path):
        facts = (Path(path) / MANIFEST).stat()
        name = inside + shown(Path(path).absolute().name)
        yield Piece(name=name, path=str(Path(path).absolute()), modified=facts.st_mtime_ns, prepared=True)
        return
    for file in find_files(path):
        facts = file.path.stat()
        whole = Piece(
            name=inside + file.name,
            path=str(file.path.absolute()),
            size=facts.st_size,
            modified=facts.st_mtime_ns,
            named=file.named,
        )
        ranges = (
            line_ranges(file, UNIT_BYTES)
            if file.path.suffix in (".jsonl", ".ndjson") and facts.st_size > 2 * UNIT_BYTES
            else []
        )
        yield from (replace(whole, start=r.start, stop=r.stop, first_line=r.first_line) for r in ranges) if ranges else (whole,)


def told_apart(paths: Sequence[str]) -> dict[str, str]:
    """Return, for every path, as many of the folders that it lies in as tell it from others of the same last name.

    >>> told_apart(["y1/data.txt", "y2/data.txt", "more.txt"])
    {'y1/data.txt': 'y1/', 'y2/data.txt': 'y2/', 'more.txt': ''}
    """
    known = {path: Path(os.path.abspath(os.path.expanduser(path))) for path in paths if not re.match(r"[a-z]+:", path)}
    found = dict.fromkeys(paths, "")
    for path, place in known.items():
        others = [o for o in known.values() if o != place and o.name == place.name]
        depth = next((n for n in range(1, len(place.parts)) if all(o.parts[-n:] != place.parts[-n:] for o in others)), 1)
        found[path] = "".join(f"{shown(part)}/" for part in place.parts[-depth:-1] if part != os.sep)
    return found


def evaluation_texts(path: str, p: Preparation, *, inside: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name of the set's file, text) for every text that an evaluation set holds: of files, all of their strings."""
    if path.startswith("hub:") or is_prepared(path):
        yield from ((path if path.startswith("hub:") else inside + Path(path).name, d.text) for d in _other_documents(path, p))
        return
    for file in find_files(path):
        for _, text in read_strings(file, p.bounds):
            yield inside + file.name, text


# --- 2. Units


def begin(folder: Path, work: Work) -> None:
    """Note in the folder what is being prepared. Raises RefusedError if it holds the beginnings of something else."""
    note = folder / WORK / "plan.json"
    facts = {"fingerprint": work.fingerprint(), "units": len(work.units)}
    if note.is_file():
        known = read_json(note, advice=f"remove {folder}, or give another --out")
        if known != facts and any(note.parent.glob("unit-*")):
            raise RefusedError(
                f"{folder} holds the beginnings of another preparation, or the input changed since; remove "
                "it, or give another --out"
            )
        if known != facts:  # of one that ended before its first unit: there is nothing to lose
            write_json(note, facts)
    elif any(p.name not in (".lock", WORK) for p in folder.iterdir()):
        raise RefusedError(f"{folder} is not empty and holds no preparation; nothing is overwritten: give another --out")
    else:
        write_json(note, facts)


def unit_folder(folder: Path, number: int) -> Path:
    return folder / WORK / f"unit-{number:06d}"


def make_units(folder: Path, work: Work, numbers: Sequence[int], *, workers: int, say: Callable[[str], None]) -> None:
    """Make the units that are asked for, in this process or side by side."""
    if workers == 1 or len(numbers) < 2:
        for number in numbers:
            make_unit(folder, work, number)
            say(f"unit {number + 1} of {len(work.units)}")
        return
    with worker_pool(min(workers, len(numbers)), _keep, folder, work) as pool:
        running: set[Future[int]] = set()
        waiting = list(reversed(numbers))
        try:
            while running or waiting:
                while waiting and len(running) < 2 * workers:
                    running.add(pool.submit(_make_numbered, waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    say(f"unit {future.result() + 1} of {len(work.units)}")
        except BrokenProcessPool:
            raise RunFailedError(
                "a worker was killed (out of memory?); what was done is kept: run the same command again, "
                "perhaps with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_given: tuple[Path, Work] | None = None  # of a worker process, set once


def _keep(folder: Path, work: Work) -> None:
    """Keep what every unit needs: a pool hands its workers nothing but arguments."""
    global _given  # noqa: PLW0603
    _given = (folder, work)


def _make_numbered(number: int) -> int:
    assert _given is not None
    make_unit(*_given, number)
    return number


def make_unit(folder: Path, work: Work, number: int) -> None:
    """Read, check, tokenize and write one unit; it is there as a whole afterwards, or not at all."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # units are what runs side by side
    p = work.preparation
    tokenizer = p.build_tokenizer()
    length = Length(least_bytes=p.least_bytes, most_bytes=p.most_bytes)
    near = NearDuplicates(threshold=p.threshold)
    dropped: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    checked = lossless = 0

    def skip(bad: BadInput) -> None:
        dropped.append({"reason": bad.reason, "detail": str(bad)})

    with whole_folder(unit_folder(folder, number)) as place:
        writer = ShardWriter(place, "unit", dtype=token_dtype(tokenizer.vocab_size))
        with (place / "signatures.bin").open("wb") as signatures:
            for piece in work.units[number]:
                before = writer.documents
                read = _read(piece, p, skip=skip if p.on_error == "skip" else None, passed=skip)
                documents = _kept(read, work, length, p, dropped)
                for batch in _batches(documents):
                    batch, ids = _encoded(batch, tokenizer, skip=skip if p.on_error == "skip" else None)
                    writer.add(*_records(batch, ids, boundary_id=tokenizer.boundary_id))
                    for (document, _), ids_T in zip(batch, ids, strict=True):
                        if checked < _LOSSLESS_CHECKED:
                            checked += 1
                            lossless += tokenizer.decode(ids_T) == document.text
                        if p.duplicates == "near":
                            signatures.write(near.signature(document.text).tobytes())
                files.append({"name": piece.name, "size": piece.size, "documents": writer.documents - before})
        entry = writer.close()
        facts = {"entry": entry, "dropped": dropped, "files": files, "checked": checked, "lossless": lossless}
        (place / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _encoded(
    batch: list[tuple[Document, int]], tokenizer: Tokenizer, *, skip: Callable[[BadInput], None] | None
) -> tuple[list[tuple[Document, int]], list[np.ndarray]]:
    """Return documents with their ids; one that the tokenizer cannot take is raised, or skipped, by its name."""
    try:
        return batch, tokenizer.encode_batch([d.text for d, _ in batch])
    except DataError:
        kept, ids = [], []
    for document, rank in batch:
        try:
            ids.append(tokenizer.encode(document.text))
            kept.append((document, rank))
        except DataError as e:
            advice = "leave the document out (--on-error skip), or take another tokenizer"
            bad = BadInput(file=document.id, reason="not to be tokenized", problem=str(e), advice=advice)
            if skip is None:
                raise bad from None
            skip(bad)
    return kept, ids


def _read(
    piece: Piece,
    p: Preparation,
    *,
    skip: Callable[[BadInput], None] | None,
    passed: Callable[[BadInput], None] | None = None,
) -> Iterator[Document]:
    settings: dict[str, Any] = {"text_key": p.text_key, "meta": p.meta or {}, "bounds": p.bounds, "skip": skip}
    if not piece.path:
        return hub_documents(piece.name, **settings)
    if piece.prepared:
        return prepared_documents(piece.path)
    file = FoundFile(
        path=Path(piece.path),
        name=piece.name,
        start=piece.start,
        stop=piece.stop,
        first_line=piece.first_line,
        named=piece.named,
    )
    return read_documents(file, passed=passed, **settings)


def _kept(
    documents: Iterable[Document], work: Work, length: Length, p: Preparation, dropped: list[dict[str, Any]]
) -> Iterator[tuple[Document, int]]:
    """Yield what is kept with the rank of the document that it is a section of; note the rest."""
    for whole in documents:
        rank = content_key(whole.text)[0]
        for document in sections(whole, p.section_bytes):
            reason, detail = length(document), ""
            match = work.contamination.found(document.text) if work.contamination and not reason else None
            if match is not None:
                reason, detail = f"{match.kind} of an evaluation set", f"{match.evaluation}: {match.words}"
            if reason:
                dropped.append({"id": document.id, "reason": reason, "detail": detail})
            else:
                yield document, rank


def _batches(documents: Iterable[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    batch: list[tuple[Document, int]] = []
    size = 0
    for pair in documents:
        batch.append(pair)
        size += len(pair[0].text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _records(
    batch: Sequence[tuple[Document, int]], ids: Sequence[np.ndarray], *, boundary_id: int
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Return what a ShardWriter takes: ids with boundaries, DOCUMENT records, lines."""
    records_N = np.zeros(len(batch), DOCUMENT)
    boundary = np.array([boundary_id], np.int32)
    lines = []
    for n, (document, rank) in enumerate(batch):
        line: dict[str, Any] = {"id": document.id}
        if document.meta:
            line["meta"] = dict(document.meta)
        if document.turns:
            line["turns"] = [[t.speaker, len(str(t))] for t in document.turns]
        lines.append(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")
        records_N[n]["bytes"] = len(document.text.encode())
        seconds = document.meta.get("seconds", 0)
        records_N[n]["milliseconds"] = round(1000 * seconds) if isinstance(seconds, int | float) and 0 < seconds < 1e9 else 0
        records_N[n]["rank"] = rank
        records_N[n]["key"] = content_key(document.text)
    records_N["end"] = np.cumsum([len(x) + 1 for x in ids])
    records_N["line"] = np.cumsum([len(x) for x in lines])
    return np.concatenate([y for x in ids for y in (boundary, x)]), records_N, b"".join(lines)


# --- 3. Seal


def seal(folder: Path, work: Work, *, say: Callable[[str], None]) -> Prepared:
    """Turn the units into shards and write the manifest. Raises DataError if nothing is left."""
    p, tokenizer = work.preparation, work.preparation.build_tokenizer()
    dtype = token_dtype(tokenizer.vocab_size)
    places = [unit_folder(folder, n) for n in range(len(work.units))]
    facts = [read_object(place / "facts.json", advice=f"remove {place} and run the same command again") for place in places]
    reasons = _duplicates(folder, work, places)
    dropped = Counter(d["reason"] for f in facts for d in f["dropped"])
    final = folder / WORK / "shards"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir(parents=True)
    writers = {split: _Rolling(final, split, dtype=dtype, most_tokens=p.shard_tokens) for split in SPLITS}
    first = 0
    with (final / "dropped.jsonl").open("w", encoding="utf-8", errors="surrogateescape") as listed:
        for place, f in zip(places, facts, strict=True):
            _refuse_damage(place, f["entry"])
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
    shards = [{"split": split, **entry} for split in SPLITS for entry in writers[split].close()]
    if not sum(e["documents"] for e in shards):
        why = ", ".join(f"{reason}: {n}" for reason, n in sorted(dropped.items())) or "the files are empty"
        raise DataError(
            f"{', '.join(p.paths)} leaves no document ({why}); give other files, or loosen what leaves documents out"
        )
    for name, raw in tokenizer.files().items():
        write_whole(final / name, raw)
    beside = {f.name: f for f in sorted(final.iterdir()) if f.suffix not in SUFFIXES or f.name == "dropped.jsonl"}
    files: dict[str, dict[str, Any]] = {}
    for entry in (e for f in facts for e in f["files"]):
        known = files.setdefault(entry["name"], {**entry, "documents": 0})
        known["documents"] += entry["documents"]
    checked, lossless = (sum(f[k] for f in facts) for k in ("checked", "lossless"))
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
        "dtype": dtype.str,
        "tokenizer": {
            "part": {**p.tokenizer_part, **({"path": "."} if "path" in p.tokenizer_part else {})},
            "fingerprint": tokenizer.fingerprint(),
            "vocab_size": tokenizer.vocab_size,
            "boundary_id": tokenizer.boundary_id,
            "lossless": f"{lossless} of {checked} documents looked at",
        },
        "made_by": {"seedbed": __version__, **_shown(p)},
        "licence": p.licence,
        "evaluation_texts_too_short": work.contamination.short_texts if work.contamination else 0,
        "files": list(files.values()),
        "files_beside": {name: {"size": f.stat().st_size, "sha256": file_hash(f)} for name, f in beside.items()},
        "shards": shards,
    }
    manifest["sha256"] = manifest_hash(json.loads(json.dumps(manifest)))
    sync_folder(final)
    for file in sorted(final.iterdir()):
        os.replace(file, folder / file.name)
    sync_folder(folder)
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    splits = ", ".join(f"{s} {manifest['splits'][s]['documents']:,}" for s in SPLITS)
    say(
        f"{manifest['documents']:,} documents ({splits}), {manifest['tokens']:,} tokens, "
        f"{manifest['bytes']:,} bytes in {folder}"
    )
    for reason, n in manifest["dropped"].items():
        say(f"left out, {reason}: {n:,} (see dropped.jsonl)")
    if lossless < checked:
        say(
            f"note: the tokenizer gave {checked - lossless} of {checked} documents back changed; `seedbed "
            "tokenizer check` shows where"
        )
    return Prepared(folder=folder, manifest=manifest)


_REASONS = {1: "exact duplicate", 2: "near duplicate"}


def _refuse_damage(place: Path, entry: Mapping[str, Any]) -> None:
    """Raise DataError if a unit is not what was written, as a disk or a shared folder may have it."""
    for suffix in SUFFIXES:
        if file_hash(place / f"unit{suffix}") != entry["sha256"][suffix]:
            raise DataError(
                f"{place / 'unit'}{suffix} was altered since it was written; remove {place} and run the same command again"
            )


def _duplicates(folder: Path, work: Work, places: Sequence[Path]) -> np.ndarray:
    """Return for every document 0 (kept) or a key of _REASONS. Only what stands before a document can leave it out."""
    p = work.preparation
    mine = [np.fromfile(place / "unit.idx", DOCUMENT)["key"] for place in places]
    if p.duplicates == "keep":
        return np.zeros(sum(map(len, mine)), np.int8)
    near = NearDuplicates(threshold=p.threshold)
    stacked = folder / WORK / "signatures.bin"
    theirs: list[tuple[int, int]] = []
    with stacked.open("wb") as file:
        for path in p.against:
            stored = _stored_keys(path)
            theirs += stored
            for document in _other_documents(path, p) if p.duplicates == "near" or not stored else ():
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
    return reasons[len(theirs) :]


def _stored_keys(path: str) -> list[tuple[int, int]]:
    """Return the keys of a prepared folder's documents, of their texts as they were read; nothing for other corpora."""
    if not (Path(path) / MANIFEST).is_file():
        return []
    names = [(split, e["name"]) for split in SPLITS for e in read_manifest(Path(path))["shards"] if e["split"] == split]
    return [tuple(k) for _, name in names for k in np.fromfile(Path(path) / f"{name}.idx", DOCUMENT)["key"].tolist()]


def _other_documents(path: str, p: Preparation) -> Iterator[Document]:
    """Yield the documents of another corpus: of a prepared folder, or of files."""
    if is_prepared(path):
        yield from prepared_documents(path, changed_too=True)
        return
    for whole in documents_of(path, p):
        yield from sections(whole, p.section_bytes)


def documents_of(path: str, p: Preparation) -> Iterator[Document]:
    """Yield the documents that a path names, as they are read for a preparation; of a prepared folder those of all sides."""
    for piece in pieces_of(path):
        yield from _read(piece, p, skip=None)


def is_prepared(path: str) -> bool:
    """Whether a path is a folder that `seedbed prepare` wrote."""
    place = Path(os.path.expanduser(path))
    return os.path.isfile(place / MANIFEST) and is_shards(place)


def prepared_documents(path: str, *, changed_too: bool = False) -> Iterator[Document]:
    """Yield the documents of a prepared folder, side by side, under the names that they have there.

    Raises DataError, unless those may come too, for one whose text the folder's tokenizer changed.
    """
    shards = Shards(path=os.path.expanduser(path))
    store = shards.store(tokenizers.parts.build(shards.tokenizer_spec()))
    for split in SPLITS:
        for document in store.documents(split):
            if document.data["changed"] and not changed_too:
                raise DataError(
                    f"{path}: the text of {document.id} was changed by the tokenizer with which the folder was prepared, so it "
                    "is not there any more; give the files that it was prepared from"
                )
            yield replace(document, data={})


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
    for name in ("paths", "against", "decontaminate"):
        facts[name] = [x if ":" in x.split("/")[0] else Path(x).name for x in facts[name]]
    facts["tokenizer"] = Path(p.tokenizer).name if "path" in p.tokenizer_part else p.tokenizer
    return facts


def validate_folder(folder: Path) -> dict[str, Any]:
    """Hash every file of a prepared folder again. Raises DataError naming all that are missing or altered."""
    from seedbed.sources.shards import damage

    problems = damage(folder)
    if problems:
        raise DataError(f"{'; '.join(problems)}; put them back or prepare the folder again")
    manifest = read_manifest(folder)
    return {"ok": True, "shards": len(manifest["shards"]), "documents": manifest["documents"], "tokens": manifest["tokens"]}
