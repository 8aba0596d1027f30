import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seedbed.core.errors import DataError
from seedbed.packing.best_fit import BestFit
from seedbed.packing.concatenate import Concatenate
from seedbed.packing.one_per_row import OnePerRow
from tests.packing.inputs import Tagged, all_rows, asked, shown_usage

LENGTHS = st.lists(st.integers(1, 41), min_size=1, max_size=12)  # texts of 0 to 40 tokens, and the boundary


def test_a_document_is_cropped_or_padded_to_a_row_of_its_own():
    packed = OnePerRow(seq_len=3, reset_positions=True).pack(Tagged((2, 6)))
    short, long = all_rows(packed)
    assert short.tokens_T.tolist() == [0, 1, 9999, 9999] and short.weights_T.tolist() == [1, 1, 0, 0]
    assert short.documents_T.tolist() == [0, 0, -1, -1] and short.positions_TA.tolist() == [[0], [1], [0], [1]]
    assert long.tokens_T.tolist() == [2, 3, 4, 5] and long.weights_T.tolist() == [1, 1, 1, 1]
    assert packed.report("train") == {
        "rows": 2,
        "tokens": 8,
        "asked": 4,
        "padding": 2,
        "cropped": 2,
        "padding_share": 0.25,
        "cropped_share": 0.25,
    }


@settings(max_examples=60)
@given(lengths=LENGTHS, seq_len=st.integers(1, 12))
def test_row_d_is_document_d_and_the_report_is_what_rows_show(lengths, seq_len):
    assume(max(lengths) > 1)
    packed = OnePerRow(seq_len=seq_len).pack(Tagged(tuple(lengths)))
    rows = all_rows(packed)
    assert len(rows) == len(lengths)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        kept, start = min(length, seq_len + 1), sum(lengths[:number])
        assert row.tokens_T.tolist() == [*range(start, start + kept), *[9999] * (seq_len + 1 - kept)]
        assert row.documents_T.tolist() == [*[number] * kept, *[-1] * (seq_len + 1 - kept)]
        assert asked([row]).tolist() == [*range(start + 1, start + kept)]
        assert row.positions_TA is None
    assert packed.report("train") == shown_usage(rows, sum(lengths))


def test_documents_without_text_are_refused():
    with pytest.raises(DataError, match="has 2 tokens in 2 rows and none that could be asked for"):
        OnePerRow(seq_len=4).pack(Tagged((1, 1)))


def test_packers_never_share_a_fingerprint():
    store = Tagged((4, 9))
    assert len({kind(seq_len=4).pack(store).fingerprint() for kind in (OnePerRow, BestFit, Concatenate)}) == 3
