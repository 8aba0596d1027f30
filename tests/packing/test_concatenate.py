import numpy as np
import pytest

from seedbed.core.errors import DataError
from seedbed.core.records import Document
from seedbed.packing.concatenate import Concatenate
from seedbed.tokenizers.bytes import Bytes


class Corpus:
    def __init__(self, *texts):
        self.texts = texts

    def documents(self, split):
        return [Document(id=str(i), text=t) for i, t in enumerate(self.texts)] if split == "train" else []

    def fingerprint(self):
        return "/".join(self.texts)


def test_every_token_but_the_first_is_asked_once():
    packed = Concatenate(seq_len=4).pack(Corpus("abcd", "efg", "hi"), tokenizer=Bytes())
    stream = [256, *b"abcd", 256, *b"efg", 256, *b"hi"]
    rows = packed.rows(range(packed.size("train")), seed=0, split="train")
    asked = np.concatenate([r.tokens_T[1:] for r in rows])
    assert asked.tolist() == stream[1 : len(asked) + 1]
    assert len(asked) == 8, "twelve tokens make two rows of four targets; three at the end are left over"
    assert rows[1].tokens_T.tolist() == stream[4:9], "a row begins with the last target of the row before"


def test_rows_know_their_documents():
    packed = Concatenate(seq_len=4).pack(Corpus("abcd", "efg"), tokenizer=Bytes())
    assert packed.rows([1], seed=0, split="train")[0].documents_T.tolist() == [0, 1, 1, 1, 1]


def test_a_corpus_shorter_than_a_row_is_refused():
    with pytest.raises(DataError, match="has 4 tokens, a row needs 9"):
        Concatenate(seq_len=8).pack(Corpus("abc"), tokenizer=Bytes())


def test_the_fingerprint_follows_text_and_length():
    first, second = (Concatenate(seq_len=4).pack(Corpus(t), tokenizer=Bytes()).fingerprint() for t in ("abcdef", "abcdeg"))
    assert first != second
    assert Concatenate(seq_len=3).pack(Corpus("abcdef"), tokenizer=Bytes()).fingerprint() != first
