"""A text corpus: files of any kind in `formats`, builtin:NAME or hub:NAME, cut into sections and split into three sides.

Long files are cut into sections at empty lines, and each section is a document; a dialogue stays whole. Documents, not rows,
are split into train, valid and test, by a hash of their content, so the same text never stands on two sides. Sections of one
book may: held-out text is unseen, but not always by an unseen author.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, ClassVar, Literal

from seedbed.core.bounds import MOST_BYTES, check_ranges, within
from seedbed.core.errors import ConfigError, DataError
from seedbed.core.places import from_here, place
from seedbed.core.protocols import Corpus, Neutral
from seedbed.core.records import Document
from seedbed.sources.files import BadInput, Bounds, find_files
from seedbed.sources.formats import read_documents
from seedbed.sources.hub import HUB, hub_documents

BOUNDS = Bounds(document_bytes=2**32)  # a whole book, or all of Wikipedia, may be one file: it is cut right after


@dataclass(frozen=True, kw_only=True)
class Text(Corpus):
    """Settings of a text corpus."""

    neutral: ClassVar[Neutral] = "documents are what they are"
    path: str = place(default="builtin:prose")  # also builtin:math, builtin:code, a file, a folder, a glob or hub:NAME
    text_key: str = "text"  # of records: where the text, a list of numbers or a dialogue is
    meta: Mapping[str, str] = field(default_factory=dict)  # of records: new name to name in the file, as {language: lang}
    section_bytes: int = within(
        0, MOST_BYTES, default=8192
    )  # longer documents are cut at empty lines into sections of about this size; 0: never
    valid_share: float = within(0, 1, default=0.05, above=True, below=True)  # of documents
    test_share: float = within(0, 1, default=0.05, above=True, below=True)
    on_error: Literal["stop", "skip"] = "stop"  # at input that cannot be read: stop, or leave it out (`skipped` counts it)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.valid_share + self.test_share >= 1:
            raise ConfigError(
                f"valid_share and test_share must leave something to train on; got {self.valid_share} and {self.test_share}"
            )

    def documents(self, split: str) -> Sequence[Document]:
        """Return the documents of "train", "valid" or "test", in the order of their files.

        Raises DataError if a file is missing, undecodable or malformed, or fewer than three documents are there.
        """
        return self._splits[split]

    def fingerprint(self) -> str:
        """Return a hash of every document's text and side."""
        digest = sha256()
        for split, documents in self._splits.items():
            for document in documents:
                digest.update(f"{split}\0{len(document.text)}\0{document.text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    @cached_property
    def _splits(self) -> dict[str, list[Document]]:
        documents, place = self.all_documents(), from_here(self.path)
        if len(documents) < 3:
            raise DataError(
                f"{place} holds {len(documents)} document(s) of text; train, valid and test need one each at least: "
                "give more files, or a smaller section_bytes so that long files are cut into more sections"
            )
        ranks = [int.from_bytes(sha256(d.text.encode()).digest()[:8], "big") / 2**64 for d in documents]
        if len(set(ranks)) < 3:
            raise DataError(
                f"{place} holds {len(documents)} documents, of which {len(set(ranks))} differ(s); equal texts stand on one "
                "side, and train, valid and test need one each at least: give more texts that differ"
            )
        sides = [side(r, valid_share=self.valid_share, test_share=self.test_share) for r in ranks]
        # a small corpus can miss a side by chance
        for missing, lowest in zip(("test", "valid"), sorted(set(ranks)), strict=False):
            if missing not in sides or "train" not in sides:
                sides = [missing if r == lowest else s for r, s in zip(ranks, sides, strict=True)]
        return {split: [d for d, s in zip(documents, sides, strict=True) if s == split] for split in ("train", "valid", "test")}

    def all_documents(self) -> list[Document]:
        """Return every document of every side. Raises DataError if there is no text at all."""
        documents = [section for d in self._whole() for section in sections(d, self.section_bytes)]
        if not documents:
            raise DataError(f"{from_here(self.path)} holds no text; give files that are not empty")
        return documents

    @cached_property
    def skipped(self) -> dict[str, int]:
        """How much was left out, by reason: with `on_error: skip`, and settings among the files; filled while they are read."""
        return {}

    def _whole(self) -> Iterator[Document]:
        settings: dict[str, Any] = {"text_key": self.text_key, "meta": self.meta, "bounds": BOUNDS}
        settings["skip"] = self._skip if self.on_error == "skip" else None
        if self.path.startswith(HUB):
            yield from hub_documents(self.path, **settings)
            return
        for file in find_files(self.path):
            yield from read_documents(file, passed=self._skip, **settings)

    def _skip(self, bad: BadInput) -> None:
        self.skipped[bad.reason] = self.skipped.get(bad.reason, 0) + 1


def side(rank: float, *, valid_share: float, test_share: float) -> str:
    """Return the side of a document whose content hashes to `rank`, 0 to 1."""
    return "test" if rank < test_share else "valid" if rank < test_share + valid_share else "train"


_EMPTY_LINE = re.compile(r"(?:(?<=\n)|(?<=\r)(?!\n))(?=[ \t]*(?:\r\n?|\n))")  # whatever ends the lines: \n, \r\n or \r


def _size(text: str) -> int:
    """Bytes of a text, every line end counted as one: sections are the same whatever ends the lines."""
    return len(text.encode()) - text.count("\r\n")


def sections(document: Document, section_bytes: int) -> Iterator[Document]:
    """Give a document in sections of at least `section_bytes`, cut at empty lines (0: never); a dialogue is not cut."""
    if not document.text.strip():
        return
    if not section_bytes or document.turns or _size(document.text) <= section_bytes:
        yield document
        return
    parts = _EMPTY_LINE.split(document.text)  # in front of every empty line; joined they are the text
    section, size, count = [], 0, 0
    for i, part in enumerate(parts):
        section.append(part)
        size += _size(part)
        if size >= section_bytes or i == len(parts) - 1:
            text = "".join(section)
            if text.strip():
                yield Document(id=f"{document.id}#{count}", text=text, meta=document.meta)
            section, size, count = [], 0, count + 1
