"""Units: the input cut into pieces that depend on it alone, each read, curated, tokenized and written, side by side.

A unit is there as a whole or not at all, and its bytes are the same for any number of workers.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from seedbed.core.durable import whole_folder, write_json
from seedbed.core.errors import ConfigError, DataError, RefusedError, RunFailedError
from seedbed.core.json_files import read_json
from seedbed.core.protocols import Helper, Refiner, Tokenizer
from seedbed.core.records import Document, Drop, Keep, Rewrite
from seedbed.core.registry import calling, code_of
from seedbed.core.workers import worker_pool
from seedbed.curate.decontaminate import Contamination
from seedbed.experiments.prepare import inputs
from seedbed.experiments.prepare.inputs import Piece, evaluation_texts, pieces_of, read, states_of, told_apart
from seedbed.experiments.prepare.lending import spent
from seedbed.experiments.prepare.preparation import Preparation
from seedbed.sources.files import BadInput
from seedbed.sources.shards import DOCUMENT, ShardWriter, content_key, file_hash, token_dtype
from seedbed.sources.text import sections, side

WORK = ".work"
ORIGINALS = "originals.bin"
# One line of it a document that was read and not dropped by what cleans all sides: duplicates are found among these, so that
# no refiner of training documents changes which documents the other sides have.
ORIGINAL = np.dtype([("key", "<u8", (2,)), ("written", "u1")])
_BATCH_BYTES, _BATCH_DOCUMENTS = 2**20, 1024  # tokenized at one time
_LOSSLESS_CHECKED = 20  # documents a unit whose ids are decoded again


@dataclass(frozen=True, kw_only=True)
class Work:
    """What workers are given: the preparation, the units, and what cleans documents, with what it found out beforehand."""

    preparation: Preparation
    units: tuple[tuple[Piece, ...], ...]
    cleaning: tuple[Refiner, ...]

    @property
    def contamination(self) -> Contamination | None:
        return next((x for x in self.cleaning if isinstance(x, Contamination)), None)

    @cached_property
    def refiners(self) -> list[Refiner]:
        """What training documents go through, opened in this process."""
        return [refiner.opened(partial(_texts, self.preparation)) for refiner in self.preparation.refiners]

    @cached_property
    def lent(self) -> dict[str, Helper]:
        return self.preparation.lending.opened()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what each process opens for itself."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the shards' bytes, the input's sizes and times included."""
        facts = [asdict(self.preparation), [[asdict(p) for p in u] for u in self.units]]
        facts.append(self.contamination.fingerprint() if self.contamination else "")
        facts.append(self.preparation.build_tokenizer().fingerprint())
        facts += [code_of(self.preparation.refine), self.preparation.lending.fingerprints()]
        facts.append(states_of(path for path in self.preparation.reads if path not in self.preparation.paths))
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A document as it was read, and what is written in its place: itself, another text, or nothing."""

    original: Document
    document: Document | None
    rank: int  # of the whole that it is a section of: decides its side


def _texts(p: Preparation, path: str) -> list[tuple[str, str]]:
    return list(evaluation_texts(path, p))


def plan(preparation: Preparation) -> Work:
    """Return the units of the input. Reads large .jsonl files once, to find where their lines begin."""
    preparation.build_tokenizer().fingerprint()  # a tokenizer that cannot be read is found before anything else
    units: list[tuple[Piece, ...]] = []
    group: list[Piece] = []
    grouped = 0  # bytes
    inside = told_apart(preparation.paths)
    for piece in (piece for path in preparation.paths for piece in pieces_of(path, inside=inside[path])):
        alone = not piece.path or piece.prepared or piece.stop is not None or piece.size >= inputs.UNIT_BYTES
        if group and (alone or grouped + piece.size > inputs.UNIT_BYTES):
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
    apart = told_apart(preparation.decontaminate)
    cleaning = tuple(
        part.opened(lambda path: evaluation_texts(path, preparation, inside=apart[path])) for part in preparation.cleaning
    )
    return Work(preparation=preparation, units=tuple(units), cleaning=cleaning)


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
    with whole_folder(unit_folder(folder, number)) as place:
        (place / "facts.json").write_text(json.dumps(_Unit(place, work).made(work.units[number])), encoding="utf-8")


class _Unit:
    """One unit while it is made in a folder."""

    def __init__(self, place: Path, work: Work) -> None:
        self._place, self._work, self._p = place, work, work.preparation
        self._tokenizer, self._near = self._p.build_tokenizer(), self._p.near
        self._dropped: list[dict[str, Any]] = []
        self._rewritten: Counter[str] = Counter()
        self._checked = self._lossless = 0

    def made(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Write the unit and return what is said of it."""
        began = perf_counter()
        writer = ShardWriter(self._place, "unit", dtype=token_dtype(self._tokenizer.vocab_size))
        files: list[dict[str, Any]] = []
        with (self._place / ORIGINALS).open("wb") as originals, (self._place / "signatures.bin").open("wb") as signatures:
            for piece in pieces:
                before = writer.documents
                documents = read(piece, self._p, skip=self._skip_if_asked, passed=self._skip)
                for batch in _batches(self._candidates(documents)):
                    batch, ids = _encoded(batch, self._tokenizer, skip=self._skip_if_asked)
                    writer.add(*_records(batch, ids, boundary_id=self._tokenizer.boundary_id))
                    self._look_at(batch, ids)
                    originals.write(_originals(batch))
                    if self._p.duplicates == "near":
                        for candidate in batch:
                            signatures.write(self._near.signature(candidate.original.text).tobytes())
                files.append({"name": piece.name, "size": piece.size, "documents": writer.documents - before})
        cost = replace(spent(self._work.lent), seconds=perf_counter() - began)
        return {
            "entry": writer.close(),
            "originals": file_hash(self._place / ORIGINALS),
            "dropped": self._dropped,
            "rewritten": self._rewritten,
            "files": files,
            "checked": self._checked,
            "lossless": self._lossless,
            "cost": asdict(cost),
        }

    def _skip(self, bad: BadInput) -> None:
        self._dropped.append({"reason": bad.reason, "detail": str(bad)})

    @property
    def _skip_if_asked(self) -> Callable[[BadInput], None] | None:
        return self._skip if self._p.on_error == "skip" else None

    def _candidates(self, documents: Iterable[Document]) -> Iterator[Candidate]:
        """Yield what is left by the parts that clean all sides, each with what refiners make of it; note the rest."""
        for whole in documents:
            rank = content_key(whole.text)[0]
            train = side(rank / 2**64, valid_share=self._p.valid_share, test_share=self._p.test_share) == "train"
            for document in sections(whole, self._p.section_bytes):
                if self._through(document, self._work.cleaning) is not None:
                    refined = self._through(document, self._work.refiners) if train else document
                    yield Candidate(original=document, document=refined, rank=rank)

    def _through(self, document: Document, refiners: Iterable[Refiner]) -> Document | None:
        """Return what refiners make of a document, one after the other; None if one drops it."""
        for refiner in refiners:
            with calling(refiner, document.id):
                verdict = refiner(document, lent={name: self._work.lent[name] for name in refiner.calls})
            replaced = verdict.document if isinstance(verdict, Rewrite) else document
            if not (isinstance(verdict, Keep | Drop | Rewrite) and isinstance(replaced, Document)):
                raise ConfigError(
                    f"{type(refiner).__name__} returned {verdict!r:.80} for {document.id}; return Keep(), Drop(reason) or "
                    "Rewrite(document, reason) with a whole Document (dataclasses.replace(document, text=...))"
                )
            if isinstance(verdict, Drop):
                self._dropped.append({"id": document.id, "reason": verdict.reason, "detail": verdict.detail})
                return None
            if isinstance(verdict, Rewrite):
                self._rewritten[verdict.reason] += 1
                document = replace(replaced, id=document.id)
        return document

    def _look_at(self, batch: Sequence[Candidate], ids: Sequence[np.ndarray]) -> None:
        """Decode the first documents again, to see whether the tokenizer loses something."""
        written = [c.document.text for c in batch if c.document is not None]
        for text, ids_T in zip(written, ids, strict=True):
            if self._checked < _LOSSLESS_CHECKED:
                self._checked += 1
                self._lossless += self._tokenizer.decode(ids_T) == text


