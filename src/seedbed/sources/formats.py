"""Files as documents, read as a stream: text and code, .jsonl, .json, .csv and .tsv, .parquet, each also packed.

One document is held in memory, never a file. Lines end at "\\n" and are counted from 1; a byte order mark is dropped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from seedbed.core.errors import nearest
from seedbed.core.records import Document
from seedbed.sources.fields import DIALOGUES, Record, document, no_text, strings_of, text_column
from seedbed.sources.files import LANGUAGES, BadInput, Bounds, FoundFile, kind_of, packing_of
from seedbed.sources.json_text import json_records
from seedbed.sources.lines import Line, jsonl_records, table_records
from seedbed.sources.parquet import parquet_records
from seedbed.sources.unpack import BLOCK, open_file, read_whole

Skip = Callable[[BadInput], None]
_JSON = {".jsonl": jsonl_records, ".ndjson": jsonl_records, ".json": json_records}
_TABLES = (".csv", ".tsv", ".parquet")
_RECORDS = (*_JSON, *_TABLES)


def read_documents(
    file: FoundFile,
    *,
    text_key: str = "text",
    meta: Mapping[str, str] = {},  # new name: the name in the record
    bounds: Bounds = Bounds(),
    skip: Skip | None = None,
    passed: Skip | None = None,
) -> Iterator[Document]:
    """Give the documents of a file: a text or code file is one, every other file has one a record.

    Ids are the file's name, and the line where the record starts (in .json and .parquet the record's number) behind a colon.
    The first BadInput is raised; with `skip` it is called instead and reading goes on behind the bad record, or ends if the
    file itself is bad. Empty documents are left out; `skip` hears of them too. A .json that nobody named, but that lies in a
    folder and is one object without text (package.json and the like), is no bad input: it is passed over, `passed` hears of it.
    """
    kind = kind_of(file.path)
    if kind not in _RECORDS:
        text_key, meta = "text", {}
    asked = (text_key, *(DIALOGUES if text_key == "text" else ()), *meta.values())
    items = _items(file, bounds, text_key=text_key, meta=tuple(meta.values()), keys=asked)
    if kind == ".json" and not file.named:
        items = _but_settings(items, text_key, passed)
    yield from documents_of(items, text_key=text_key, meta=meta, bounds=bounds, skip=skip, table=kind in _TABLES)


def documents_of(
    items: Iterable[Record | BadInput],
    *,
    text_key: str,
    meta: Mapping[str, str],
    bounds: Bounds,
    skip: Skip | None,
    table: bool = False,  # all records have the same columns, so what one lacks is said once
) -> Iterator[Document]:
    """Give records as documents; what is wrong is raised or skipped as `read_documents` says."""

    def report(bad: BadInput) -> None:
        if skip is not None:
            skip(bad)
        elif bad.reason != "empty":
            raise bad

    for item in items:
        if isinstance(item, BadInput):
            report(item)
            continue
        if table and text_column(item.fields, text_key) is None:
            report(no_text(item, item.fields, text_key))
            return
        if table and (lacking := [old for old in meta.values() if old not in item.fields]):
            hint = f"{nearest(lacking[0], item.fields)} (mend meta)"
            report(item.bad("no such column", problem=f"meta asks for the column {lacking[0]!r}", advice=hint))
        table = False
        try:
            made = document(item, text_key=text_key, meta=meta, bounds=bounds)
        except BadInput as bad:
            report(bad)
        else:
            yield made


def _but_settings(items: Iterator[Record | BadInput], text_key: str, passed: Skip | None) -> Iterator[Record | BadInput]:
    """Give a file's items, but none of a file that is one object without text: settings, not records."""
    first = next(items, None)
    second = next(items, None)
    only = first is not None and second is None and isinstance(first, Record) and isinstance(first.fields, dict)
    if only and isinstance(first, Record) and text_column(first.fields, text_key) is None:
        if passed is not None:
            advice = "name the file itself if it is a record, and the key that holds its text"
            passed(first.bad("no records", problem=f"it is one object without {text_key!r}", advice=advice))
        return
    yield from (item for item in (first, second) if item is not None)
    yield from items


def read_strings(file: FoundFile, bounds: Bounds = Bounds()) -> Iterator[tuple[str, str]]:
    """Give every text of every record with the record's id, whatever its key. Raises the first BadInput."""
    for item in _items(file, bounds, text_key=None, meta=(), keys=None):
        if isinstance(item, BadInput):
            raise item
        fields = item.fields if kind_of(file.path) in _RECORDS else item.fields["text"]
        yield from ((item.id, text) for text in strings_of(fields))


def _items(
    file: FoundFile, bounds: Bounds, *, text_key: str | None, meta: tuple[str, ...], keys: tuple[str, ...] | None
) -> Iterator[Record | BadInput]:
    """The file's records, and what is wrong: a bad record is an item among others, a bad file is the last one.

    A table has every column once; of another record that is so of its `keys` (None: of all).
    """
    kind = kind_of(file.path)
    try:
        if kind == ".parquet":
            yield from parquet_records(file, bounds, text_key=text_key, meta=meta)
        elif kind in _JSON:
            yield from _JSON[kind](file, bounds, once=keys)
        else:
            yield from (table_records if kind in _RECORDS else _whole)(file, bounds)
    except BadInput as bad:
        yield bad


def _whole(file: FoundFile, bounds: Bounds) -> Iterator[Record]:
    text = Line(1, 0, read_whole(file, bounds)).without_mark().decoded(file)
    language = {"language": LANGUAGES[kind]} if (kind := kind_of(file.path)) in LANGUAGES else {}
    yield Record({"text": text, **language}, id=file.name, file=file.name)


def line_ranges(file: FoundFile, range_bytes: int) -> list[FoundFile]:
    """Return a plain .jsonl as ranges of whole lines, about `range_bytes` each; any other file is one range.

    The file is read through once to count its lines; read one after the other, the ranges give the documents of the file.
    """
    if packing_of(file.path) or _JSON.get(kind_of(file.path)) is not jsonl_records:
        return [file]
    ranges, start, line = [], 0, 1
    unbounded = Bounds(file_bytes=2**62)  # the file is as large as it is; nothing is unpacked
    with open_file(file.path, unbounded, name=file.name) as opened:
        while block := opened.read(min(BLOCK, range_bytes)):
            stop, lines = start, 0
            while block:
                stop, lines = stop + len(block), lines + block.count(b"\n")
                full = stop - start >= range_bytes
                if full and block.endswith(b"\n"):
                    break
                block = opened.readline(BLOCK) if full else opened.read(min(BLOCK, range_bytes - (stop - start)))
            ranges.append(replace(file, start=start, stop=stop, first_line=line))
            start, line = stop, line + lines
    return ranges
