"""Byte-level tokenizers, faster: what a piece of text became is remembered, so most of it is looked up.

A byte-level pre-tokenizer (the pattern of GPT-2) never joins a visible character with a single space that follows it. So a
text falls at such spaces into stretches whose ids are their own. A stretch of plain ASCII falls further, into the pattern's
pieces, which are written out below; any other is looked up as a whole, since the tokenizer alone knows Unicode's classes.
What is not known yet is encoded by the tokenizer, once. The ids are those of the plain way; a test holds both against each
other.
Letters: B bytes of all texts, N texts, T tokens, M slots of the table, E entries.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from seedbed.core.compiled import compiled

_MOST_BYTES = 2**26  # remembered text; beyond that all is forgotten (ids stay the same)
_FIRST_BYTES = 2**14
_UNKNOWN = -1


def falls_at_spaces(tokenizer: Any) -> bool:
    """Whether a tokenizer is of the kind that this file is about: byte-level, not normalized, added words are special."""
    facts = json.loads(tokenizer.to_str())
    before = facts["pre_tokenizer"] or {}
    byte_level = (
        before.get("type") == "ByteLevel" and before.get("use_regex", True) and not before.get("add_prefix_space", True)
    )
    return byte_level and facts["normalizer"] is None and all(t["special"] for t in facts["added_tokens"])


class Remembered:
    """A tokenizer with a memory; `encode_batch` gives what `tokenizer.encode_batch(..., add_special_tokens=False)` gives."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._forget()

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "T"]]:
        found: list[np.ndarray] = []
        some: list[bytes] = []
        size = 0
        for raw in (text.encode() for text in texts):
            some.append(raw)
            size += len(raw)
            if size > max(_FIRST_BYTES, len(self._text)):  # a young memory takes little at a time: soon most is known
                found += self._encoded(some)
                some, size = [], 0
        return found + self._encoded(some) if some else found

    def _encoded(self, raw: list[bytes]) -> list[np.ndarray]:
        text_B = np.frombuffer(b"".join(raw), np.uint8)
        ends_N = np.cumsum([len(x) for x in raw], dtype=np.int64)
        if len(self._text) > _MOST_BYTES:
            self._forget()
        while True:
            ids_T, ends_of_ids_N, unknown = _looked_up(text_B, ends_N, *self._memory())
            if not len(unknown):
                return np.split(ids_T, ends_of_ids_N[:-1])
            self._learn(list({text_B[a:b].tobytes() for a, b in unknown.tolist()}))

    def _forget(self) -> None:
        self._text, self._ids = bytearray(), np.empty(0, np.int32)
        self._ends_of_text, self._ends_of_ids = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._slots = np.full(2**16, _UNKNOWN, np.int32)

    def _memory(self) -> tuple[np.ndarray, ...]:
        return np.frombuffer(bytes(self._text), np.uint8), self._ends_of_text, self._ids, self._ends_of_ids, self._slots

    def _learn(self, pieces: list[bytes]) -> None:
        found = self._tokenizer.encode_batch_fast([p.decode() for p in pieces], add_special_tokens=False)
        ids = [np.array(e.ids, np.int32) for e in found]
        first = len(self._ends_of_text) - 1
        self._text += b"".join(pieces)
        self._ids = np.concatenate([self._ids, *ids])
        self._ends_of_text = np.append(self._ends_of_text, self._ends_of_text[-1] + np.cumsum([len(p) for p in pieces]))
        self._ends_of_ids = np.append(self._ends_of_ids, self._ends_of_ids[-1] + np.cumsum([len(x) for x in ids]))
        text, ends = self._memory()[:2]
        entries = len(ends) - 1
        if 2 * entries > len(self._slots):
            first = 0
            self._slots = np.full(4 << entries.bit_length(), _UNKNOWN, np.int32)
        _enter(text, ends, first, self._slots)


@compiled
def _looked_up(text_B, ends_N, known_text, ends_of_text_E, known_ids, ends_of_ids_E, slots_M):
    """The ids of all texts, where each text's end, and the spans that are not known (ids are void if there are any)."""
    ids_T = np.empty(len(text_B), np.int32)  # a byte-level token has a byte at least
    ends_of_ids_N = np.empty(len(ends_N), np.int64)
    unknown = np.empty((256, 2), np.int64)
    count = missing = 0
    start = 0
    for n in range(len(ends_N)):
        end = ends_N[n]
        while start < end:
            stretch_end, plain = _stretch(text_B, start, end)
            while start < stretch_end:
                stop = _piece(text_B, start, stretch_end) if plain else stretch_end
                entry = _entry(text_B, start, stop, known_text, ends_of_text_E, slots_M)
                if entry == _UNKNOWN:
                    if missing == len(unknown):
                        longer = np.empty((2 * missing, 2), np.int64)
                        longer[:missing] = unknown
                        unknown = longer
                    unknown[missing, 0] = start
                    unknown[missing, 1] = stop
                    missing += 1
                elif missing == 0:
                    for i in range(ends_of_ids_E[entry], ends_of_ids_E[entry + 1]):
                        ids_T[count] = known_ids[i]
                        count += 1
                start = stop
        ends_of_ids_N[n] = count
    return ids_T[:count].copy(), ends_of_ids_N, unknown[:missing]


