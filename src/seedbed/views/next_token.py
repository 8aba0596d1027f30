"""Shows all tokens but the last and asks, at each, for the one that follows.

Letters: T tokens of the row before; one fewer after.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from seedbed.core.protocols import Neutral, View
from seedbed.core.records import Key, Progress, Row, Vocabulary


@dataclass(frozen=True, kw_only=True)
class NextToken(View):
    """A target counts as much as its own token did in the row."""

    neutral: ClassVar[Neutral] = "without it nothing is asked"
    keeps_order: ClassVar[bool] = True
    asks_next: ClassVar[bool] = True

    def __call__(self, row: Row, *, key: Key, vocabulary: Vocabulary, progress: Progress) -> Row:
        return replace(
            row,
            tokens_T=row.tokens_T[:-1],
            targets_T=row.tokens_T[1:],
            weights_T=row.weights_T[1:],
            documents_T=None if row.documents_T is None else row.documents_T[:-1],
            positions_TA=None if row.positions_TA is None else row.positions_TA[:-1],
        )
