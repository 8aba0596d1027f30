"""Records of many runs in one file: lines by columns, exact to the bit, packed with the standard library's lzma.

Lines of metrics and items repeat the same keys, ids and counts thousands of times; by columns, whole numbers as differences
and floats with their bytes sorted by place, little is left but the digits that nobody could guess. What comes out is what
went in, key order included; `packed` checks that.
Letters: N lines.
"""

import json
import lzma
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Line = dict[str, Any]
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
_INTEGERS, _SINGLE, _DOUBLE = "i8", "f4", "f8"


def packed(tables: Mapping[str, Sequence[Line]], facts: Any) -> bytes:
    """Return `tables` (name -> lines) and `facts`, whatever JSON holds, as the bytes of a file.

    >>> lines = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.7}]
    >>> unpacked(packed({"a": lines}, {"format": 1}))[0]["a"] == lines
    True
    """
    arrays: list[bytes] = []
    heads = {name: _head(list(lines), arrays) for name, lines in tables.items()}
    head = json.dumps({"tables": heads, "facts": facts}, ensure_ascii=False).encode()
    raw = len(head).to_bytes(8, "little") + head + b"".join(arrays)
    made = lzma.compress(raw, format=lzma.FORMAT_XZ, filters=_FILTERS)
    again, _ = unpacked(made)
    for name, lines in tables.items():
        if json.dumps(again[name]) != json.dumps(list(lines)):
            raise RuntimeError(f"the lines of {name} do not come back as they were")
    return made


def unpacked(raw: bytes) -> tuple[dict[str, list[Line]], Any]:
    """Return tables and facts. Raises ValueError for bytes that are no such file."""
    try:
        plain = lzma.decompress(raw)
    except (lzma.LZMAError, EOFError) as e:
        raise ValueError(f"not a whole xz file ({e})") from None
    size = int.from_bytes(plain[:8], "little")
    head = json.loads(plain[8 : 8 + size])
    at = 8 + size
    tables = {}
    for name, table in head["tables"].items():
        tables[name], at = _lines(table, plain, at)
    return tables, head["facts"]


def _head(lines: list[Line], arrays: list[bytes]) -> Any:
    """Return how a table is laid out, and append its arrays; lines that no order of keys agrees with stay lines."""
    keys = _ordered_keys(lines)
    if keys is None:
        return {"whole": lines}
    columns = []
    for key in keys:
        there = [i for i, line in enumerate(lines) if key in line]
        values = [lines[i][key] for i in there]
        column: dict[str, Any] = {"key": key}
        if len(there) < len(lines):
            column["lines"] = _spans(there)
        if values and all(type(v) is int and abs(v) < 2**62 for v in values):
            arrays.append(_sorted_bytes(np.diff(np.array(values, np.int64), prepend=0)))
            column["type"] = _INTEGERS
        elif values and all(type(v) is float for v in values) and (places := _places(values)) is not None:
            column |= {"type": _INTEGERS, "places": places}
            arrays.append(_sorted_bytes(np.array([round(v * 10**places) for v in values], np.int64)))
        elif values and all(type(v) is float for v in values):
            with np.errstate(over="ignore"):
                column["type"] = _SINGLE if all(float(np.float32(v)) == v for v in values) else _DOUBLE
            arrays.append(_sorted_bytes(np.array(values, column["type"])))
        elif all(isinstance(v, str) for v in values):
            column["runs"] = _run_lengths(values)
        else:
            column["values"] = values
        columns.append(column)
    return {"count": len(lines), "columns": columns}


def _lines(table: Mapping[str, Any], plain: bytes, at: int) -> tuple[list[Line], int]:
    if "whole" in table:
        return table["whole"], at
    lines: list[Line] = [{} for _ in range(table["count"])]
    for column in table["columns"]:
        there = _unspanned(column["lines"]) if "lines" in column else range(table["count"])
        if "type" in column:
            kind = np.dtype("<" + column["type"])
            size = kind.itemsize * len(there)
            array = np.frombuffer(plain[at : at + size], np.uint8).reshape(kind.itemsize, -1).T.copy().view(kind)[:, 0]
            at += size
            if "places" in column:
                values = [n / 10 ** column["places"] for n in array.tolist()]
            elif column["type"] == _INTEGERS:
                values = np.cumsum(array).tolist()
            else:
                values = array.astype(np.float64).tolist()
        else:
            values = [v for v, n in column["runs"] for _ in range(n)] if "runs" in column else column["values"]
        for i, value in zip(there, values, strict=True):
            lines[i][column["key"]] = value
    return lines, at


def _ordered_keys(lines: list[Line]) -> list[str] | None:
    """Return all keys in an order that every line's own order agrees with; None if none was found."""
    order: list[str] = []
    for keys in dict.fromkeys(tuple(line) for line in lines):
        place = 0
        for key in keys:
            if key in order:
                if order.index(key) < place:
                    return None
                place = order.index(key) + 1
            else:
                order.insert(place, key)
                place += 1
    return order


def _places(values: Sequence[float]) -> int | None:
    """Return with how many decimal places all numbers are written, up to 6; None if one has more, is too large, or is -0.0."""
    if any((math.copysign(1, v) < 0 and v == 0) or not abs(v) < 2**31 for v in values):
        return None
    return next((n for n in range(7) if all(round(v * 10**n) / 10**n == v for v in values)), None)


def _sorted_bytes(array: np.ndarray) -> bytes:
    """All first bytes, then all second ones, and so on: alike bytes side by side."""
    array = array.astype(array.dtype.newbyteorder("<"))
    return array.view(np.uint8).reshape(len(array), -1).T.tobytes()


def _spans(numbers: list[int]) -> list[int]:
    """Return [first, count, first, count ...] of runs of numbers that follow each other."""
    spans: list[int] = []
    for n in numbers:
        if spans and spans[-2] + spans[-1] == n:
            spans[-1] += 1
        else:
            spans += [n, 1]
    return spans


def _unspanned(spans: list[int]) -> list[int]:
    return [n for first, count in zip(spans[::2], spans[1::2], strict=True) for n in range(first, first + count)]


def _run_lengths(values: list[str]) -> list[list[Any]]:
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs
