"""How complex a roll-out looks: the published gzip ratio, and the same ratio over what that alphabet can reach at most.

The ratio is len(gzip, level 9) / len(bytes) of the patch tokens of ten frames, without delimiters, as int32 little-endian.
It depends on alphabet, data type, number of tokens and (by a byte now and then) on the zlib build, so it is never compared
across these; the normalized ratio divides by the mean ratio of uniformly random tokens.
"""

import zlib
from functools import cache

import numpy as np
from jaxtyping import Int32

from seedbed.core.draws import stream

SELECTION_FRAMES = 10  # as published
_KNOWN = (
    bytes((i**3 * 2654435761 >> 19) % 11 * (i % 4 == 0) for i in range(1440)),
    315,
)  # an input, and its compressed length by zlib 1.2.13


def gzip_ratio(tokens: Int32[np.ndarray, "..."]) -> float:
    """Return compressed over raw size, the whole gzip container counted (18 bytes of header and trailer)."""
    raw = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return (len(packer.compress(raw)) + len(packer.flush())) / len(raw)


@cache
def ceiling(vocab_size: int, tokens: int) -> float:
    """Return the mean ratio of 32 uniformly random sequences: what no rule can exceed except by luck."""
    draws = stream(0, "gzip-ceiling", vocab_size, tokens)
    return float(np.mean([gzip_ratio(draws.integers(0, vocab_size, tokens, dtype=np.int32)) for _ in range(32)]))


@cache
def floor(tokens: int) -> float:
    """Return the ratio of a constant sequence: the least that any rule can have."""
    return gzip_ratio(np.zeros(tokens, dtype=np.int32))


def zlib_build() -> str:
    """Return which zlib compresses here: its version, and whether a known input has the length that zlib 1.2.13 gives."""
    raw, length = _KNOWN
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    size = len(packer.compress(raw)) + len(packer.flush())
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION}, known answer {'met' if size == length else f'missed ({size})'}"
