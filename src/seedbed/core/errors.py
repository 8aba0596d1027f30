"""What a user can cause, as exceptions; each knows the exit code of the command line.

Every message is one paragraph: what was given, what is allowed, what to do next.
"""

import difflib
from collections.abc import Iterable


class SeedbedError(Exception):
    """Base of all errors that a user can cause."""

    exit_code = 1


class RunFailedError(SeedbedError):
    """A run stopped by itself: its loss is not finite."""

    exit_code = 1


class StoppedRunError(RunFailedError):
    """Stopped by the machine (no space left, a killed worker): nothing about the method, so never recorded as a result."""


class ConfigError(SeedbedError, ValueError):
    """A recipe, setting or argument that cannot be right.

    Also a ValueError, so that pydantic reports it with its path in the recipe.
    """

    exit_code = 2


class DataError(SeedbedError):
    """Missing, undecodable or too little data, or a missing optional package."""

    exit_code = 3


class RefusedError(SeedbedError):
    """Possible but wrong: an unfair comparison, an overwrite, a changed recipe on resume."""

    exit_code = 4


class InterruptedRunError(SeedbedError):
    """Stopped by a signal after the step was finished and a checkpoint saved."""

    exit_code = 130


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up: Python's and numpy's own, torch's of a processor or of a GPU."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)  # torch.OutOfMemoryError is one
        and ("out of memory" in said or "can't allocate memory" in said or "not enough memory" in said)
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as "did you mean 'grid'?"; if nothing is near, the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, [k for k in known if k != name], n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + (", ".join(known) or "none")
