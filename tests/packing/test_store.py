import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.core.errors import DataError
from seedbed.core.protocols import TokenStore
from seedbed.packing.best_fit import BestFit
from seedbed.packing.concatenate import Concatenate
from seedbed.packing.one_per_row import OnePerRow
from seedbed.packing.store import CorpusTokens, Ordered
from seedbed.tokenizers.bytes import Bytes
from tests.packing.inputs import Tagged, Texts, all_rows


def _store(*texts):
    return CorpusTokens(corpus=Texts(*texts), tokenizer=Bytes())


def _order(*numbers):
    return np.array(numbers, dtype=np.int64)


def test_a_corpus_as_tokens_has_a_boundary_in_front_of_each_document():
    store = _store("ab", "", "é")
    assert isinstance(store, TokenStore)
    assert store.offsets("train").tolist() == [0, 3, 4, 7] and store.offsets("train").dtype == np.int64
    assert store.tokens("train", 0, 7).tolist() == [256, *b"ab", 256, 256, *"é".encode()]
    assert store.tokens("train", 2, 4).tolist() == [ord("b"), 256] and store.tokens("train", 2, 4).dtype == np.int32
    assert store.document("train", 2).text == "é"
    assert (store.size_bytes("train"), store.vocab_size, store.boundary_id) == (4, 257, 256)


def test_a_split_is_encoded_once_and_only_when_asked_for():
    class Counting(Bytes):
        calls = 0

        def encode_batch(self, texts):
            Counting.calls += 1
            return super().encode_batch(texts)

    store = CorpusTokens(corpus=Texts("ab", "c"), tokenizer=Counting())
    assert store.fingerprint() == "ab/c/bytes-257" and Counting.calls == 0
    for _ in range(3):
        assert store.tokens("train", 0, 5).tolist() == [256, *b"ab", 256, *b"c"]
        assert store.offsets("train").tolist() == [0, 3, 5]
    assert Counting.calls == 1


def test_an_empty_split_has_no_tokens():
    store = _store("ab")
    assert store.offsets("valid").tolist() == [0] and len(store.tokens("valid", 0, 0)) == 0


def test_documents_in_another_order():
    store = Ordered(store=_store("ab", "", "cde"), orders={"train": _order(2, 0, 1)})
    assert isinstance(store, TokenStore)
    assert store.offsets("train").tolist() == [0, 4, 7, 8]
    assert store.tokens("train", 0, 8).tolist() == [256, *b"cde", 256, *b"ab", 256]
    assert store.tokens("train", 3, 6).tolist() == [*b"e", 256, *b"a"], "from the middle of one into the next"
    assert [store.document("train", d).text for d in range(3)] == ["cde", "ab", ""]
    assert store.size_bytes("train") == 5
    assert store.offsets("valid").tolist() == [0], "a split without an order keeps its own"


def test_an_order_of_one_split_leaves_the_others():
    class Both(Texts):
        def documents(self, split):
            return super().documents("train")

    inner = CorpusTokens(corpus=Both("ab", "c"), tokenizer=Bytes())
    store = Ordered(store=inner, orders={"train": _order(1, 0)})
    assert store.tokens("train", 0, 5).tolist() == [256, *b"c", 256, *b"ab"]
    assert store.tokens("valid", 0, 5).tolist() == [256, *b"ab", 256, *b"c"]
    assert store.document("train", 0).text == "c" and store.document("valid", 0).text == "ab"


@settings(max_examples=60)
@given(
    texts=st.lists(st.text("xyz", max_size=40), min_size=1, max_size=8),
    seq_len=st.integers(1, 12),
    kind=st.sampled_from([Concatenate, BestFit, OnePerRow]),
    data=st.data(),
)
def test_packing_in_an_order_is_packing_a_corpus_that_was_given_so(texts, seq_len, kind, data):
    texts = [*texts, "x" * 13]  # at least one row
    order = data.draw(st.permutations(range(len(texts))))
    packer = kind(seq_len=seq_len)
    ordered = packer.pack(Ordered(store=_store(*texts), orders={"train": _order(*order)}))
    given_so = packer.pack(_store(*(texts[d] for d in order)))
    assert ordered.report("train") == given_so.report("train")
    for one, other in zip(all_rows(ordered), all_rows(given_so), strict=True):
        assert one.tokens_T.tolist() == other.tokens_T.tolist() and one.weights_T.tolist() == other.weights_T.tolist()
        assert one.documents_T.tolist() == other.documents_T.tolist()


def test_only_the_asked_tokens_are_read():
    read = []

    class Watched(Tagged):
        def tokens(self, split, start, stop):
            read.append((start, stop))
            return super().tokens(split, start, stop)

    ordered = Ordered(store=Watched((100, 50, 100)), orders={"train": _order(2, 1, 0)})
    (row,) = Concatenate(seq_len=10).pack(ordered).rows([9], seed=0, split="train")
    assert read == [(240, 250), (100, 101)], "ten tokens of the last document, one of the document before"
    assert row.tokens_T.tolist() == [*range(240, 250), 100]


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 1), (0, 1, 3), (1, 2, 3), (-1, 0, 1), (0, 1, 2, 3)])
def test_an_order_that_names_a_document_twice_or_not_at_all_is_refused(order):
    with pytest.raises(DataError, match=f"'train' has {len(order)} entries and is no permutation of the split's 3 documents"):
        Ordered(store=Tagged((4, 4, 4)), orders={"train": _order(*order)})


def test_the_fingerprint_follows_the_order():
    inner = Tagged((4, 5, 6))
    stores = [inner, *(Ordered(store=inner, orders={"train": _order(*o)}) for o in ((0, 1, 2), (0, 2, 1), (2, 1, 0)))]
    assert len({s.fingerprint() for s in stores}) == 4
    assert stores[3].fingerprint() == Ordered(store=inner, orders={"train": _order(2, 1, 0)}).fingerprint()
