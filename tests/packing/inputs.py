"""Stores and corpora small enough to check by hand."""

from dataclasses import dataclass

import numpy as np

from seedbed.core.protocols import Corpus
from seedbed.core.records import Document


class Texts(Corpus):
    """A corpus of the given training texts; valid and test are empty."""

    def __init__(self, *texts):
        self.texts = texts

    def documents(self, split):
        return [Document(id=str(i), text=t) for i, t in enumerate(self.texts)] if split == "train" else []

    def fingerprint(self):
        return "/".join(self.texts)


@dataclass(frozen=True)
class Tagged:
    """A store whose tokens are their own places in the split, so that each can be told in any row; padding is the id 9999."""

    lengths: tuple[int, ...]
    vocab_size: int = 10_000
    boundary_id: int = 9_999

    def offsets(self, split):
        return np.cumsum([0, *(self.lengths if split == "train" else [])], dtype=np.int64)

    def tokens(self, split, start, stop):
        assert split == "train" and 0 <= start < stop <= sum(self.lengths)
        return np.arange(start, stop, dtype=np.int32)

    def document(self, split, number):
        return Document(id=str(number))

    def size_bytes(self, split):
        return 0

    def fingerprint(self):
        return f"tagged {self.lengths}"


def all_rows(packed, split="train"):
    return packed.rows(range(packed.size(split)), seed=0, split=split)


def asked(rows):
    """Return the tokens that rows ask for, as the view next_token will: all but a row's first, where they count."""
    return np.concatenate([r.tokens_T[1:][r.weights_T[1:] > 0] for r in rows])


def shown_usage(rows, tokens):
    """Return the report of rows from what they show alone."""
    kept = np.concatenate([r.tokens_T[r.documents_T >= 0] for r in rows])
    padding = sum(int((r.documents_T < 0).sum()) for r in rows)
    cropped = tokens - len(np.unique(kept))
    return {
        "rows": len(rows),
        "tokens": tokens,
        "asked": len(asked(rows)),
        "padding": padding,
        "cropped": cropped,
        "padding_share": padding / sum(len(r.tokens_T) for r in rows),
        "cropped_share": cropped / tokens,
    }
