import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed.core.errors import DataError
from seedbed.core.records import Draw
from seedbed.mixture.epochs import Epochs, permuted


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_the_keyed_permutation_is_a_permutation(size, key):
    assert sorted(permuted(i, size=size, key=key) for i in range(size)) == list(range(size))


@given(size=st.integers(2, 60), cut=st.integers(1, 100), seed=st.integers(0, 10**6))
def test_every_row_comes_once_an_epoch_wherever_the_draws_are_cut(size, cut, seed):
    sizes = {"text": size}
    whole = Epochs().draws(0, count=3 * size, sizes=sizes, seed=seed)
    cut = cut % (3 * size)
    assert whole == Epochs().draws(0, count=cut, sizes=sizes, seed=seed) + Epochs().draws(
        cut, count=3 * size - cut, sizes=sizes, seed=seed
    )
    for epoch in range(3):
        assert sorted(d.index for d in whole[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    sizes = {"text": 50}
    orders = {tuple(d.index for d in Epochs().draws(e * 50, count=50, sizes=sizes, seed=s)) for e in (0, 1) for s in (0, 1)}
    assert len(orders) == 4


def test_orders_are_random_enough():
    """Over many keys each place is equally likely: chi-square of 30 places over 3,000 keys stays below its 0.999 quantile."""
    counts = [0] * 30
    for k in range(3000):
        counts[permuted(7, size=30, key=k)] += 1
    assert sum((c - 100) ** 2 / 100 for c in counts) < 58.3


def test_an_endless_source_is_read_in_its_own_order():
    assert Epochs().draws(5, count=2, sizes={"nca": None}, seed=3) == [Draw("nca", 5, 0), Draw("nca", 6, 0)]


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="has no row"):
        Epochs().draws(0, count=1, sizes={"text": 0}, seed=0)
