"""Rows of numpy to one batch of torch.

Letters: B rows, T positions.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from seedbed.core.records import Batch, Row


def collate(rows: Sequence[Row]) -> Batch:
    """Return the stacked rows, in the processor's memory. All rows must have the same length."""

    def stacked(name: str, dtype: torch.dtype) -> Tensor | None:
        values = [getattr(row, name) for row in rows]
        if values[0] is None:
            return None
        return torch.from_numpy(np.stack(values)).to(dtype)

    tokens_BT = stacked("tokens_T", torch.int64)
    assert tokens_BT is not None
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=stacked("targets_T", torch.int64),
        weights_BT=stacked("weights_T", torch.float32),
        documents_BT=stacked("documents_T", torch.int32),
        positions_BTA=stacked("positions_TA", torch.int64),
    )


def pieces(batch: Batch, *, rows: int) -> list[Batch]:
    """Return the batch cut into micro-batches of at most `rows` rows."""
    total = len(batch.tokens_BT)
    return [batch.map(partial(_slice, start=start, rows=rows)) for start in range(0, total, rows)]


def _slice(value: Tensor, *, start: int, rows: int) -> Tensor:
    return value[start : start + rows]
