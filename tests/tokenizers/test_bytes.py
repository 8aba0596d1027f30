from hypothesis import given
from hypothesis import strategies as st

from seedbed.tokenizers.bytes import Bytes


@given(st.text())
def test_any_text_comes_back(text):
    ids = Bytes().encode(text)
    assert Bytes().decode(ids) == text
    assert len(ids) == len(text.encode()) and (ids < 256).all()


def test_boundaries_are_not_text_and_broken_bytes_show():
    import numpy as np

    assert Bytes().decode(np.array([256, 72, 105, 256], dtype=np.int32)) == "Hi"
    assert Bytes().decode(np.array([0xFF], dtype=np.int32)) == "\ufffd"


def test_a_batch_is_each_text_by_itself():
    batch = Bytes().encode_batch(["a", "", "é"])
    assert [ids.tolist() for ids in batch] == [[97], [], [195, 169]]
    assert {ids.dtype.name for ids in batch} == {"int32"}
