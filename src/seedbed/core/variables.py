"""What launchers say in environment variables, looked at before it is believed: a shell may hold those of an earlier job."""

import os

from seedbed.core.errors import ConfigError

_RANKS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them all


def number_of(name: str, *, default: int) -> int:
    """Return a variable as a whole number. Raises ConfigError if it is something else."""
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} is {value!r}, which is no whole number; unset it, or give one")
    return int(value)


def among_ranks() -> bool:
    """Whether a launcher started this process as one of several ranks: it sets all of its variables, and more than one rank."""
    return number_of("WORLD_SIZE", default=1) > 1 and all(os.environ.get(name) for name in _RANKS)


def left_over() -> str:
    """Return a word on variables of several ranks that no launcher can have set for this process; empty if there are none."""
    if number_of("WORLD_SIZE", default=1) == 1 or among_ranks():
        return ""
    missing = ", ".join(name for name in _RANKS if not os.environ.get(name))
    return (
        f"note: WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing} is not set: computing alone (unset WORLD_SIZE, or "
        "start several ranks with torchrun)"
    )


def first_rank() -> bool:
    """Whether this process speaks: it is alone, or the first of its ranks."""
    return not among_ranks() or number_of("RANK", default=0) == 0
