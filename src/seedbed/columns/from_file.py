"""Values from a file of lines {"id": ..., "value": number or label}, one for the id of each document.

How what another program found out about documents comes to stand beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seedbed.core.errors import DataError
from seedbed.core.places import place
from seedbed.core.protocols import ColumnKind, Neutral
from seedbed.core.records import Document
from seedbed.sources.fields import Record
from seedbed.sources.files import BadInput, Bounds, FoundFile
from seedbed.sources.lines import jsonl_records

_LINE = '{"id": ..., "value": number or label}'


@dataclass(frozen=True, kw_only=True)
class FromFile(ColumnKind):
    """Which file; a document without a value in it, and a value without a document, are refused."""

    neutral: ClassVar[Neutral] = "values are what they are"
    path: str = place(default="")

    def read(self, documents: Sequence[Document], *, lent: Mapping[str, Any]) -> np.ndarray:
        missing = next((d.id for d in documents if d.id not in self._values), None)
        if missing is not None:
            raise DataError(f"{self.path}: the document {missing!r} has no value; give one line {_LINE} for each (see *.jsonl)")
        return np.array([self._values[d.id] for d in documents])

    def values(self, found_N: np.ndarray, *, ids: Sequence[str]) -> list[float | str]:
        unknown = next(iter(self._values.keys() - set(ids)), None)
        if unknown is not None:
            raise DataError(f"{self.path}: the value of {unknown!r} belongs to no document; leave its line out")
        return list(found_N.tolist())

    @cached_property
    def _values(self) -> dict[str, float | str]:
        if not self.path:
            raise DataError(f"from_file needs `path`: a file of lines {_LINE}")
        if not Path(self.path).is_file():
            raise DataError(f"there is no file {self.path}; give one of lines {_LINE}")
        values: dict[str, float | str] = {}
        for record in jsonl_records(FoundFile(Path(self.path), self.path), Bounds(), once=("id", "value")):
            if isinstance(record, BadInput):
                raise record
            of, value = _id_and_value(record)
            if of in values:
                raise record.bad("an id twice", problem=f"the id {of!r} has a value already", advice="give each document one")
            values[of] = value
        if len({isinstance(v, str) for v in values.values()}) > 1:
            raise DataError(f"{self.path} mixes numbers and labels; give one kind")
        return values


def _id_and_value(record: Record) -> tuple[str, float | str]:
    fields = record.fields if isinstance(record.fields, dict) else {}
    of, value = fields.get("id"), fields.get("value")
    if isinstance(of, bool) or not isinstance(of, str | int):
        raise record.bad("no id", problem="it has no id that is a text or a whole number", advice=f"every line is {_LINE}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise record.bad("no value", problem="its value is neither a number nor a label", advice=f"every line is {_LINE}")
    try:
        if isinstance(value, str) or isfinite(float(value)):
            return str(of), value if isinstance(value, str) else float(value)
    except OverflowError:
        pass
    raise record.bad(
        "no finite value", problem=f"its value is {value!r:.40}", advice="give a finite number, or leave the document out"
    )
