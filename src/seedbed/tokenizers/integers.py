"""Whole numbers written out ("3 17 4") to just those ids and back, for token data that never was text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int32

from seedbed.core.bounds import check_ranges, within
from seedbed.core.errors import DataError
from seedbed.core.protocols import Neutral, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Integers(Tokenizer):
    """Ids 0 to vocab - 1 are the numbers themselves; the id `vocab` is the document boundary."""

    neutral: ClassVar[Neutral] = "another tokenizer is another vocabulary"
    vocab: int = within(1, 2**31 - 2, default=256)  # how many numbers there are: the largest of the data plus one

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def vocab_size(self) -> int:
        return self.vocab + 1

    @property
    def boundary_id(self) -> int:
        return self.vocab

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Return the numbers of the text. Any white space parts them; one space and no leading zero comes back.

        Raises DataError for what is not a whole number or lies outside 0 to vocab - 1, with its place.
        """
        numbers = text.split()
        return np.array([self._id(n, place) for place, n in enumerate(numbers, 1)], dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "T"]]:
        return [self.encode(t) for t in texts]

    def decode(self, ids: Int32[np.ndarray, "T"]) -> str:
        """Return the numbers with a space between; boundaries are left out."""
        return " ".join(str(i) for i in np.asarray(ids).tolist() if i != self.boundary_id)

    def fingerprint(self) -> str:
        return f"integers-{self.vocab}"

    def _id(self, number: str, place: int) -> int:
        digits = number.removeprefix("-")
        shown = number if len(number) <= 40 else number[:40] + "..."
        if not (digits.isascii() and digits.isdigit()):
            raise DataError(
                f"number {place} of a text is {shown!r}, which is not a whole number; allowed are 0 to {self.vocab - 1} "
                "with spaces between: mend the text, or choose another tokenizer"
            )
        # ten digits hold every allowed number, and Python refuses to read one of thousands of digits
        if len(digits.lstrip("0")) > 10 or not 0 <= int(number) < self.vocab:
            raise DataError(
                f"number {place} of a text is {shown}, outside 0..{self.vocab - 1}; mend the text, or set vocab to the "
                "largest number of the data plus one"
            )
        return int(number)
