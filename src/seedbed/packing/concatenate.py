"""All documents one after the other, a boundary in front of each, cut into rows: no padding, no token dropped but the last.

Row i shows tokens i*L to (i+1)*L - 1 and asks for the same shifted by one, so every token but the first is asked once.
Letters: L seq_len, T tokens of a row (L + 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

import numpy as np

from seedbed.core.bounds import LONGEST_ROW, check_ranges, within
from seedbed.core.errors import DataError
from seedbed.core.protocols import Neutral, Source, TokenStore
from seedbed.core.records import Row
from seedbed.packing.rows import restarted_positions, usage


@dataclass(frozen=True, kw_only=True)
class Concatenate:
    """Settings of the packer."""

    neutral: ClassVar[Neutral] = "each packing lays out rows of its own"
    seq_len: int = within(1, LONGEST_ROW, default=1024)
    reset_positions: bool = False  # positions restart at 0 for every document; one that goes on from the row before too

    def __post_init__(self) -> None:
        check_ranges(self)

    def pack(self, store: TokenStore) -> "ConcatenatedRows":
        """Return the rows of a store. Raises DataError if the training text is shorter than a row."""
        packed = ConcatenatedRows(store=store, seq_len=self.seq_len, reset_positions=self.reset_positions)
        if packed.size("train") < 1:
            raise DataError(
                f"the training part of the corpus has {store.offsets('train')[-1]} tokens, a row needs "
                f"{self.seq_len + 1}; give more text or a smaller seq_len"
            )
        return packed


@dataclass(frozen=True, kw_only=True)
class ConcatenatedRows(Source):
    """A source of rows over the tokens of a store; only what a row shows is read."""

    store: TokenStore
    seq_len: int
    reset_positions: bool

    @property
    def vocab_size(self) -> int:
        return self.store.vocab_size

    def packed_from(self) -> TokenStore:
        return self.store

    def size(self, split: str) -> int:
        return max(0, (int(self.store.offsets(split)[-1]) - 1) // self.seq_len)

    def rows(self, indices: Sequence[int], *, seed: int, split: str) -> list[Row]:
        """Return the asked rows; `seed` changes nothing, the text is what it is."""
        return [self._row(split, i * self.seq_len) for i in indices]

    def _row(self, split: str, start: int) -> Row:
        stop = start + self.seq_len + 1
        places_T = np.arange(start, stop, dtype=np.int64)
        documents_T = (np.searchsorted(self.store.offsets(split), places_T, side="right") - 1).astype(np.int32)
        return Row(
            tokens_T=self.store.tokens(split, start, stop),
            weights_T=np.ones(self.seq_len + 1, dtype=np.float32),
            documents_T=documents_T,
            positions_TA=restarted_positions(documents_T) if self.reset_positions else None,
        )

    def report(self, split: str) -> dict[str, int | float]:
        """Return how well the rows of a split are used; see `seedbed.packing.rows.usage`."""
        rows, tokens = self.size(split), int(self.store.offsets(split)[-1])
        asked = rows * self.seq_len
        shown = asked + 1 if rows else 0
        return usage(rows=rows, row_tokens=self.seq_len + 1, tokens=tokens, asked=asked, padding=0, cropped=tokens - shown)

    def fingerprint(self) -> str:
        facts = f"{self.store.fingerprint()}/{self.seq_len}" + ("/reset_positions" if self.reset_positions else "")
        return sha256(facts.encode()).hexdigest()[:16]
