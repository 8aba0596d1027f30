"""Documents by a column's value; equal values stay as they stand.

A curriculum by one score: Bengio et al. (2009), "Curriculum learning".
Letters: N documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral, OrderKind
from seedbed.core.records import Document


@dataclass(frozen=True, kw_only=True)
class ByColumn(OrderKind):
    """Which column (of labels: by their alphabet), and which end of it comes first."""

    neutral: ClassVar[Neutral] = "an order is one; a source without `order` reads documents as they stand"
    column: str = ""
    descending: bool = False  # the largest value first

    @property
    def columns(self) -> tuple[str, ...]:
        if not self.column:
            raise ConfigError("by_column needs `column`: the name of a column of the folder")
        return (self.column,)

    def read(self, documents: Sequence[Document], *, lent: Mapping[str, Any]) -> np.ndarray:
        return np.array([d.meta[self.column] for d in documents])

    def arrange(self, found_N: np.ndarray, *, seed: int) -> np.ndarray:
        _, rank_N = np.unique(found_N, return_inverse=True)  # labels have no sign to turn round
        return np.argsort(-rank_N if self.descending else rank_N, kind="stable")
