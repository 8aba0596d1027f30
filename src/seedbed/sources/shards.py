"""Prepared documents as ids on disk, read by address: `*.bin` shards beside a manifest.json, made by `seedbed prepare`.

A folder holds, for every shard of every split,
- train-00000.bin: ids as little-endian uint16 (uint32 from 65,537 ids on), document after document, a boundary id before each;
- train-00000.idx: one DOCUMENT record a document: where it ends in both other files, its size in bytes, two hashes;
- train-00000.jsonl: a line a document: its id, what was known about it, the turns of a dialogue;
and beside them manifest.json (SHA-256 and counts of each file, tokenizer, how it was made), the tokenizer's own files,
dropped.jsonl (what was left out, and why), columns/ and orders/ (see columns.py). The manifest is written last: a folder with
it is complete.
Letters: N documents, T tokens.
"""

import json
import os
import resource
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int32, Int64

from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.json_files import read_object
from seedbed.core.places import place
from seedbed.core.protocols import Corpus, Neutral, Tokenizer
from seedbed.core.records import Document, Turn
from seedbed.sources.columns import read_column, read_order
from seedbed.sources.data_sets import data_place

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "valid", "test")
SUFFIXES = (".bin", ".idx", ".jsonl")
DOCUMENT = np.dtype(
    [
        ("end", "<u8"),  # tokens of this shard up to the document's end
        ("line", "<u8"),  # bytes of the .jsonl up to the document's end
        ("bytes", "<u8"),  # of its text, as UTF-8
        ("milliseconds", "<u8"),  # of a recording, from the record's `seconds`; 0 for text
        ("rank", "<u8"),  # of the whole file or record that it is a part of: decides the split
        ("key", "<u8", (2,)),  # of its own text: equal texts have equal keys
    ]
)
_BLOCK = 2**20
_DESCRIPTORS = 3  # that a mapped shard holds


def token_dtype(vocab_size: int) -> np.dtype:
    """Return how ids are stored. Raises ConfigError beyond 2^32 ids."""
    if vocab_size > 2**32:
        raise ConfigError(f"ids of {vocab_size} tokens do not fit uint32; take a tokenizer with fewer")
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def content_key(text: str) -> tuple[int, int]:
    """Return 128 bits of the SHA-256 of a text."""
    digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


class ShardWriter:
    """Writes one shard, hashing while it writes; `close` syncs the files and returns the manifest's entry."""

    def __init__(self, folder: Path, name: str, *, dtype: np.dtype) -> None:
        self.name, self.dtype = name, dtype
        self.documents = self.tokens = self.bytes = self.milliseconds = 0
        self._folder = folder
        self._lines = 0
        self._files: dict[str, IO[bytes]] = {s: (folder / f"{name}{s}").open("wb") for s in SUFFIXES}
        self._hashes = {s: sha256() for s in SUFFIXES}

    def add(self, ids_T: np.ndarray, records_N: np.ndarray, lines: bytes) -> None:
        """Append documents: their ids (boundaries included), records whose `end` and `line` count from this call on."""
        records_N = records_N.copy()
        records_N["end"] += self.tokens
        records_N["line"] += self._lines
        for suffix, raw in (
            (".bin", ids_T.astype(self.dtype, copy=False).tobytes()),
            (".idx", records_N.tobytes()),
            (".jsonl", lines),
        ):
            self._files[suffix].write(raw)
            self._hashes[suffix].update(raw)
        self.documents += len(records_N)
        self.tokens += len(ids_T)
        self.bytes += int(records_N["bytes"].sum())
        self.milliseconds += int(records_N["milliseconds"].sum())
        self._lines += len(lines)

    def close(self) -> dict[str, Any]:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        return {
            "name": self.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "seconds": self.milliseconds / 1000,
            "sha256": {s: h.hexdigest() for s, h in self._hashes.items()},
            "sizes": {s: (self._folder / f"{self.name}{s}").stat().st_size for s in SUFFIXES},
        }


class Shard:
    """One shard, memory-mapped."""

    def __init__(self, folder: Path, name: str, *, dtype: np.dtype) -> None:
        self.ids = _mapped(folder / f"{name}.bin", dtype)
        self.records = _mapped(folder / f"{name}.idx", DOCUMENT)
        self._lines = _mapped(folder / f"{name}.jsonl", np.dtype("u1"))

    def ids_of(self, number: int) -> np.ndarray:
        start = int(self.records["end"][number - 1]) if number else 0
        return self.ids[start : int(self.records["end"][number])]

    def line(self, number: int) -> bytes:
        start = int(self.records["line"][number - 1]) if number else 0
        return self._lines[start : int(self.records["line"][number])].tobytes()

    def lines(self, start: int, stop: int) -> bytes:
        """Return the lines of documents start..stop as they stand in the file."""
        first = int(self.records["line"][start - 1]) if start else 0
        return self._lines[first : int(self.records["line"][stop - 1]) if stop else 0].tobytes()


_shards: "OrderedDict[tuple[Path, str, str], Shard]" = OrderedDict()  # of this process, the one used last at the end


