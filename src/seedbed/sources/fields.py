"""A record's fields as a document: the text, a list of numbers or a dialogue under one key, and what stands beside it.

Shared by every format that has records: .jsonl, .json, .csv, .tsv, .parquet and `datasets`.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Any

from seedbed.core.errors import nearest
from seedbed.core.records import Document, Turn
from seedbed.sources.files import BadInput, Bounds, too_long

DIALOGUES = ("messages", "turns", "conversations")  # looked for where there is no "text"
SPEAKER = ("role", "speaker", "from")
SAID = ("content", "text", "value")
META_CHARACTERS = 1000  # of a value's JSON; longer ones are texts themselves


@dataclass(frozen=True)
class Record:
    """The fields of one record and where it stands: in a line of a file, or as one of its records (the first is 1)."""

    fields: Any
    id: str
    file: str
    line: int | None = None
    record: int | None = None

    def bad(self, reason: str, *, problem: str, advice: str) -> BadInput:
        return BadInput(file=self.file, reason=reason, problem=problem, advice=advice, line=self.line, record=self.record)


def text_column(names: Iterable[str], text_key: str) -> str | None:
    """Return the key that holds the text: `text_key`, or a dialogue's if "text" is asked for and not there; None: neither."""
    known = set(names)
    return next((k for k in (text_key, *(DIALOGUES if text_key == "text" else ())) if k in known), None)


def asked_keys(names: Iterable[str], text_key: str, meta: Iterable[str]) -> set[str]:
    """Return the keys that were asked for: the text's, and those that `meta` names."""
    key = text_column(names, text_key)
    return {text_key if key is None else key, *meta}


def document(record: Record, *, text_key: str, meta: Mapping[str, str], bounds: Bounds) -> Document:
    """Return a record as a document.

    Its meta are the other fields that are text, a number, a date or a truth value, at most 1,000 characters each as JSON;
    `meta` names some of them anew: {"language": "lang"} puts what is under "lang" under "language". Raises BadInput if there is
    no text ("empty" if it is blank), it is too long, or a character of it or of what `meta` names is half there; of a field
    that nobody asked for such a value is left out.
    """
    fields = record.fields if isinstance(record.fields, dict) else {}
    key = text_column([k for k, v in fields.items() if v is not None], text_key)
    if key is None:
        raise no_text(record, fields, text_key)
    text, turns = _text(fields[key], key=key, record=record)
    if not (any(t.text.strip() for t in turns) if turns else text.strip()):
        raise record.bad("empty", problem=f"the text under {key!r} is empty", advice="remove it, or read on without it")
    beside = {k: v for k, v in fields.items() if k != key and k not in meta.values()}
    kept = {k: v for k, value in beside.items() if (v := _scalar(value)) is not None and _is_whole(f"{k}{v}")}
    for new, old in meta.items():
        if old in fields and (value := _scalar(fields[old])) is not None:
            _encoded(f"{new}{value}", name=old, record=record)
            kept[new] = value
    if len(_encoded(text, name=key, record=record)) > bounds.document_bytes:
        raise too_long(record.file, bounds, line=record.line, record=record.record)
    return Document(id=record.id, text=text, turns=turns, meta=kept)


def no_text(record: Record, names: Iterable[str], text_key: str) -> BadInput:
    """What is wrong with a record of these keys: the text's is not there, or holds nothing."""
    known = [repr(n)[1:-1] for n in islice(names, 50)]  # they are whatever the file says, line ends included
    if text_key in known:
        return record.bad(
            "no text under the key",
            problem=f"what is under {text_key!r} is null",
            advice="give it a text, or leave the record out",
        )
    return record.bad(
        "no text under the key",
        problem=f"no text under {text_key!r}",
        advice=f"{nearest(text_key, known)} (name the key that holds the text, with text_key or --text-key)",
    )


def _text(value: Any, *, key: str, record: Record) -> tuple[str, tuple[Turn, ...]]:
    if isinstance(value, bytes):  # tables may keep text in a column of bytes
        try:
            value = value.decode()
        except UnicodeDecodeError as e:
            raise record.bad(
                "invalid UTF-8", problem=f"byte {e.start} under {key!r} is not UTF-8", advice="convert it to UTF-8"
            ) from None
    if isinstance(value, str):
        return value, ()
    if isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return " ".join(map(str, value)), ()
    if isinstance(value, list) and all(isinstance(v, dict) for v in value):
        turns = tuple(_turn(v, number=i, key=key, record=record) for i, v in enumerate(value, 1))
        return "".join(map(str, turns)), turns
    kind = type(value).__name__
    raise record.bad(
        "no text under the key",
        problem=f"what is under {key!r} ({kind}) is neither text nor a list of numbers or of turns",
        advice="name the key of the text, with text_key or --text-key",
    )


def _turn(value: Mapping[str, Any], *, number: int, key: str, record: Record) -> Turn:
    said = [next((value[k] for k in keys if isinstance(value.get(k), str)), None) for keys in (SPEAKER, SAID)]
    if said[0] is None or said[1] is None:
        raise record.bad(
            "no text under the key",
            problem=f"turn {number} under {key!r} has no text for {' or '.join(SPEAKER if said[0] is None else SAID)}",
            advice=f"a turn needs who speaks ({', '.join(SPEAKER)}) and what is said ({', '.join(SAID)})",
        )
    return Turn(said[0], said[1])


def _scalar(value: Any) -> str | int | float | bool | None:
    """The value if it may stand in meta, dates as text; None if it may not."""
    if isinstance(value, str):
        surely = 6 * len(value) + 2 <= META_CHARACTERS  # as JSON a character takes six at most
        return value if surely or len(json.dumps(value, ensure_ascii=False)) <= META_CHARACTERS else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if len(str(value)) <= META_CHARACTERS else None
    return value.isoformat() if isinstance(value, date) else None


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoded(text: str, *, name: str, record: Record) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise record.bad(
            "half a character",
            problem=f"half a character (surrogate) at place {e.start} of {name!r}",
            advice="mend or remove that text",
        ) from None


def strings_of(record: Any) -> Iterator[str]:
    """Give every text in a record, however deep, in order; for sets that have no key of their own for it."""
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(reversed(list(value.values())))
        elif isinstance(value, list | tuple):
            waiting.extend(reversed(value))
