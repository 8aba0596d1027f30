"""Saying something must stop no work: a reader that has left, a full disk behind standard output, a locale without a letter."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

LEFT = (errno.EPIPE, errno.ECONNRESET)  # the reader went away, which is no fault


def heard_or_not(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return `say` without the errors of whoever listens: what is computed goes on."""

    def said(line: str) -> None:
        with suppress(OSError):
            say(line)

    return said


class Patient:
    """A text stream whose failures are kept, not raised; after the first nothing more is written.

    Characters that the stream's encoding lacks come as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failed: OSError | None = None
        with suppress(AttributeError, ValueError):  # not a plain text stream, such as one that a test put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        if self.failed is None:
            try:
                return self._stream.write(text)
            except OSError as e:
                self._give_up(e)
        return len(text)

    def flush(self) -> None:
        if self.failed is None:
            try:
                self._stream.flush()
            except OSError as e:
                self._give_up(e)

    def _give_up(self, error: OSError) -> None:
        self.failed = error
        with suppress(OSError, ValueError):  # so that the interpreter's last flush finds a place for what is left
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def patient_streams() -> tuple[Patient, Patient]:
    """Put patient streams in the place of standard output and error, also where these were closed; return both."""
    both = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lasts as long as the process
        both.append(stream if isinstance(stream, Patient) else Patient(stream))
        setattr(sys, name, both[-1])
    return both[0], both[1]
