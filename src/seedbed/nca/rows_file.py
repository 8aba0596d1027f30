"""Rows of tokens into a .npy file, block by block: as many as the disk holds, whatever the memory.

Letters: R rows, T tokens.
"""

import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from seedbed.core.durable import check_place, whole_file
from seedbed.core.errors import ConfigError
from seedbed.nca.automaton import Automaton

_BLOCK_TOKENS = 2**22  # in memory at a time, about


@dataclass(frozen=True, kw_only=True)
class RowsFile:
    """What was written."""

    out: str
    rows: int
    tokens: int  # of a row
    vocab_size: int
    sha256: str  # of the tokens as int32, row by row
    fingerprint: str


def write_rows(
    automaton: Automaton, out: Path, rows: int, *, frames: int, seed: int, split: str, start: int, threads: int
) -> RowsFile:
    """Write the framed tokens of `rows` roll-outs from index `start` on: int32, R x T, the same bytes on every machine.

    Raises RefusedError if the file exists, ConfigError if the disk has no room for it.
    """
    check_place(out)
    tokens = frames * automaton.patches.frame_tokens
    there = next(p for p in out.absolute().parents if p.exists())
    needed, free = 4 * rows * tokens, shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            f"{rows:,} rows of {tokens:,} tokens take {needed / 2**30:,.0f} GiB, and {there} has {free / 2**30:,.0f} GiB left; "
            "ask for fewer rows, or write them elsewhere"
        )
    digest, at_a_time = sha256(), max(1, _BLOCK_TOKENS // tokens)
    with whole_file(out, over=False) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": (rows, tokens)})
        for first in range(0, rows, at_a_time):
            count = min(at_a_time, rows - first)
            block_RT = automaton.generate(count, frames=frames, seed=seed, split=split, start=start + first, threads=threads)
            raw = np.ascontiguousarray(block_RT, dtype="<i4").tobytes()
            digest.update(raw)
            file.write(raw)
    return RowsFile(
        out=str(out),
        rows=rows,
        tokens=tokens,
        vocab_size=automaton.patches.vocab_size,
        sha256=digest.hexdigest(),
        fingerprint=automaton.fingerprint(),
    )
