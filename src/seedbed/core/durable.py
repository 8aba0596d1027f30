"""Files that are either whole or absent, and folders that one process writes at a time."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from seedbed.core.errors import RefusedError


def refuse_existing(path: Path, *, empty: bool = False) -> None:
    """Raise RefusedError if anything goes by this name: a file, a folder (unless an `empty` one will do), a link to nothing."""
    if os.path.lexists(path) and not (empty and path.is_dir() and not any(path.iterdir())):
        kind = "a folder" if path.is_dir() else "a file" if path.exists() else "a link to nothing"
        raise RefusedError(f"{path} exists already ({kind}) and nothing is overwritten; give another name, or remove it")


def check_place(path: Path, *, folder: bool = False) -> None:
    """Raise RefusedError unless a file can be made at a path, or a `folder` (one that is there will do): before the work."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except OSError as e:
        raise RefusedError(f"nothing can be made at {path}: {e.strerror}; give another name") from None
    if found is not None and not (folder and path.is_dir()):
        refuse_existing(path)
    there = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise RefusedError(f"nothing can be made at {path}: {there} is no folder; give another name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RefusedError(
            f"nothing can be made at {path}: you may not write into {there}; give another name, or change its rights"
        )


def write_whole(path: Path, content: str | bytes, *, over: bool = True) -> None:
    """Write a file so that a crash at any moment leaves the old content or the new, never a part. Text is UTF-8.

    Raises RefusedError if it may not be written `over` one that is there.
    """
    with whole_file(path, over=over) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path, *, over: bool = True) -> Iterator[IO[bytes]]:
    """Give a file to write to; on leaving it is synced and renamed to `path`, on an error removed.

    If not `over`, RefusedError is raised when one is there, at the beginning and at the end (another may have been faster).
    """
    if not over:
        check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # the system takes from that what umask says
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if over:
            os.replace(temporary, path)
        else:
            _take_name(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _take_name(temporary: Path, path: Path) -> None:
    """Rename a file unless the name is taken."""
    try:
        os.link(temporary, path)  # which fails if it is, where a rename would not
    except FileExistsError:
        refuse_existing(path)
        raise
    except OSError:  # a file system without hard links
        refuse_existing(path)
        os.replace(temporary, path)
    else:
        temporary.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path, *, over: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; on leaving it is synced and renamed to `path`, on an error removed.

    If not `over`, RefusedError is raised when anything but an empty folder goes by the name of `path`, first and last.
    """
    if not over:
        refuse_existing(path, empty=True)
        check_place(path, folder=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        sync_folder(temporary)
        if over and path.exists():
            shutil.rmtree(path)
        try:
            os.rename(temporary, path)
        except OSError:  # another process made it meanwhile
            refuse_existing(path, empty=True)
            raise
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class BusyError(RefusedError):
    """Another process holds a folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process. The system lets go when the process ends, however it ends, so no lock is ever stale.

    Raises BusyError if another process holds it, RefusedError if it cannot be a folder.
    """
    check_place(folder, folder=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise BusyError(
                f"{folder} is being written by process {holder}; wait for it to end or give another --out"
            ) from None
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            break
        os.close(handle)  # its holder removed it just now: the next try makes a new one
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