@compiled
def _stretch(text_B, start, end):
    """Where the stretch that begins at `start` ends, and whether it is plain: printable ASCII and white space."""
    plain = True
    i = start
    while i < end:
        c = text_B[i]
        if c == 32 and i > start and i + 1 < end and _visible_before(text_B, i, start) and _visible_after(text_B, i + 1, end):
            return i, plain
        plain = plain and (32 <= c < 127 or 9 <= c <= 13)
        i += 1
    return end, plain


@compiled
def _visible_after(text_B, i, end):
    """Whether the character that begins at byte i is surely no white space."""
    c = text_B[i]
    if c < 128:
        return 33 <= c < 127
    if i + 1 >= end:
        return False
    d = text_B[i + 1]
    e = text_B[i + 2] if i + 2 < end else 0
    return not _white(c, d, e)


@compiled
def _visible_before(text_B, i, start):
    """Whether the character that ends before byte i is surely no white space."""
    c = text_B[i - 1]
    if c < 128:
        return 33 <= c < 127
    if i - 2 < start:
        return False
    if text_B[i - 2] >= 192:
        return not _white(text_B[i - 2], c, 0)
    return i - 3 >= start and not _white(text_B[i - 3], text_B[i - 2], c)


@compiled
def _white(c, d, e):
    """Whether UTF-8 bytes begin with a white character beyond ASCII (or a half of one, which never stands in whole text)."""
    if c == 0xC2:
        return d in (0x85, 0xA0)
    if c == 0xE1:
        return d == 0x9A and e == 0x80
    if c == 0xE2:
        return (d == 0x80 and (e <= 0x8A or e in (0xA8, 0xA9, 0xAF))) or (d == 0x81 and e == 0x9F)
    return c == 0xE3 and d == 0x80 and e == 0x80


@compiled
def _kind(c):
    """0 white, 1 letter, 2 digit, 3 anything else, of ASCII."""
    if c == 32 or 9 <= c <= 13:
        return 0
    if 97 <= (c | 32) <= 122:
        return 1
    return 2 if 48 <= c <= 57 else 3


@compiled
def _piece(text_B, start, end):
    """Where the pattern's piece that begins at `start` ends; `end` is the end of the stretch.

    The pattern: 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?others|white space not in front of a visible character|white space
    """
    c = text_B[start]
    if c == 39 and start + 1 < end:
        d = text_B[start + 1]
        if d in (115, 116, 109, 100):  # s t m d
            return start + 2
        if start + 2 < end:
            e = text_B[start + 2]
            if (d == 114 and e == 101) or (d == 118 and e == 101) or (d == 108 and e == 108):  # re ve ll
                return start + 3
    i = start + 1 if c == 32 and start + 1 < end and _kind(text_B[start + 1]) != 0 else start
    kind = _kind(text_B[i])
    i += 1
    while i < end and _kind(text_B[i]) == kind:
        i += 1
    if kind == 0 and i < end and i - 1 > start:
        return i - 1  # the last white character is left to what follows it
    return i


@compiled
def _hashed(text_B, start, stop):
    """FNV-1a of 64 bits, mixed at the end."""
    h = np.uint64(14695981039346656037)
    for i in range(start, stop):
        h = (h ^ np.uint64(text_B[i])) * np.uint64(1099511628211)
    return h ^ (h >> np.uint64(29))


@compiled
def _entry(text_B, start, stop, known_text, ends_of_text_E, slots_M):
    """The entry that holds these bytes, or _UNKNOWN."""
    mask = np.uint64(len(slots_M) - 1)
    slot = _hashed(text_B, start, stop) & mask
    while True:
        entry = slots_M[slot]
        if entry == _UNKNOWN:
            return entry
        begin = ends_of_text_E[entry]
        if ends_of_text_E[entry + 1] - begin == stop - start:
            i = 0
            while i < stop - start and known_text[begin + i] == text_B[start + i]:
                i += 1
            if i == stop - start:
                return entry
        slot = (slot + np.uint64(1)) & mask


@compiled
def _enter(known_text, ends_of_text_E, first, slots_M):
    """Put the entries from `first` on into the table; all are new and different."""
    mask = np.uint64(len(slots_M) - 1)
    for entry in range(first, len(ends_of_text_E) - 1):
        slot = _hashed(known_text, ends_of_text_E[entry], ends_of_text_E[entry + 1]) & mask
        while slots_M[slot] != _UNKNOWN:
            slot = (slot + np.uint64(1)) & mask
        slots_M[slot] = entry