def _encoded(
    batch: list[Candidate], tokenizer: Tokenizer, *, skip: Callable[[BadInput], None] | None
) -> tuple[list[Candidate], list[np.ndarray]]:
    """Return candidates, and the ids of those that are written; one that the tokenizer cannot take is raised, or skipped."""
    try:
        return batch, tokenizer.encode_batch([c.document.text for c in batch if c.document is not None])
    except DataError:
        kept, ids = [], []
    for candidate in batch:
        if candidate.document is None:
            kept.append(candidate)
            continue
        try:
            ids.append(tokenizer.encode(candidate.document.text))
            kept.append(candidate)
        except DataError as e:
            advice = "leave the document out (--on-error skip), or take another tokenizer"
            bad = BadInput(file=candidate.document.id, reason="not to be tokenized", problem=str(e), advice=advice)
            if skip is None:
                raise bad from None
            skip(bad)
    return kept, ids


def _batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    batch: list[Candidate] = []
    size = 0
    for candidate in candidates:
        batch.append(candidate)
        size += len(candidate.original.text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _originals(batch: Sequence[Candidate]) -> bytes:
    lines_N = np.zeros(len(batch), ORIGINAL)
    for n, candidate in enumerate(batch):
        lines_N[n] = (content_key(candidate.original.text), candidate.document is not None)
    return lines_N.tobytes()


def _records(
    batch: Sequence[Candidate], ids: Sequence[np.ndarray], *, boundary_id: int
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Return what a ShardWriter takes: ids with boundaries, DOCUMENT records, lines."""
    written = [(c.document, c.rank) for c in batch if c.document is not None]
    records_N = np.zeros(len(written), DOCUMENT)
    boundary = np.array([boundary_id], np.int32)
    lines = []
    for n, (document, rank) in enumerate(written):
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
    stream = [np.empty(0, np.int32), *(y for x in ids for y in (boundary, x))]
    return np.concatenate(stream), records_N, b"".join(lines)
