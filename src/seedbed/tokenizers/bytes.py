"""One token a byte of UTF-8, and one more id that stands in front of every document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int32

from seedbed.core.protocols import Neutral, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """Ids 0 to 255 are bytes; 256 is the document boundary."""

    neutral: ClassVar[Neutral] = "another tokenizer is another vocabulary"
    vocab_size: ClassVar[int] = 257
    boundary_id: ClassVar[int] = 256

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "T"]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Int32[np.ndarray, "T"]) -> str:
        """Return the text of the ids; boundaries are left out, broken UTF-8 (of a sampled text) shows as U+FFFD."""
        kept = np.asarray(ids)
        return bytes(kept[kept < 256].astype(np.uint8).tolist()).decode("utf-8", errors="replace")

    def fingerprint(self) -> str:
        return "bytes-257"
