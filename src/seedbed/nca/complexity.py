"""How complex a roll-out looks: the published gzip ratio, and the same ratio over what that alphabet can reach at most.

The ratio is len(gzip, level 9) / len(bytes) of the patch tokens of ten frames, without delimiters, as int32 little-endian.
It depends on alphabet, data type and number of tokens, so it is never compared across these; the normalized ratio divides by
the mean ratio of uniformly random tokens. No zlib of the machine is asked: see `deflate`.
"""

from functools import cache

import numpy as np
from jaxtyping import Int32

from seedbed.core.draws import stream
from seedbed.nca.deflate import gzip_length

SELECTION_FRAMES = 10  # as published


def gzip_ratio(tokens: Int32[np.ndarray, "..."]) -> float:
    """Return compressed over raw size, the whole gzip container counted (18 bytes of header and trailer)."""
    raw = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return gzip_length(np.frombuffer(raw, dtype=np.uint8)) / len(raw)


@cache
def ceiling(vocab_size: int, tokens: int) -> float:
    """Return the mean ratio of 32 uniformly random sequences: what no rule can exceed except by luck."""
    draws = stream(0, "gzip-ceiling", vocab_size, tokens)
    return float(np.mean([gzip_ratio(draws.integers(0, vocab_size, tokens, dtype=np.int32)) for _ in range(32)]))


@cache
def floor(tokens: int) -> float:
    """Return the ratio of a constant sequence: the least that any rule can have."""
    return gzip_ratio(np.zeros(tokens, dtype=np.int32))
