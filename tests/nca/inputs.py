"""Inputs for the deflate length: real roll-outs and random bytes of many kinds, and what the machine's zlib makes of them."""

import zlib

import numpy as np

from seedbed.nca import Automaton

KINDS = 10


def zlib_length(data: bytes) -> int:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return len(packer.compress(data)) + len(packer.flush())


def is_classic() -> bool:
    """Whether this machine's zlib makes the lengths of zlib 1.2.12 to 1.3.1 (zlib-ng and others do not)."""
    data = bytes((i**3 * 2654435761 >> 19) % 11 * (i % 4 == 0) for i in range(1440))
    return zlib_length(data) == 315


def example(number: int, rng: np.random.Generator) -> bytes:
    """Return an input; ten kinds take turns, two of them tokens of roll-outs."""
    size, kind = int(rng.integers(0, 3000)), number % KINDS
    if kind == 0:
        return rng.bytes(size)
    if kind == 1:
        return rng.integers(0, int(rng.integers(1, 9)), size, dtype=np.uint8).tobytes()
    if kind == 2:
        return rng.integers(0, int(rng.integers(1, 10_000)), size // 4, dtype=np.int32).tobytes()
    if kind == 3:
        return (rng.geometric(0.1 + 0.8 * rng.random(), size) % 256).astype(np.uint8).tobytes()
    if kind == 4:
        return (rng.bytes(int(rng.integers(1, 300))) * 20)[:size]
    if kind == 5:  # a period with faults
        data = np.frombuffer((rng.bytes(int(rng.integers(1, 300))) * 20)[:size], dtype=np.uint8).copy()
        faults = rng.random(len(data)) < 0.03
        data[faults] = rng.integers(0, 256, faults.sum())
        return data.tobytes()
    if kind == 6:
        return bytes(size)
    if kind == 7:  # counts that grow like Fibonacci's: the longest codes
        data = np.repeat(np.arange(20, dtype=np.uint8), [min(int(1.6**k), 700) for k in range(20)])
        return rng.permutation(data).tobytes()
    states = int(rng.choice([2, 3, 4, 10]))
    automaton = Automaton(states=states, grid=int(rng.choice([4, 8, 12])), patch=int(rng.choice([1, 2])))
    patches_FP = automaton.patches.encode(automaton.rollout(number, frames=10, seed=0).frames_FGG)
    return patches_FP.astype("<i4").tobytes()
