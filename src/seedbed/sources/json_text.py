"""A .json file as records: an array of objects, one object, {"data": [objects]}, or objects one after the other.

All but "data" are read as a stream, value by value.
"""

import codecs
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from seedbed.sources.fields import Record
from seedbed.sources.files import BadInput, Bounds, FoundFile, too_long
from seedbed.sources.lines import Line, bad_double, doubled_key, integer
from seedbed.sources.unpack import BLOCK, open_file


def json_records(file: FoundFile, bounds: Bounds, *, once: Sequence[str] | None = ()) -> Iterator[Record | BadInput]:
    """Give the records of a .json; a record may have each of the keys `once` (None: any) once.

    Raises BadInput where it is no JSON: what follows cannot be told apart.
    """
    number = 0
    with open_file(file.path, bounds, name=file.name) as opened:
        text = _JsonText(opened, file, bounds)
        inside = text.peek() == "["
        if inside:
            text.take()
        going = not (inside and text.peek() == "]" and text.take())
        while going:
            value, raw, bad = text.value()
            wrapped = isinstance(value, dict) and isinstance(value.get("data"), list) and not inside and number == 0
            for fields in value["data"] if wrapped and not bad else [value]:
                number += 1
                record = Record(fields, id=f"{file.name}:{number}", file=file.name, record=number)
                double = None if bad or wrapped else doubled_key(raw, once)
                yield bad or (record if double is None else bad_double(record, double))
            if inside and (mark := text.take()) != "]":
                text.expect(mark == ",", "',' or ']' is missing")
            else:
                going = not inside and text.peek() != ""
        text.expect(text.peek() == "", "something follows the end of the array")


class _JsonText:
    """The characters of a JSON file, read on when a value is not whole yet; knows the line and the byte where it stands."""

    def __init__(self, opened: io.BufferedReader, file: FoundFile, bounds: Bounds) -> None:
        self._opened, self._file, self._bounds = opened, file, bounds
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._failed: BadInput | None = None
        self._line, self._byte = 1, 0
        if self.peek() == "\ufeff":
            self.take()

    def peek(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            while self._at < len(self._text):
                if (char := self._text[self._at]) not in " \t\r\n":
                    return char
                self._pass(self._at + 1)
            if not self._more():
                return ""

    def take(self) -> str:
        char = self.peek()
        self._pass(self._at + len(char))
        return char

    def expect(self, right: bool, problem: str) -> None:
        if not right:
            raise self._bad(problem)

    def value(self) -> tuple[Any, str, BadInput | None]:
        """The next value, its text, and what is wrong with its bytes. Raises BadInput if it is no JSON."""
        self.peek()
        while True:
            try:
                found, end = self._scanned()
            except (ValueError, RecursionError) as e:
                if len(self._text) - self._at > self._bounds.document_bytes:
                    raise too_long(self._file.name, self._bounds, line=self._line, byte=self._byte) from None
                if isinstance(e, RecursionError) or not self._more():
                    self._pass(e.pos if isinstance(e, json.JSONDecodeError) else self._at)
                    raise self._bad(e.msg if isinstance(e, json.JSONDecodeError) else str(e)) from None
            else:
                cut = end == len(self._text) and not isinstance(found, dict | list | str)  # 12 may be the start of 123
                if not cut or not self._more():
                    raw = self._text[self._at : end]
                    return found, raw, self._take_value(end)

    def _scanned(self) -> tuple[Any, int]:
        try:
            return self._scan(self._text, self._at)
        except ValueError as e:
            if isinstance(e, json.JSONDecodeError):
                raise
            return json.JSONDecoder(parse_int=integer).raw_decode(self._text, self._at)  # a number too long for Python

    def _take_value(self, end: int) -> BadInput | None:
        raw = self._text[self._at : end].encode("utf-8", "surrogateescape")
        try:
            Line(self._line, self._byte, raw).decoded(self._file)
        except BadInput as bad:
            return bad
        finally:
            self._pass(end)
        return None

    def _pass(self, end: int) -> None:
        passed = self._text[self._at : end]
        self._line += passed.count("\n")
        self._byte += len(passed.encode("utf-8", "surrogateescape"))
        self._at = end

    def _more(self) -> bool:
        """Read on, as much again as is there, so that a long value is not scanned from its start too often."""
        if self._failed is not None:
            raise self._failed
        if self._ended:
            return False
        parts, wanted = [self._text[self._at :]], max(BLOCK, len(self._text) - self._at)
        while wanted > 0 and not self._ended:
            try:
                raw = self._opened.read1(BLOCK)
            except BadInput as bad:  # the values in front of the bad place are given first
                self._failed = bad
                break
            self._ended = not raw
            parts.append(self._decode(raw, self._ended))
            wanted -= len(raw)
        self._text, self._at = "".join(parts), 0
        return True

    def _bad(self, problem: str) -> BadInput:
        return BadInput(
            file=self._file.name,
            reason="invalid JSON",
            problem=f"not valid JSON ({problem})",
            advice="mend the file here; nothing behind it can be read",
            line=self._line,
            byte=self._byte,
        )
