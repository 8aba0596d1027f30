"""Named random streams: every draw is a function of a seed and of names, never of what was drawn before.

Two parts that draw under different names cannot move each other's draws; that is what pairs the arms of a study.
"""

import hashlib

import numpy as np


def key(seed: int, *names: str | int) -> int:
    """Return 64 bits that depend on the seed and all names (equal on every machine)."""
    text = "\x1f".join([str(seed), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return a fresh generator for these names.

    >>> stream(0, "order", 3).integers(10) == stream(0, "order", 3).integers(10)
    True
    """
    return np.random.Generator(np.random.Philox(key=key(seed, *names)))
