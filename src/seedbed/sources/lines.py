"""Files of lines as records: .jsonl has one a line, .csv and .tsv may spread one over several where a field is quoted."""

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seedbed.sources.fields import Record
from seedbed.sources.files import BadInput, Bounds, FoundFile, kind_of, too_long
from seedbed.sources.unpack import BLOCK, open_file


@dataclass(frozen=True)
class Line:
    """A line as bytes; `byte` is where it starts in the unpacked file."""

    number: int
    byte: int
    raw: bytes

    def without_mark(self) -> "Line":
        """The line without the byte order mark that some editors write at the start of a file."""
        mark = codecs.BOM_UTF8
        return Line(self.number, len(mark), self.raw[len(mark) :]) if self.raw.startswith(mark) else self

    def decoded(self, file: FoundFile) -> str:
        """The text. Raises BadInput that names the byte, and its line should there be several."""
        try:
            return self.raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise BadInput(
                file=file.name,
                reason="invalid UTF-8",
                problem=f"the value 0x{self.raw[e.start]:02x} is not UTF-8 here",
                advice="convert the file to UTF-8",
                line=self.number + self.raw.count(b"\n", 0, e.start),
                byte=self.byte + e.start,
            ) from None


def lines_of(file: FoundFile, bounds: Bounds) -> Iterator[Line | BadInput]:
    """Give the lines of a file or of a range of it; in the place of one that is too long, what is wrong."""
    number, byte = file.first_line - 1, file.start
    with open_file(file.path, bounds, name=file.name, start=file.start) as opened:
        while (file.stop is None or byte < file.stop) and (raw := opened.readline(bounds.document_bytes + 1)):
            number += 1
            if len(raw) > bounds.document_bytes and not raw.endswith(b"\n"):
                yield too_long(file.name, bounds, line=number, byte=byte)
                while raw and not raw.endswith(b"\n"):
                    byte += len(raw)
                    raw = opened.readline(BLOCK)
            else:
                line = Line(number, byte, raw)
                yield line.without_mark() if byte == 0 else line
            byte += len(raw)


def jsonl_records(file: FoundFile, bounds: Bounds, *, once: Sequence[str] | None = ()) -> Iterator[Record | BadInput]:
    """Give the records of a .jsonl; empty lines are passed over. A record may have each of the keys `once` once."""
    for line in lines_of(file, bounds):
        if isinstance(line, BadInput):
            yield line
        elif line.raw.strip():
            yield _of_json(line, file, once)


def loaded(text: str) -> Any:
    """Return what a JSON text holds; a whole number too long for Python (4,300 digits) as the text that it is."""
    try:
        return json.loads(text)
    except ValueError as e:
        if isinstance(e, json.JSONDecodeError):
            raise
        return json.loads(text, parse_int=integer)


def integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


_MOST_DIGITS = 1000


def doubled_key(text: str, once: Sequence[str] | None) -> str | None:
    """Return the first of the keys `once` (None: all) that a JSON object has twice at its top; json takes the last."""
    if once is not None and not any(text.count(json.dumps(key)) > 1 or text.count(f'"{key}"') > 1 for key in once):
        return None  # nearly all records: nothing is read a second time
    found: list[str] = []

    def pairs(given: list[tuple[str, Any]]) -> dict[str, Any]:
        found[:] = [k for k, _ in given]  # the outermost object is closed last
        return dict(given)

    outermost = json.loads(text, object_pairs_hook=pairs, parse_int=integer)
    return doubled(found, once) if isinstance(outermost, dict) else None


def doubled(names: Sequence[str], once: Sequence[str] | None = None) -> str | None:
    """Return the first name that stands there twice, of all or of those that may stand there `once`."""
    return next((name for name in (names if once is None else once) if names.count(name) > 1), None)


def bad_double(record: Record, name: str) -> BadInput:
    return record.bad("a name twice", problem=f"it has {name!r} twice", advice="rename or remove one of them")


def _of_json(line: Line, file: FoundFile, once: Sequence[str] | None) -> Record | BadInput:
    place = (f"{file.name}:{line.number}", file.name, line.number)
    try:
        text = line.decoded(file)
        record = Record(loaded(text), *place)
        double = doubled_key(text, once)
        return record if double is None else bad_double(record, double)
    except BadInput as bad:
        return bad
    except (ValueError, RecursionError) as e:
        problem = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)
        return Record(None, *place).bad(
            "invalid JSON", problem=f"not valid JSON ({problem})", advice="mend or remove that line"
        )


def table_records(file: FoundFile, bounds: Bounds) -> Iterator[Record | BadInput]:
    """Give the records of a .csv or .tsv under the names of its header, all as text.

    Raises BadInput if the header is bad or has a name twice, or a record has no end within `bounds.document_bytes`.
    """
    csv.field_size_limit(max(csv.field_size_limit(), min(bounds.document_bytes, 2**31 - 1)))
    began: list[Line] = []  # the lines of the record that is being read
    broken: list[BadInput] = []

    def texts() -> Iterator[str]:
        for line in lines_of(file, bounds):
            if isinstance(line, BadInput):
                raise line  # nobody knows whether what follows is inside a quoted field
            began.append(line)
            if line.byte + len(line.raw) - began[0].byte > bounds.document_bytes:
                raise too_long(file.name, bounds, line=began[0].number)
            try:
                text = line.decoded(file)
            except BadInput as bad:
                broken.append(bad)
                text = line.raw.decode("utf-8", "surrogateescape")  # so that the record's end is still found
            yield text

    rows = csv.reader(texts(), delimiter="\t" if kind_of(file.path) == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    while True:
        began.clear()
        broken.clear()
        problem = ""
        try:
            row = next(rows, None)
        except csv.Error as e:
            row, problem = [], str(e)
        if row is None:
            return
        if not row and not problem:  # an empty line
            continue
        number = began[0].number
        record = Record(dict(zip(header or [], row, strict=False)), id=f"{file.name}:{number}", file=file.name, line=number)
        bad = broken[0] if broken else _misshapen(record, row=row, header=header, problem=problem)
        if header is None:
            if bad is not None:
                raise bad
            if (double := doubled(row)) is not None:
                raise bad_double(record, double)
            header = row
        else:
            yield bad or record


def _misshapen(record: Record, *, row: list[str], header: list[str] | None, problem: str) -> BadInput | None:
    if not problem and header is not None and len(row) != len(header):
        problem = f"{len(row)} fields where the header has {len(header)}"
    if not problem:
        return None
    return record.bad(
        "invalid CSV",
        problem=f"not valid CSV ({problem})",
        advice="put fields with quotes, delimiters or line ends in double quotes, and write a quote inside twice",
    )
