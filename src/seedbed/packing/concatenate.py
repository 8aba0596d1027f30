"""All documents one after the other, a boundary in front of each, cut into rows: no padding, no token dropped but the last.

Row i shows tokens i*L to (i+1)*L - 1 and asks for the same shifted by one, so every token but the first is asked once.
Letters: L seq_len, T tokens of a row (L + 1), N tokens of a split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from jaxtyping import Int32

from seedbed.core.errors import ConfigError, DataError
from seedbed.core.protocols import Corpus, Tokenizer
from seedbed.core.records import Row


@dataclass(frozen=True, kw_only=True)
class Concatenate:
    """Settings of the packer."""

    seq_len: int = 1024

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise ConfigError(f"seq_len must be at least 1, got {self.seq_len}")

    def pack(self, corpus: Corpus, *, tokenizer: Tokenizer) -> "PackedRows":
        """Return the rows of a corpus. Raises DataError if the training text is shorter than a row."""
        packed = PackedRows(corpus=corpus, tokenizer=tokenizer, seq_len=self.seq_len)
        if packed.size("train") < 1:
            raise DataError(
                f"the training part of the corpus has {len(packed.tokens('train')[0])} tokens, a row needs "
                f"{self.seq_len + 1}; give more text or a smaller seq_len"
            )
        return packed


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """A source of rows over the packed documents of a corpus."""

    corpus: Corpus
    tokenizer: Tokenizer
    seq_len: int
    _packed: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def size(self, split: str) -> int:
        return max(0, (len(self.tokens(split)[0]) - 1) // self.seq_len)

    def rows(self, indices: Sequence[int], *, seed: int, split: str) -> list[Row]:
        """Return the asked rows; `seed` changes nothing, the text is what it is."""
        tokens_N, documents_N = self.tokens(split)
        weights_T = np.ones(self.seq_len + 1, dtype=np.float32)
        spans = [slice(i * self.seq_len, (i + 1) * self.seq_len + 1) for i in indices]
        return [Row(tokens_T=tokens_N[s], documents_T=documents_N[s], weights_T=weights_T) for s in spans]

    def tokens(self, split: str) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Return all tokens of a split and the number of the document that each belongs to."""
        if split not in self._packed:
            boundary = np.array([self.tokenizer.boundary_id], dtype=np.int32)
            ids = [np.concatenate([boundary, self.tokenizer.encode(d.text)]) for d in self.corpus.documents(split)]
            numbers = [np.full(len(x), i, dtype=np.int32) for i, x in enumerate(ids)]
            empty = np.empty(0, dtype=np.int32)
            self._packed[split] = (np.concatenate([empty, *ids]), np.concatenate([empty, *numbers]))
        return self._packed[split]

    def fingerprint(self) -> str:
        facts = f"{self.corpus.fingerprint()}/{self.tokenizer.fingerprint()}/{self.seq_len}"
        return sha256(facts.encode()).hexdigest()[:16]
