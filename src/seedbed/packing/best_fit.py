"""Whole documents into rows, each where it leaves the least space: nothing is cropped, and little is padding.

A document longer than a row is cut into pieces that overlap by one token: piece k is its tokens k*L to (k+1)*L, so every
token but a row's very first is asked exactly once. (The paper cuts without overlap and thereby never asks for the first
token of a later piece.) Pieces are placed from the longest to the shortest, each into the fullest row that still has room.

Rows stand in the order of their earliest document, but a row may be filled with documents from anywhere in the split: an
order of documents survives only roughly. Where it matters, use concatenate.
Paper: Ding et al. (2024), "Fewer truncations improve language modeling".
Letters: L seq_len, D documents of a split (D1 = D + 1), P pieces, R rows.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from seedbed.core.bounds import LONGEST_ROW, check_ranges, within
from seedbed.core.protocols import Neutral, TokenStore
from seedbed.packing.pieces import Layout, PieceRows


@dataclass(frozen=True, kw_only=True)
class BestFit:
    """Settings of the packer."""

    neutral: ClassVar[Neutral] = "each packing lays out rows of its own"
    seq_len: int = within(1, LONGEST_ROW, default=1024)
    reset_positions: bool = False  # positions restart at 0 for every piece, also for one that continues a document

    def __post_init__(self) -> None:
        check_ranges(self)

    def pack(self, store: TokenStore) -> PieceRows:
        """Return the rows of a store. Raises DataError if the training text asks for nothing."""
        return PieceRows(
            store=store,
            seq_len=self.seq_len,
            reset_positions=self.reset_positions,
            method="best_fit",
            lay_out=laid_out,
        ).checked()


def laid_out(offsets_D1: Int64[np.ndarray, "D1"], *, seq_len: int) -> Layout:
    """Return which piece stands in which row. Pieces of a row, and rows by their first piece, are in the documents' order."""
    lengths_D = np.diff(offsets_D1)
    pieces_D = np.maximum(1, -(-(lengths_D - 1) // seq_len))  # each takes L tokens on; the overlap is one more
    documents_P = np.repeat(np.arange(len(lengths_D)), pieces_D)
    k_P = np.arange(len(documents_P)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
    lengths_P = np.minimum(lengths_D[documents_P] - k_P * seq_len, seq_len + 1)

    rows_P = fitted(lengths_P, space=seq_len + 1)
    _, first_R = np.unique(rows_P, return_index=True)
    rank_R = np.empty(len(first_R), dtype=np.int64)
    rank_R[np.argsort(first_R)] = np.arange(len(first_R))
    order_P = np.argsort(rank_R[rows_P], kind="stable")
    return Layout(
        starts_P=(offsets_D1[documents_P] + k_P * seq_len)[order_P],
        lengths_P=lengths_P[order_P],
        documents_P=documents_P[order_P].astype(np.int32),
        continued_P=(k_P > 0)[order_P],
        rows_R1=np.concatenate([[0], np.cumsum(np.bincount(rank_R[rows_P]))]).astype(np.int64),
    )


def fitted(lengths_P: Int64[np.ndarray, "P"], *, space: int) -> Int64[np.ndarray, "P"]:
    """Return the row of each piece by best fit decreasing; of equal lengths the earlier piece goes first.

    Lengths 4, 2, 3, 1 and a space of 5 give rows 0, 1, 1, 0. Every step finds its row by one look at a set of integers held
    as the bits of one, so a million pieces take about a second.
    """
    order_P = np.argsort(-lengths_P, kind="stable")
    with_space: list[list[int]] = [[] for _ in range(space + 1)]  # rows by the space they have left
    spaces = 0  # bit s is set while some row has s places left
    opened = 0
    rows = []
    for length in lengths_P[order_P].tolist():
        fitting = spaces >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1  # the lowest set bit: the least space that is enough
            row = with_space[left].pop()
            if not with_space[left]:
                spaces ^= 1 << left
        else:
            row, left, opened = opened, space, opened + 1
        left -= length
        rows.append(row)
        if left:
            with_space[left].append(row)
            spaces |= 1 << left
    rows_P = np.empty(len(rows), dtype=np.int64)
    rows_P[order_P] = rows
    return rows_P
