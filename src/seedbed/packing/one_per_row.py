"""Each document in a row of its own: what does not fit is cropped, what is left over is padding that counts nothing.

Costly for short documents (see the report's padding_share), and the plain choice where a document is an example.
Letters: L seq_len, D documents of a split (D1 = D + 1).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from seedbed.core.bounds import LONGEST_ROW, check_ranges, within
from seedbed.core.protocols import Neutral, TokenStore
from seedbed.packing.pieces import Layout, PieceRows


@dataclass(frozen=True, kw_only=True)
class OnePerRow:
    """Settings of the packer."""

    neutral: ClassVar[Neutral] = "each packing lays out rows of its own"
    seq_len: int = within(1, LONGEST_ROW, default=1024)
    reset_positions: bool = False  # gives the positions 0 to the document's end, and 0 on for the padding

    def __post_init__(self) -> None:
        check_ranges(self)

    def pack(self, store: TokenStore) -> PieceRows:
        """Return the rows of a store. Raises DataError if the training text asks for nothing."""
        return PieceRows(
            store=store,
            seq_len=self.seq_len,
            reset_positions=self.reset_positions,
            method="one_per_row",
            lay_out=laid_out,
        ).checked()


def laid_out(offsets_D1: Int64[np.ndarray, "D1"], *, seq_len: int) -> Layout:
    """Return row d as document d, cropped at L + 1 tokens."""
    documents = len(offsets_D1) - 1
    return Layout(
        starts_P=np.asarray(offsets_D1[:-1]),
        lengths_P=np.minimum(np.diff(offsets_D1), seq_len + 1),
        documents_P=np.arange(documents, dtype=np.int32),
        continued_P=np.zeros(documents, dtype=np.bool_),
        rows_R1=np.arange(documents + 1, dtype=np.int64),
    )
