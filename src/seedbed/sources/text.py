"""Text files as documents: .txt, .md, .py and .jsonl, each plain, .gz or .zst; a folder, a file, a glob or builtin:NAME.

Long files are cut into sections at empty lines, and each section is a document. Documents, not rows, are split into train,
valid and test, by a hash of their content, so the same text never stands on two sides. Sections of one book may: held-out
text is unseen, but not always by an unseen author.
"""

import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.records import Document

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
COMPRESSED = (".gz", ".zst")
BUILTIN = Path(__file__).with_name("builtin")


@dataclass(frozen=True, kw_only=True)
class Text:
    """Settings of a text corpus."""

    path: str = "builtin:prose"  # also builtin:math, builtin:code, a file, a folder or a glob
    text_key: str = "text"  # of .jsonl lines
    section_bytes: int = 8192  # longer documents are cut at empty lines into sections of about this size; 0: never
    valid_share: float = 0.05  # of documents
    test_share: float = 0.05

    def __post_init__(self) -> None:
        if not (self.valid_share > 0 and self.test_share > 0 and self.valid_share + self.test_share < 1):
            raise ConfigError(
                f"valid_share and test_share must be positive and leave something to train on; "
                f"got {self.valid_share} and {self.test_share}"
            )
        if self.section_bytes < 0:
            raise ConfigError(f"section_bytes must be 0 (whole files) or more, got {self.section_bytes}")

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
        documents = self.all_documents()
        if len(documents) < 3:
            raise DataError(
                f"{self.path} holds {len(documents)} document(s) of text; train, valid and test need one each at least: "
                "give more files, or a smaller section_bytes so that long files are cut into more sections"
            )
        ranks = [int.from_bytes(sha256(d.text.encode()).digest()[:8], "big") / 2**64 for d in documents]
        sides = [
            "test" if r < self.test_share else "valid" if r < self.test_share + self.valid_share else "train" for r in ranks
        ]
        lowest = sorted(range(len(ranks)), key=ranks.__getitem__)
        for side, taken in zip(("test", "valid"), lowest, strict=False):  # a small corpus can miss a side by chance
            if side not in sides or "train" not in sides:
                sides[taken] = side
        return {
            split: [d for d, side in zip(documents, sides, strict=True) if side == split]
            for split in ("train", "valid", "test")
        }

    def all_documents(self) -> list[Document]:
        """Return every document of every side. Raises DataError if there is no text at all."""
        documents = [section for file in self.files() for d in self._read(file) for section in self._sections(d)]
        if not documents:
            raise DataError(f"{self.path} holds no text; give files that are not empty")
        return documents

    def files(self) -> list[Path]:
        """Return the files that the path names, sorted. Raises DataError if there is none."""
        if self.path.startswith("builtin:"):
            return [_builtin(self.path.removeprefix("builtin:"))]
        place = Path(self.path).expanduser()
        if place.is_dir():
            found = [p for p in sorted(place.rglob("*")) if p.is_file() and _kind(p)]
            what = f"the folder {place} holds no text file"
        elif place.is_file():
            if not _kind(place):
                raise DataError(
                    f"{place} is not a kind of file that is read here; allowed: {', '.join(SUFFIXES)}, "
                    f"each also with {' or '.join(COMPRESSED)}"
                )
            return [place]
        else:
            found = [Path(p) for p in sorted(glob.glob(str(place), recursive=True)) if _kind(Path(p))]
            what = f"nothing is found at {place}"
        if not found:
            raise DataError(
                f"{what}; give a file, a folder or a glob of {', '.join(SUFFIXES)} "
                f"(also {', '.join(COMPRESSED)}), or builtin:prose, builtin:math, builtin:code"
            )
        return found

    def _read(self, file: Path) -> Iterator[Document]:
        text = _decode(file, _raw(file))
        name = file.name if self.path.startswith("builtin:") else str(file)
        if _kind(file) != ".jsonl":
            yield Document(id=name, text=text)
            return
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as e:
                raise DataError(f"{file}, line {number}: not valid JSON ({e}); mend or remove that line") from None
            if not isinstance(fields, dict) or not isinstance(fields.get(self.text_key), str):
                keys = list(fields) if isinstance(fields, dict) else []
                raise DataError(
                    f"{file}, line {number}: no text under {self.text_key!r}; {nearest(self.text_key, keys)} (set text_key)"
                )
            try:
                fields[self.text_key].encode()
            except UnicodeEncodeError as e:
                raise DataError(
                    f"{file}, line {number}: half a character (surrogate) at place {e.start}; mend that line"
                ) from None
            meta = {k: v for k, v in fields.items() if k != self.text_key}
            yield Document(id=f"{name}:{number}", text=fields[self.text_key], meta=meta)

    def _sections(self, document: Document) -> Iterator[Document]:
        if not document.text.strip():
            return
        if not self.section_bytes or len(document.text.encode()) <= self.section_bytes:
            yield document
            return
        parts = re.split(r"(?<=\n)(?=[ \t]*\n)", document.text)  # in front of every empty line; joined they are the text
        section, size, count = [], 0, 0
        for i, part in enumerate(parts):
            section.append(part)
            size += len(part.encode())
            if size >= self.section_bytes or i == len(parts) - 1:
                text = "".join(section)
                if text.strip():
                    yield Document(id=f"{document.id}#{count}", text=text, meta=document.meta)
                section, size, count = [], 0, count + 1


def _kind(file: Path) -> str:
    """The suffix that says how to read the file, or nothing if it is not read here."""
    name = file.name
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return next((s for s in SUFFIXES if name.endswith(s)), "")


def _builtin(name: str) -> Path:
    file = BUILTIN / f"{name}.jsonl.gz"
    if not file.is_file():
        raise DataError(f"no built-in corpus {name!r}; {nearest(name, [f.name.split('.')[0] for f in BUILTIN.glob('*.gz')])}")
    return file


def _raw(file: Path) -> bytes:
    try:
        if file.suffix == ".gz":
            return gzip.decompress(file.read_bytes())
        if file.suffix == ".zst":
            return _unpack_zst(file)
        return file.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"cannot read {file}: {e}; give a readable, whole file") from None


def _unpack_zst(file: Path) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"reading {file} needs a further package: pip install 'seedbed[data]'") from None
    try:
        with file.open("rb") as opened:
            return zstandard.ZstdDecompressor().stream_reader(opened, read_across_frames=True).read()
    except zstandard.ZstdError as e:
        raise DataError(f"cannot read {file}: {e}; give a whole .zst file") from None


def _decode(file: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise DataError(
            f"{file} is not UTF-8 at byte {e.start} (line {line}, value 0x{raw[e.start]:02x}); convert it to UTF-8"
        ) from None
