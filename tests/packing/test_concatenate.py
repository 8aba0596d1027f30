import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seedbed.core.errors import ConfigError, DataError
from seedbed.packing.concatenate import Concatenate
from seedbed.packing.store import CorpusTokens
from seedbed.tokenizers.bytes import Bytes
from tests.packing.inputs import Tagged, Texts, all_rows, asked, shown_usage

LENGTHS = st.lists(st.integers(1, 41), min_size=1, max_size=12)  # texts of 0 to 40 tokens, and the boundary


def _store(*texts):
    return CorpusTokens(corpus=Texts(*texts), tokenizer=Bytes())


def test_every_token_but_the_first_is_asked_once():
    packed = Concatenate(seq_len=4).pack(_store("abcd", "efg", "hi"))
    stream = [256, *b"abcd", 256, *b"efg", 256, *b"hi"]
    rows = all_rows(packed)
    assert np.concatenate([r.tokens_T[1:] for r in rows]).tolist() == stream[1:9], (
        "two rows of four; three tokens are left over"
    )
    assert rows[1].tokens_T.tolist() == stream[4:9], "a row begins with the last target of the row before"


@settings(max_examples=60)
@given(lengths=LENGTHS, seq_len=st.integers(1, 12))
def test_any_stream_is_asked_in_order_up_to_a_tail_shorter_than_a_row(lengths, seq_len):
    assume(sum(lengths) > seq_len)
    packed = Concatenate(seq_len=seq_len).pack(Tagged(tuple(lengths)))
    rows = all_rows(packed)
    tokens = asked(rows)
    assert tokens.tolist() == list(range(1, len(tokens) + 1))
    assert 0 <= sum(lengths) - 1 - len(tokens) < seq_len
    assert packed.report("train") == shown_usage(rows, sum(lengths))
    number_of = np.repeat(np.arange(len(lengths)), lengths)
    assert all(r.documents_T.tolist() == number_of[r.tokens_T].tolist() for r in rows)
    assert {(r.tokens_T.dtype.name, r.weights_T.dtype.name, r.documents_T.dtype.name) for r in rows} == {
        ("int32", "float32", "int32")
    }


def test_rows_know_their_documents():
    packed = Concatenate(seq_len=4).pack(_store("abcd", "efg"))
    (row,) = packed.rows([1], seed=0, split="train")
    assert row.documents_T.tolist() == [0, 1, 1, 1, 1]
    assert row.positions_TA is None


def test_positions_restart_for_every_document_and_for_one_that_goes_on():
    packed = Concatenate(seq_len=4, reset_positions=True).pack(_store("abcdef", "", "gh"))
    first, second = all_rows(packed)
    assert first.documents_T.tolist() == [0, 0, 0, 0, 0] and first.positions_TA.tolist() == [[0], [1], [2], [3], [4]]
    assert second.documents_T.tolist() == [0, 0, 0, 1, 2] and second.positions_TA.tolist() == [[0], [1], [2], [0], [0]]


def test_a_split_without_documents_has_no_row_and_reports_so():
    packed = Concatenate(seq_len=4).pack(_store("abcdef"))
    assert packed.size("valid") == 0
    assert packed.report("valid") == dict.fromkeys(packed.report("valid"), 0)


def test_a_corpus_shorter_than_a_row_is_refused():
    with pytest.raises(DataError, match="has 4 tokens, a row needs 9"):
        Concatenate(seq_len=8).pack(_store("abc"))


def test_a_row_that_shows_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"seq_len must lie in 1\.\.2\^24, got 0"):
        Concatenate(seq_len=0)


def test_the_fingerprint_is_that_of_version_0_1_as_long_as_no_new_setting_is_on():
    """`printf 'abcdefg/bytes-257/4' | sha256sum | head -c 16`: corpus, tokenizer, seq_len."""
    store = _store("abcdefg")
    assert Concatenate(seq_len=4).pack(store).fingerprint() == "f8d75f37863439d4"
    others = [
        Concatenate(seq_len=3).pack(store),
        Concatenate(seq_len=4).pack(_store("abcdefh")),
        Concatenate(seq_len=4, reset_positions=True).pack(store),
    ]
    assert len({"f8d75f37863439d4", *(p.fingerprint() for p in others)}) == 4
