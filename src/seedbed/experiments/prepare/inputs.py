"""What is read: the pieces of files that paths name, and the documents in them."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seedbed import tokenizers
from seedbed.core.errors import DataError
from seedbed.core.records import Document
from seedbed.experiments.prepare.preparation import Preparation
from seedbed.sources.files import BadInput, FoundFile, find_files, shown
from seedbed.sources.formats import line_ranges, read_documents, read_strings
from seedbed.sources.hub import hub_documents
from seedbed.sources.shards import DOCUMENT, MANIFEST, SPLITS, Shards, is_shards, read_manifest
from seedbed.sources.text import sections

UNIT_BYTES = 2**23  # small files go together up to this size; a larger plain .jsonl is cut into ranges of about this size


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


def look_at(p: Preparation) -> None:
    """Raise DataError, before anything is read, for whatever was named and is not there."""
    for path in p.reads:
        if not path.startswith("hub:"):
            next(pieces_of(path), None)


def states_of(paths: Iterable[str]) -> dict[str, list[int]]:
    """Return size and time of every file below paths, by its place; of a prepared folder those of its manifest."""
    found: dict[str, list[int]] = {}
    for path in paths:
        if path.startswith("hub:"):
            continue
        files = [Path(path) / MANIFEST] if is_prepared(path) else [file.path for file in find_files(path)]
        found |= {str(file.absolute()): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    return found


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


def read(
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


def stored_keys(path: str) -> list[tuple[int, int]]:
    """Return the keys of a prepared folder's documents, of their texts as they were read; nothing for other corpora."""
    if not (Path(path) / MANIFEST).is_file():
        return []
    names = [(split, e["name"]) for split in SPLITS for e in read_manifest(Path(path))["shards"] if e["split"] == split]
    return [tuple(k) for _, name in names for k in np.fromfile(Path(path) / f"{name}.idx", DOCUMENT)["key"].tolist()]


def other_documents(path: str, p: Preparation) -> Iterator[Document]:
    """Yield the documents of another corpus: of a prepared folder, or of files."""
    if is_prepared(path):
        yield from prepared_documents(path, changed_too=True)
        return
    for whole in documents_of(path, p):
        yield from sections(whole, p.section_bytes)


def documents_of(path: str, p: Preparation) -> Iterator[Document]:
    """Yield the documents that a path names, as they are read for a preparation; of a prepared folder those of all sides."""
    for piece in pieces_of(path):
        yield from read(piece, p, skip=None)


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


def evaluation_texts(path: str, p: Preparation, *, inside: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name of the set's file, text) for every text that an evaluation set holds: of files, all of their strings."""
    if path.startswith("hub:") or is_prepared(path):
        yield from ((path if path.startswith("hub:") else inside + Path(path).name, d.text) for d in other_documents(path, p))
        return
    for file in find_files(path):
        for _, text in read_strings(file, p.bounds):
            yield inside + file.name, text
