"""The bytes of a file, plain or packed (.gz, .zst, .xz, .bz2), unpacked in blocks and never past a bound."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from seedbed.core.errors import DataError
from seedbed.sources.files import BadInput, Bounds, FoundFile, packing_of, shown, too_long

BLOCK = 2**16  # bytes that are unpacked at a time
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


def open_file(path: Path, bounds: Bounds = Bounds(), *, name: str | None = None, start: int = 0) -> io.BufferedReader:
    """Return the unpacked bytes of a file as a stream, opened at the first read; `start` passes over bytes of a plain file.

    Reading raises BadInput (which calls the file `name`) if the file cannot be opened or unpacked to its end, or passes
    `bounds.file_bytes`, and DataError if the package that unpacks it is missing. What stands before the bad place comes first.
    """
    return io.BufferedReader(_Unpacked(path, bounds, name=name or shown(str(path)), start=start), BLOCK)


def open_seekable(file: FoundFile, bounds: Bounds) -> BinaryIO:
    """Return a file to read at any place; a packed one is unpacked to disk first. Raises BadInput as `open_file` does."""
    if not packing_of(file.path):
        return _open(file.path, file.name)
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with open_file(file.path, bounds, name=file.name) as opened:
            shutil.copyfileobj(opened, unpacked, BLOCK)
        unpacked.seek(0)
    except BaseException:
        unpacked.close()
        raise
    return unpacked


def read_whole(file: FoundFile, bounds: Bounds) -> bytes:
    """Return all bytes of a file. Raises BadInput as `open_file` does, and past `bounds.document_bytes`."""
    blocks, size = [], 0
    with open_file(file.path, bounds, name=file.name) as opened:
        while block := opened.read1(BLOCK):
            blocks.append(block)
            size += len(block)
            if size > bounds.document_bytes:
                raise too_long(file.name, bounds)
    return b"".join(blocks)


def _open(path: Path, name: str) -> BinaryIO:
    problem = "it is neither a file nor a link to one"  # a named pipe would be waited for without end
    try:
        if path.is_file() or not path.exists():
            return path.open("rb")
    except OSError as e:
        problem = str(e.strerror)
    raise BadInput(file=name, reason="unreadable file", problem=f"cannot be read: {problem}", advice="give a readable file")


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, counted, with every failure as a BadInput."""

    def __init__(self, path: Path, bounds: Bounds, *, name: str, start: int) -> None:
        super().__init__()
        self._path, self._bounds, self._name, self._seen = path, bounds, name, start
        self._read1: Callable[[int], bytes] | None = None
        self._closers: list[Any] = []

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            if self._read1 is None:
                self._read1 = self._opened()
            block = self._read1(len(buffer))
        except EOFError:
            raise self._bad("truncated archive", "cannot be read further: it ends in the middle of the archive") from None
        except (zlib.error, lzma.LZMAError, _BrokenFrame) as e:
            raise self._bad("corrupt archive", f"cannot be read further: {e}") from None
        except OSError as e:  # without a number it comes from gzip or bz2, not from the disk
            kind = "unreadable file" if e.errno else "corrupt archive"
            raise self._bad(kind, f"cannot be read further: {e.strerror or e}") from None
        self._seen += len(block)
        if self._seen > self._bounds.file_bytes:
            problem = f"it unpacks to more than {self._bounds.file_bytes} bytes"
            raise self._bad("file too large", problem, "cut it, or raise the bound")
        buffer[: len(block)] = block
        return len(block)

    def _opened(self) -> Callable[[int], bytes]:
        raw = _open(self._path, self._name)
        self._closers.append(raw)
        packing = packing_of(self._path)
        if not packing:
            raw.seek(self._seen)
            return raw.read
        if os.fstat(raw.fileno()).st_size == 0:
            raise EOFError  # gzip alone takes an empty file for an empty archive
        if packing == ".zst":
            return _ZstdBlocks(raw, name=self._name).read1
        opened = _OPENERS[packing](raw)
        self._closers.append(opened)
        return opened.read1

    def _bad(self, reason: str, problem: str, advice: str = "give a readable, whole file") -> BadInput:
        return BadInput(file=self._name, reason=reason, problem=problem, advice=advice, byte=self._seen)

    def close(self) -> None:
        for opened in reversed(self._closers):
            opened.close()
        super().close()


class _BrokenFrame(Exception):  # noqa: N818
    """zstandard's own error, which has no name here until its package is imported."""


class _ZstdBlocks:
    """A .zst file, frame by frame: zstandard's own reader takes a truncated file for a whole one."""

    STEP = 1024  # packed bytes at a time; they unpack to 32 MiB at most

    def __init__(self, raw: BinaryIO, *, name: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(f"reading {name} needs a further package: pip install 'seedbed[data]'") from None
        self._raw, self._package = raw, zstandard
        self._frame: Any = None
        self._left, self._ready = b"", memoryview(b"")

    def read1(self, size: int) -> bytes:
        while not self._ready:
            packed = self._left or self._raw.read(self.STEP)
            if not packed and self._frame is not None:
                raise EOFError
            if not packed:
                return b""
            self._ready = memoryview(self._unpack(packed))
        block, self._ready = bytes(self._ready[:size]), self._ready[size:]
        return block

    def _unpack(self, packed: bytes) -> bytes:
        try:
            if self._frame is None:
                self._frame = self._package.ZstdDecompressor().decompressobj()
            unpacked: bytes = self._frame.decompress(packed)
        except self._package.ZstdError as e:
            raise _BrokenFrame(e) from None
        self._left = b""
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None
        return unpacked
