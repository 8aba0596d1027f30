"""Drops documents that are too short or too long, by the bytes of their text in UTF-8.

A bound in bytes means the same for every tokenizer. The paper that made such rules usual: Rae et al. (2021), "Scaling language
models: methods, analysis and insights from training Gopher", appendix A, which counts words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from seedbed.core.bounds import MOST_BYTES, check_ranges, within
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral, Refiner
from seedbed.core.records import Document, Drop, Keep, Verdict


@dataclass(frozen=True, kw_only=True)
class Length(Refiner):
    """Bounds, both allowed themselves; by default only empty documents are dropped."""

    neutral: ClassVar[Neutral] = {"least_bytes": 0, "most_bytes": None}
    least_bytes: int = within(0, MOST_BYTES, default=1)  # 0: empty documents stay as well
    most_bytes: int | None = within(1, MOST_BYTES, default=None)  # None: no bound

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.most_bytes is not None and self.most_bytes < self.least_bytes:
            raise ConfigError(
                f"most_bytes must be no less than least_bytes ({self.least_bytes}), got {self.most_bytes}; raise it, or leave "
                "it out for no bound"
            )

    def __call__(self, document: Document, *, lent: Mapping[str, Any]) -> Verdict:
        size = len(document.text.encode())
        if size < self.least_bytes:
            return Drop(f"shorter than {self.least_bytes} bytes")
        if self.most_bytes is not None and size > self.most_bytes:
            return Drop(f"longer than {self.most_bytes} bytes")
        return Keep()
