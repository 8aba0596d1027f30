"""Compiled functions whose machine code is kept from process to process, wherever this user may write.

numba alone wants a folder beside the source or in the user's cache, and ends the import where neither can be written (a
read-only installation, another user, no home); a kept file that was cut short ends the first call.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from numba import config, njit
from numba.core.caching import FunctionCache


def compiled(function: Callable[..., Any] | None = None, *, inline: Literal["never", "always"] = "never") -> Any:
    """Compile a function when it is first called, without Python's lock. Used as a decorator, with or without settings."""
    if function is None:
        return partial(compiled, inline=inline)
    dispatcher: Any = njit(nogil=True, inline=inline)(function)
    if (cache := _cache_of(function)) is not None:
        dispatcher._cache = cache
    return dispatcher


def kept_in() -> Path | None:
    """Return where machine code is kept; None if this user may write nowhere, so that every process compiles for itself."""
    cache = _cache_of(kept_in)
    return None if cache is None else Path(cache.cache_path)


class _Kept(FunctionCache):
    """What cannot be read or kept is compiled, as if nothing had been kept."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # of a damaged pickle comes any kind
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


def _cache_of(function: Callable[..., Any]) -> _Kept | None:
    settings: Any = config  # NUMBA_CACHE_DIR and others
    if not settings.CACHE_DIR and os.path.expanduser("~").startswith("~"):
        settings.CACHE_DIR = _own_folder()  # numba would make a folder named ~ in the one that we stand in
    try:
        return _Kept(function)
    except RuntimeError:  # numba found no folder to write into
        settings.CACHE_DIR = _own_folder()
    try:
        return _Kept(function) if settings.CACHE_DIR else None
    except RuntimeError:
        return None


def _own_folder() -> str:
    """Return a temporary folder that nobody else may write into (what lies there is executed); "" if there is none."""
    try:
        folder = Path(tempfile.gettempdir()) / f"seedbed-compiled-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return ""
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return str(folder) if ours else ""
