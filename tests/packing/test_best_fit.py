from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seedbed.core.errors import DataError
from seedbed.packing.best_fit import BestFit, fitted, laid_out
from tests.packing.inputs import Tagged, all_rows, asked, shown_usage

LENGTHS = st.lists(st.integers(1, 41), min_size=1, max_size=12)  # texts of 0 to 40 tokens, and the boundary


def test_documents_share_rows_where_the_least_space_is_left():
    packed = BestFit(seq_len=4).pack(Tagged((4, 2, 3, 1)))
    first, second = all_rows(packed)
    assert first.tokens_T.tolist() == [0, 1, 2, 3, 9], "4 and 1 fill a row of five"
    assert second.tokens_T.tolist() == [4, 5, 6, 7, 8], "and so do 2 and 3"
    assert [first.documents_T.tolist(), second.documents_T.tolist()] == [[0, 0, 0, 0, 3], [1, 1, 2, 2, 2]]
    assert first.weights_T.tolist() == second.weights_T.tolist() == [1] * 5


def test_a_piece_goes_into_the_fullest_row_that_has_room():
    assert fitted(np.array([6, 5, 4, 3]), space=10).tolist() == [0, 1, 0, 1]
    assert fitted(np.array([3, 7, 8]), space=10).tolist() == [1, 1, 0], "3 fits 7 exactly; beside 8 there is no room"
    assert fitted(np.array([2, 7, 8]), space=10).tolist() == [0, 1, 0], "2 would fit beside both, and fills the row of 8"


def test_a_long_document_is_cut_with_one_token_of_overlap_that_counts_once():
    packed = BestFit(seq_len=4, reset_positions=True).pack(Tagged((2, 7)))
    first, second = all_rows(packed)
    assert first.tokens_T.tolist() == [0, 1, 6, 7, 8], "the end of document 1 stands behind document 0"
    assert first.weights_T.tolist() == [1, 1, 0, 1, 1], "6 is the overlap: asked in the other row"
    assert first.positions_TA.tolist() == [[0], [1], [0], [1], [2]], "a piece starts at 0, wherever its document stands"
    assert second.tokens_T.tolist() == [2, 3, 4, 5, 6] and second.weights_T.tolist() == [1] * 5


def test_what_is_left_of_a_row_is_padding_that_counts_nothing():
    (row,) = all_rows(BestFit(seq_len=4, reset_positions=True).pack(Tagged((3,))))
    assert row.tokens_T.tolist() == [0, 1, 2, 9999, 9999]
    assert row.weights_T.tolist() == [1, 1, 1, 0, 0]
    assert row.documents_T.tolist() == [0, 0, 0, -1, -1]
    assert row.positions_TA.tolist() == [[0], [1], [2], [0], [1]]


@settings(max_examples=100)
@given(lengths=LENGTHS, seq_len=st.integers(1, 12))
def test_every_token_is_asked_exactly_once_but_the_first_of_each_row(lengths, seq_len):
    assume(sum(lengths) > 1)
    packed = BestFit(seq_len=seq_len).pack(Tagged(tuple(lengths)))
    rows = all_rows(packed)
    starts = np.cumsum([0, *lengths[:-1]])
    firsts = {int(r.tokens_T[0]) for r in rows}
    times = Counter(asked(rows).tolist())
    for token in range(sum(lengths)):
        assert times[token] == (0 if token in firsts and token in starts else 1), token
    assert packed.report("train") == shown_usage(rows, sum(lengths))
    assert packed.report("train")["cropped"] == 0
    assert {len(r.tokens_T) for r in rows} == {seq_len + 1}


@settings(max_examples=100)
@given(lengths=LENGTHS, seq_len=st.integers(1, 12))
def test_every_piece_stands_whole_in_one_row_and_no_row_overflows(lengths, seq_len):
    layout = laid_out(np.cumsum([0, *lengths]), seq_len=seq_len)
    expected = [
        (d, sum(lengths[:d]) + k, min(seq_len + 1, length - k))
        for d, length in enumerate(lengths)
        for k in range(0, max(1, length - 1), seq_len)
    ]
    found = list(zip(layout.documents_P.tolist(), layout.starts_P.tolist(), layout.lengths_P.tolist(), strict=True))
    assert sorted(found) == expected
    rows = [found[a:b] for a, b in zip(layout.rows_R1[:-1], layout.rows_R1[1:], strict=True)]
    assert [piece for row in rows for piece in row] == found and all(rows)
    assert max(sum(length for _, _, length in row) for row in rows) <= seq_len + 1
    assert rows == sorted(sorted(row) for row in rows), "rows by their earliest piece, pieces by document"


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 9), max_size=25), space=st.integers(9, 12))
def test_fitting_agrees_with_a_plain_search_of_all_rows(lengths, space):
    left = []
    for length in sorted(lengths, reverse=True):
        room = min((x for x in left if x >= length), default=None)
        if room is None:
            left.append(space - length)
        else:
            left[left.index(room)] -= length
    rows = fitted(np.array(lengths, dtype=np.int64), space=space)
    used = np.bincount(rows, weights=lengths).tolist() if lengths else []
    assert sorted(space - x for x in used) == sorted(left)


def test_little_is_padding_on_lengths_like_those_of_web_text():
    """Measured over twenty seeds: 0.06 % of all places on average, 0.11 % at most.

    The bound is five times the worst; placing the same lengths as they come wastes 0.6 %, next fit 12 %.
    """
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 2000).astype(int) + 1
    layout = laid_out(np.cumsum([0, *lengths]), seq_len=1024)
    rows = len(layout.rows_R1) - 1
    assert 1 - layout.lengths_P.sum() / (rows * 1025) < 0.005


def test_documents_without_text_are_refused_if_nothing_could_be_asked():
    for lengths in ((), (1,)):
        with pytest.raises(DataError, match="none that could be asked for"):
            BestFit(seq_len=4).pack(Tagged(lengths))


def test_the_fingerprint_follows_store_and_settings():
    store, other = Tagged((4, 9)), Tagged((4, 8))
    packers = [BestFit(seq_len=4), BestFit(seq_len=5), BestFit(seq_len=4, reset_positions=True)]
    prints = [p.pack(store).fingerprint() for p in packers] + [packers[0].pack(other).fingerprint()]
    assert len(set(prints)) == 4
    assert prints[0] == BestFit(seq_len=4).pack(store).fingerprint()
