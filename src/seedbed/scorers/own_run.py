"""A trained model of ours as a scorer: every token of a text once, in nats.

A text is scored by itself, after a boundary token, in windows of seq_len. With `stride` = seq_len the windows are disjoint
(pessimistic: a window's first tokens see little); with a smaller stride each window but the first scores its last `stride`
tokens only, so every scored token sees at least seq_len - stride before it.
Letters: B windows, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from seedbed.core.bounds import LONGEST_ROW, MOST_ROWS, check_ranges, within
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral, Tokenizer
from seedbed.core.records import Batch, TokenTargets


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """A model with its tokenizer; `stride` None means disjoint windows."""

    neutral: ClassVar[Neutral] = "it reads a model and changes nothing"
    model: Any
    tokenizer: Tokenizer
    seq_len: int = within(1, LONGEST_ROW)
    stride: int | None = within(1, LONGEST_ROW, default=None)
    batch_size: int = within(1, MOST_ROWS, default=16)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.stride is not None and self.stride > self.seq_len:
            raise ConfigError(
                f"stride must lie in 1..{self.seq_len} (a row's length), got {self.stride}: a window further on would leave "
                "tokens out"
            )

    @torch.no_grad()
    def score(self, texts: Sequence[str | np.ndarray]) -> list[Float[np.ndarray, "tokens"]]:
        """Return the loss of every token of every text (or of its ids), in nats (fp32, evaluation mode)."""
        ids = [self.tokenizer.encode(text) if isinstance(text, str) else text for text in texts]
        losses = [np.full(len(x), np.nan) for x in ids]
        stride = self.stride or self.seq_len
        windows = [
            (number, max(0, end - self.seq_len), start, end)
            for number, x in enumerate(ids)
            for start, end in _spans(len(x), self.seq_len, stride)
        ]
        self.model.eval()
        for first in range(0, len(windows), self.batch_size):
            some = windows[first : first + self.batch_size]
            nll_BT = self._losses([ids[number] for number, *_ in some], some)
            for row_T, (number, begin, start, end) in zip(nll_BT, some, strict=True):
                losses[number][start:end] = row_T[start - begin : end - begin]
        assert all(not np.isnan(x).any() for x in losses), "every token is scored exactly once"
        return losses

    def _losses(self, ids: list[np.ndarray], windows: list[tuple[int, int, int, int]]) -> Float[np.ndarray, "B T"]:
        shape = (len(windows), max(end - begin for _, begin, _, end in windows))
        shown_BT = np.full(shape, self.tokenizer.boundary_id, dtype=np.int64)
        asked_BT, weights_BT = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        for row, (x, (_, begin, start, end)) in enumerate(zip(ids, windows, strict=True)):
            with_boundary = np.concatenate([[self.tokenizer.boundary_id], x])
            shown_BT[row, : end - begin] = with_boundary[begin:end]
            asked_BT[row, : end - begin] = x[begin:end]
            weights_BT[row, start - begin : end - begin] = 1
        device = next(self.model.parameters()).device
        outputs = self.model(Batch(tokens_BT=torch.from_numpy(shown_BT).to(device)))
        targets = TokenTargets(ids_BT=torch.from_numpy(asked_BT).to(device), weights_BT=torch.from_numpy(weights_BT).to(device))
        return outputs.token_loss(targets).nll_BT.cpu().numpy()


def _spans(length: int, seq_len: int, stride: int) -> list[tuple[int, int]]:
    """Return the half-open spans that each window scores; together they cover 0..length once."""
    spans, done = [], 0
    while done < length:
        end = min(length, done + (seq_len if done == 0 else stride))
        spans.append((done, end))
        done = end
    return spans
