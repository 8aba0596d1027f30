"""Puts the tokens of a row in random order: the same unigram statistics, no structure. A control.

Where tokens count is left as it was, by position, so the control has as many targets as its arm.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from seedbed.core.draws import stream
from seedbed.core.protocols import Neutral, View
from seedbed.core.records import Key, Progress, Row, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Shuffled(View):
    """Each row has an order of its own, drawn for its position in the stream."""

    neutral: ClassVar[Neutral] = "no settings: to switch it off is to leave it out"
    keeps_order: ClassVar[bool] = False

    def __call__(self, row: Row, *, key: Key, vocabulary: Vocabulary, progress: Progress) -> Row:
        order = stream(key.seed, key.stream, "shuffled", key.position).permutation(len(row.tokens_T))
        return replace(row, tokens_T=row.tokens_T[order])
