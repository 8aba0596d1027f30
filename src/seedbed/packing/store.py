"""Token stores in memory: a corpus with its tokenizer, and the documents of any store in another order.

Letters: N tokens of a split, D documents of a split (D1 = D + 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from jaxtyping import Int32, Int64

from seedbed.core.errors import DataError
from seedbed.core.protocols import Corpus, Tokenizer, TokenStore
from seedbed.core.records import Document


@dataclass(frozen=True, kw_only=True)
class CorpusTokens:
    """A corpus as ids, a boundary in front of each document; a split is encoded when first asked for, and kept."""

    corpus: Corpus
    tokenizer: Tokenizer
    _encoded: dict[str, "_Encoded"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def boundary_id(self) -> int:
        return self.tokenizer.boundary_id

    def offsets(self, split: str) -> Int64[np.ndarray, "D1"]:
        return self._split(split).offsets_D1

    def tokens(self, split: str, start: int, stop: int) -> Int32[np.ndarray, "N"]:
        return self._split(split).tokens_N[start:stop]

    def document(self, split: str, number: int) -> Document:
        return self.corpus.documents(split)[number]

    def size_bytes(self, split: str) -> int:
        return sum(len(d.text.encode()) for d in self.corpus.documents(split))

    def fingerprint(self) -> str:
        return f"{self.corpus.fingerprint()}/{self.tokenizer.fingerprint()}"

    def _split(self, split: str) -> "_Encoded":
        if split not in self._encoded:
            boundary = np.array([self.boundary_id], dtype=np.int32)
            ids = self.tokenizer.encode_batch([d.text for d in self.corpus.documents(split)])
            pieces = [part for x in ids for part in (boundary, x)]
            self._encoded[split] = _Encoded(
                tokens_N=np.concatenate([np.empty(0, dtype=np.int32), *pieces]),
                offsets_D1=_offsets(np.array([len(x) + 1 for x in ids], dtype=np.int64)),
            )
        return self._encoded[split]


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    tokens_N: Int32[np.ndarray, "N"]
    offsets_D1: Int64[np.ndarray, "D1"]


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """The documents of a store in another order: document d is the store's document `orders[split][d]`.

    Splits without an order keep theirs. Only asked tokens are read, so shards may stay on disk.
    Raises DataError if an order does not name each document of its split once.
    """

    store: TokenStore
    orders: Mapping[str, Int64[np.ndarray, "_"]]
    _offsets: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for split, order_D in self.orders.items():
            lengths_D = np.diff(self.store.offsets(split))
            if not np.array_equal(np.sort(order_D), np.arange(len(lengths_D))):
                raise DataError(
                    f"the order given for {split!r} has {len(order_D)} entries and is no permutation of the split's "
                    f"{len(lengths_D)} documents; name each of the numbers below {len(lengths_D)} once"
                )
            self._offsets[split] = _offsets(lengths_D[order_D])

    @property
    def vocab_size(self) -> int:
        return self.store.vocab_size

    @property
    def boundary_id(self) -> int:
        return self.store.boundary_id

    def offsets(self, split: str) -> Int64[np.ndarray, "D1"]:
        return self._offsets[split] if split in self.orders else self.store.offsets(split)

    def tokens(self, split: str, start: int, stop: int) -> Int32[np.ndarray, "N"]:
        """Return the asked tokens, gathered document by document."""
        if split not in self.orders:
            return self.store.tokens(split, start, stop)
        order_D, offsets_D1, stored_D1 = self.orders[split], self._offsets[split], self.store.offsets(split)
        stop = min(stop, int(offsets_D1[-1]))
        gathered = [np.empty(0, dtype=np.int32)]
        number = int(np.searchsorted(offsets_D1, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(offsets_D1[number + 1]))
            shift = int(stored_D1[order_D[number]] - offsets_D1[number])
            gathered.append(self.store.tokens(split, start + shift, end + shift))
            start, number = end, number + 1
        return np.concatenate(gathered)

    def document(self, split: str, number: int) -> Document:
        return self.store.document(split, int(self.orders[split][number]) if split in self.orders else number)

    def size_bytes(self, split: str) -> int:
        return self.store.size_bytes(split)

    def fingerprint(self) -> str:
        digest = sha256()
        for split, order_D in sorted(self.orders.items()):
            digest.update(f"{split}\0{len(order_D)}\0".encode() + order_D.astype("<i8").tobytes())
        return f"{self.store.fingerprint()}/ordered-{digest.hexdigest()[:16]}"


def _offsets(lengths_D: Int64[np.ndarray, "D"]) -> Int64[np.ndarray, "D1"]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths_D, dtype=np.int64)])
