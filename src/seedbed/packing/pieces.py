"""Rows made of whole pieces of documents, filled up with padding; packers say which piece stands in which row.

Letters: L seq_len, T tokens of a row (L + 1), D1 documents + 1, P pieces of a split, R1 rows + 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from jaxtyping import Bool, Int32, Int64

from seedbed.core.errors import DataError
from seedbed.core.protocols import Source, TokenStore
from seedbed.core.records import Row
from seedbed.packing.rows import PADDING, restarted_positions, usage


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The pieces of a split in the order in which they are shown: row r holds pieces rows_R1[r] to rows_R1[r + 1]."""

    starts_P: Int64[np.ndarray, "P"]  # first token of the piece, counted through the split
    lengths_P: Int64[np.ndarray, "P"]  # tokens, at most T
    documents_P: Int32[np.ndarray, "P"]
    continued_P: Bool[np.ndarray, "P"]  # whether the first token is the last of the document's piece before
    rows_R1: Int64[np.ndarray, "R1"]


@dataclass(frozen=True, kw_only=True)
class PieceRows(Source):
    """A source of rows over the pieces of a store's documents. A layout is made when its split is first asked for."""

    store: TokenStore
    seq_len: int
    reset_positions: bool
    method: str  # the packer's name, for the fingerprint
    lay_out: Callable[..., Layout]  # (offsets_D1, seq_len=L)
    _layouts: dict[str, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        return self.store.vocab_size

    def packed_from(self) -> TokenStore:
        return self.store

    def size(self, split: str) -> int:
        return len(self.layout(split).rows_R1) - 1

    def rows(self, indices: Sequence[int], *, seed: int, split: str) -> list[Row]:
        """Return the asked rows; `seed` changes nothing, the text is what it is."""
        return [self._row(split, i) for i in indices]

    def _row(self, split: str, index: int) -> Row:
        layout = self.layout(split)
        tokens_T = np.full(self.seq_len + 1, self.store.boundary_id, dtype=np.int32)
        weights_T = np.zeros(self.seq_len + 1, dtype=np.float32)
        documents_T = np.full(self.seq_len + 1, PADDING, dtype=np.int32)
        place = 0
        for piece in range(layout.rows_R1[index], layout.rows_R1[index + 1]):
            start, length = int(layout.starts_P[piece]), int(layout.lengths_P[piece])
            span = slice(place, place + length)
            tokens_T[span] = self.store.tokens(split, start, start + length)
            weights_T[span] = 1
            if layout.continued_P[piece]:
                weights_T[place] = 0  # asked where the document was left; here another document stands in front of it
            documents_T[span] = layout.documents_P[piece]
            place += length
        return Row(
            tokens_T=tokens_T,
            weights_T=weights_T,
            documents_T=documents_T,
            positions_TA=restarted_positions(documents_T) if self.reset_positions else None,
        )

    def layout(self, split: str) -> Layout:
        if split not in self._layouts:
            self._layouts[split] = self.lay_out(self.store.offsets(split), seq_len=self.seq_len)
        return self._layouts[split]

    def report(self, split: str) -> dict[str, int | float]:
        """Return how well the rows of a split are used; see `seedbed.packing.rows.usage`."""
        layout, rows, tokens = self.layout(split), self.size(split), int(self.store.offsets(split)[-1])
        placed, twice = int(layout.lengths_P.sum()), int(layout.continued_P.sum())
        first_asked = rows - int(layout.continued_P[layout.rows_R1[:-1]].sum())  # would be, were it not the row's first
        return usage(
            rows=rows,
            row_tokens=self.seq_len + 1,
            tokens=tokens,
            asked=placed - twice - first_asked,
            padding=rows * (self.seq_len + 1) - placed,
            cropped=tokens - (placed - twice),
        )

    def checked(self) -> "PieceRows":
        """Return the source itself. Raises DataError if training on it could ask for nothing."""
        report = self.report("train")
        if report["asked"] < 1:
            raise DataError(
                f"the training part of the corpus has {report['tokens']} tokens in {report['rows']} rows and none that "
                f"could be asked for, a row needs at least 2 of one document; give documents with text"
            )
        return self

    def fingerprint(self) -> str:
        facts = f"{self.store.fingerprint()}/{self.seq_len}/{self.method}" + (
            "/reset_positions" if self.reset_positions else ""
        )
        return sha256(facts.encode()).hexdigest()[:16]
