"""Labels every document with the earliest one that it nearly repeats: its own id, if there is none.

Near means as in `seedbed.curate.near_duplicates`, which has the papers.
Letters: N documents, P hash functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from seedbed.core.bounds import check_ranges, within
from seedbed.core.protocols import ColumnKind, Neutral
from seedbed.core.records import Document


@dataclass(frozen=True, kw_only=True)
class Cluster(ColumnKind):
    """From which similarity on documents stand in one cluster."""

    neutral: ClassVar[Neutral] = "even at threshold 1 documents of the same runs are one cluster"
    threshold: float = within(0, 1, default=0.8, above=True)  # estimated share of runs of words in common

    def __post_init__(self) -> None:
        check_ranges(self)

    def read(self, documents: Sequence[Document], *, lent: Mapping[str, Any]) -> np.ndarray:
        return np.stack([self._near.signature(d.text) for d in documents])

    def values(self, found_N: np.ndarray, *, ids: Sequence[str]) -> list[float | str]:
        return [ids[int(n)] for n in self._near.clusters(self._near.find(found_N))]

    @cached_property
    def _near(self) -> Any:
        from seedbed.curate.near_duplicates import NearDuplicates  # which compiles

        return NearDuplicates(threshold=self.threshold)
