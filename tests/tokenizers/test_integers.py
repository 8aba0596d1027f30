import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed.core.errors import ConfigError, DataError
from seedbed.tokenizers.integers import Integers


def test_numbers_are_their_own_ids_and_the_next_one_is_the_boundary():
    part = Integers(vocab=20)
    assert part.encode("3 17 4").tolist() == [3, 17, 4] and part.encode("").tolist() == []
    assert part.encode("3").dtype == np.int32
    assert (part.vocab_size, part.boundary_id) == (21, 20)
    assert part.decode(np.array([20, 3, 17, 20, 4])) == "3 17 4"
    assert [ids.tolist() for ids in part.encode_batch(["1\n2\n", ""])] == [[1, 2], []]
    assert part.fingerprint() != Integers(vocab=21).fingerprint()


@given(st.lists(st.integers(0, 999)))
def test_any_numbers_come_back(numbers):
    text = " ".join(map(str, numbers))
    assert Integers(vocab=1000).decode(Integers(vocab=1000).encode(text)) == text


@pytest.mark.parametrize("wrong", ["x", "1.5", "1e3", "1_000", "\u0663", "--1", "-", "+1"])
def test_what_is_no_whole_number_is_named_with_its_place(wrong):
    with pytest.raises(DataError, match=r"number 2 of a text is .*not a whole number; allowed are 0 to 255"):
        Integers().encode(f"7 {wrong} 9")


@pytest.mark.parametrize("wrong", ["256", "-1", "9" * 5000])
def test_a_number_outside_is_named_with_its_place(wrong):
    with pytest.raises(DataError, match=r"number 3 of a text is .*outside 0\.\.255.*set vocab") as caught:
        Integers().encode(f"7 8 {wrong}")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("vocab", [0, -5, 2**31 - 1])
def test_a_vocabulary_that_32_bits_cannot_hold_is_refused(vocab):
    with pytest.raises(ConfigError, match=rf"got {vocab}"):
        Integers(vocab=vocab)