def _opened(folder: Path, entry: Mapping[str, Any], dtype: np.dtype) -> Shard:
    """Return a shard of a manifest, mapped; those not used for longest are let go where this process may hold no more."""
    key = (folder, entry["name"], entry["sha256"][".bin"])
    if (found := _shards.pop(key, None)) is None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = 256 if limit == resource.RLIM_INFINITY else max(4, min(256, limit // 4 // _DESCRIPTORS))
        while len(_shards) >= most:
            _shards.popitem(last=False)
        found = Shard(folder, entry["name"], dtype=dtype)
    _shards[key] = found
    return found


def _mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    size = file.stat().st_size
    return np.memmap(file, dtype=dtype, mode="r", shape=(size // dtype.itemsize,)) if size else np.empty(0, dtype)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Settings of a prepared corpus."""

    neutral: ClassVar[Neutral] = "documents are what they are"
    path: str = place(default="")  # the folder that `seedbed prepare` wrote
    order: str | None = None  # of the training documents: a name under orders/, see `seedbed order`
    columns: tuple[str, ...] = ()  # prepared columns that documents carry in their meta
    verify: Literal["hashes", "sizes"] = "hashes"  # at open; sizes only: for terabytes, with `seedbed validate` beforehand

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return manifest.json. Raises DataError if the folder is no finished preparation."""
        return read_manifest(Path(data_place(self.path)))

    def tokenizer_spec(self) -> dict[str, Any]:
        """Return the tokenizer with which the folder was prepared, as a recipe names it."""
        spec = dict(self.manifest["tokenizer"]["part"])
        if "path" in spec:
            spec["path"] = data_place(self.path)  # its files lie beside the shards
        return spec

    def store(self, tokenizer: Tokenizer) -> "ShardStore":
        """Open the shards. Raises DataError, naming the file, if one is missing, altered or does not fit the tokenizer."""
        folder = Path(data_place(self.path))
        problems = damage(folder, hashes=self.verify == "hashes")
        if problems:
            raise DataError(f"{'; '.join(problems[:3])}; put the file back or prepare the folder again")
        wanted = self.manifest["tokenizer"]
        if tokenizer.fingerprint() != wanted["fingerprint"]:
            raise DataError(
                f"{folder} was prepared with the tokenizer {wanted['fingerprint']} ({wanted['vocab_size']} ids), not with "
                f"{tokenizer.fingerprint()} ({tokenizer.vocab_size} ids); leave the tokenizer out to take the "
                "folder's own, or prepare again"
            )
        return ShardStore(folder, self.manifest, tokenizer=tokenizer, order=self.order, columns=self.columns)


class ShardStore(Corpus):
    """Opened shards: a TokenStore, and a Corpus whose documents are decoded when they are looked at."""

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        *,
        tokenizer: Tokenizer,
        order: str | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.folder, self.manifest, self.tokenizer = folder, manifest, tokenizer
        self.vocab_size, self.boundary_id = tokenizer.vocab_size, tokenizer.boundary_id
        self.orders: Mapping[str, Int64[np.ndarray, N]] = {} if order is None else read_order(folder, order, manifest)
        self._order = order
        self._columns = {name: read_column(folder, name, manifest) for name in columns}
        dtype = np.dtype(manifest["dtype"])
        self._names: dict[str, list[str]] = {s: [e["name"] for e in manifest["shards"] if e["split"] == s] for s in SPLITS}
        self._tokens = {e["name"]: int(e["tokens"]) for e in manifest["shards"]}
        entries = {e["name"]: e for e in manifest["shards"]}
        self._opened = lambda name: _opened(folder, entries[name], dtype)
        self._first: dict[str, list[int]] = {}  # the first document number of every shard
        self._ends: dict[str, list[int]] = {}  # tokens up to the end of every shard
        self._offsets: dict[str, np.ndarray] = {}

    def offsets(self, split: str) -> Int64[np.ndarray, "N1"]:
        if split not in self._offsets:
            pieces, firsts, tokens, documents = [np.zeros(1, np.int64)], [], 0, 0
            for shard in self._of(split):
                firsts.append(documents)
                pieces.append(shard.records["end"].astype(np.int64) + tokens)
                tokens += len(shard.ids)
                documents += len(shard.records)
            self._first[split] = firsts
            self._offsets[split] = np.concatenate(pieces)
        return self._offsets[split]

    def tokens(self, split: str, start: int, stop: int) -> Int32[np.ndarray, "T"]:
        """Return tokens start..stop of all documents of a split, one after the other."""
        ends = self._ends_of_shards(split)
        found, at = [], bisect_right(ends, start)
        while at < len(ends) and start < stop:
            before = ends[at - 1] if at else 0
            found.append(self._opened(self._names[split][at]).ids[start - before : stop - before])
            start, at = ends[at], at + 1
        return np.concatenate(found).astype(np.int32) if found else np.empty(0, np.int32)

    def _ends_of_shards(self, split: str) -> list[int]:
        if split not in self._ends:
            self._ends[split] = list(accumulate(self._tokens[name] for name in self._named(split)))
        return self._ends[split]

    def document(self, split: str, number: int) -> Document:
        """Return a document: its text decoded; its ids (without the boundary), its bytes and whether the text as it was
        prepared was another as data."""
        if not 0 <= number < len(self.offsets(split)) - 1:
            raise IndexError(number)
        at = bisect_right(self._first[split], number) - 1
        shard, inside = self._opened(self._names[split][at]), number - self._first[split][at]
        line = json.loads(shard.line(inside))
        ids_T = shard.ids_of(inside)[1:].astype(np.int32)
        text = self.tokenizer.decode(ids_T)
        joined = {name: column.value(split, number) for name, column in self._columns.items()}
        turns, at_character = [], 0
        for speaker, length in line.get("turns", []):
            turn = text[at_character : at_character + length]
            turns.append(Turn(speaker, turn.removeprefix(f"{speaker}: ").removesuffix("\n")))
            at_character += length
        return Document(
            id=line["id"],
            text=text,
            turns=tuple(turns),
            data={
                "ids": ids_T,
                "bytes": int(shard.records["bytes"][inside]),
                "changed": content_key(text) != tuple(map(int, shard.records["key"][inside])),  # by the tokenizer
            },
            meta={**line.get("meta", {}), **joined},
        )

    def documents(self, split: str) -> Sequence[Document]:
        return _Documents(self, split)

    def records(self, split: str) -> Iterator[tuple[np.ndarray, list[str]]]:
        """Yield the DOCUMENT records and the ids of the documents of each shard."""
        for shard in self._of(split):
            lines = shard.lines(0, len(shard.records)).split(b"\n")[:-1]
            yield shard.records, [json.loads(line)["id"] for line in lines]

    def noted(self) -> Mapping[str, Any]:
        return self.manifest

    def size_bytes(self, split: str) -> int:
        return int(self.manifest["splits"][split]["bytes"])

    def seconds(self, split: str) -> float:
        """Return how long the split's recordings are, 0 for text."""
        return float(self.manifest["splits"][split]["seconds"])

    def fingerprint(self) -> str:
        facts = [e["sha256"] for e in self.manifest["shards"]]
        text = json.dumps([facts, self.tokenizer.fingerprint(), self._order], sort_keys=True)
        if self._order is not None:
            text += "".join(sha256(o.tobytes()).hexdigest() for o in self.orders.values())
        return sha256(text.encode()).hexdigest()[:16]

    def _of(self, split: str) -> Iterator[Shard]:
        return map(self._opened, self._named(split))

    def _named(self, split: str) -> list[str]:
        if split not in self._names:
            raise ConfigError(f"no split {split!r}; {nearest(split, SPLITS)}")
        return self._names[split]


class _Documents(Sequence[Document]):
    """The documents of a split, decoded one by one."""

    def __init__(self, store: ShardStore, split: str) -> None:
        self._store, self._split = store, split

    def __len__(self) -> int:
        return len(self._store.offsets(self._split)) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self._store.document(self._split, number + len(self) if number < 0 else number)


def is_shards(folder: Path) -> bool:
    """Whether a folder looks like one that `seedbed prepare` wrote, finished or not."""
    return any(os.path.isfile(folder / f"{split}-00000.idx") for split in SPLITS)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder. Raises DataError if there is none, it is broken or of another format."""
    file = folder / MANIFEST
    if not file.is_file():
        begun = " (it was begun: run the same `seedbed prepare` again to go on)" if (folder / ".work").is_dir() else ""
        raise DataError(f"{folder} holds no {MANIFEST}{begun}; give a folder that `seedbed prepare` wrote")
    manifest = read_object(file, advice="put it back or prepare the folder again")
    try:
        if manifest["format"] != FORMAT:
            raise DataError(f"{file} has format {manifest['format']}, this version reads {FORMAT}; prepare the folder again")
        if manifest["sha256"] != manifest_hash(manifest):
            raise ValueError("its SHA-256 differs, it was altered since it was written")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{file} is broken ({e}); put it back or prepare the folder again") from None
    return manifest


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Return the hash that a manifest carries of all else in it."""
    return sha256(json.dumps({k: v for k, v in manifest.items() if k != "sha256"}, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, *, hashes: bool = True) -> list[str]:
    """Return what is wrong with the files of a prepared folder, each named: missing, cut, or altered. Hashes read all bytes."""
    manifest = read_manifest(folder)
    problems = []
    expected = [(f"{e['name']}{s}", e["sizes"][s], e["sha256"][s]) for e in manifest["shards"] for s in SUFFIXES] + [
        (name, f["size"], f["sha256"]) for name, f in manifest["files_beside"].items()
    ]
    for name, size, digest in expected:
        file = folder / name
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{file} has {file.stat().st_size} bytes, {size} were written")
        elif hashes and file_hash(file) != digest:
            problems.append(f"{file} was altered since it was written (its SHA-256 differs)")
    return problems


def file_hash(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
