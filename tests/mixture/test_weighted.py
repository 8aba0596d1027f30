from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.core.errors import ConfigError, DataError
from seedbed.core.records import Measurement
from seedbed.core.stream import Stream
from seedbed.mixture.by_loss import ByLoss, PendingError
from seedbed.mixture.weighted import CHANGED, Weighted, shared_out

NAMES = ["a", "b", "c"]
WEIGHTS = st.lists(st.integers(0, 500).map(lambda n: n / 100), min_size=2, max_size=3).filter(
    any
)  # whole: denormals are flushed


def _change(position, **weights):
    return Measurement(step=0, position=position, name=CHANGED, values=weights)


def test_a_window_is_shared_out_by_largest_remainder_and_the_rest_is_owed():
    room = dict.fromkeys(NAMES)
    counts, carry = shared_out(8, {"a": 0.7, "b": 0.2, "c": 0.1}, carry=dict.fromkeys(NAMES, 0.0), room=room)
    assert counts == {"a": 6, "b": 1, "c": 1}, (
        "5.6, 1.6 and 0.8: the extra rows go to the largest remainders, c and then a (first of equals)"
    )
    assert carry == pytest.approx({"a": -0.4, "b": 0.6, "c": -0.2})
    again, _ = shared_out(8, {"a": 0.7, "b": 0.2, "c": 0.1}, carry=carry, room=room)
    assert again == {"a": 5, "b": 2, "c": 1}, "what b was owed comes in the next window"


@given(weights=WEIGHTS, windows=st.integers(1, 30), window=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_after_any_number_of_windows_each_source_has_what_its_weight_asks_for_to_within_two_rows(weights, windows, window):
    names = NAMES[: len(weights)]
    mixture = Weighted(weights=dict(zip(names, weights, strict=True)), window=window)
    drawn = Counter(d.source for d in mixture.draws(0, count=windows * window, sizes=dict.fromkeys(names), seed=1))
    for name, weight in zip(names, weights, strict=True):
        assert abs(drawn[name] - windows * window * weight / sum(weights)) < 2


@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    changes=st.lists(st.tuples(st.integers(0, 90), st.lists(st.integers(1, 9), min_size=3, max_size=3)), max_size=2),
    window=st.integers(1, 16),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_weights_and_their_changes_no_row_comes_twice_before_all_have_come(sizes, weights, changes, window, seed):
    names = NAMES[: len(sizes)]
    rows = dict(zip(names, sizes, strict=True))
    mixture = Weighted(weights=dict(zip(names, weights, strict=False)), window=window)
    history = [_change(p, **dict(zip(names, w, strict=False))) for p, w in sorted(changes)]
    draws = mixture.draws(0, count=100, sizes=rows, seed=seed, history=history)
    for name, size in rows.items():
        mine = [(d.epoch, d.index) for d in draws if d.source == name]
        assert len(set(mine)) == len(mine), "no row twice in an epoch"
        drawn = Counter(epoch for epoch, _ in mine)
        begun = max(drawn, default=0)
        for epoch in range(begun - (2 * window // size) - 1):  # epochs that a window may still mix are left out
            assert drawn[epoch] == size, "no row is left out of an epoch"


@given(cut=st.integers(1, 99), seed=st.integers(0, 50), window=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_draws_are_the_same_wherever_they_are_cut(cut, seed, window):
    sizes = {"a": 7, "b": 11, "c": None}
    mixture = Weighted(weights={"a": 1, "b": 2, "c": 0.5}, window=window)
    whole = mixture.draws(0, count=100, sizes=sizes, seed=seed)
    fresh = Weighted(weights={"a": 1, "b": 2, "c": 0.5}, window=window)
    assert whole == fresh.draws(0, count=cut, sizes=sizes, seed=seed) + fresh.draws(
        cut, count=100 - cut, sizes=sizes, seed=seed
    )


def test_a_whole_epoch_is_every_row_once():
    mixture = Weighted(weights={"a": 0.5, "b": 0.5}, window=10)
    draws = mixture.draws(0, count=120, sizes={"a": 20, "b": 30}, seed=3)
    a = [d for d in draws if d.source == "a"]
    assert len(a) == 60
    for epoch in range(3):
        assert sorted(d.index for d in a if d.epoch == epoch) == list(range(20))
    assert [d.index for d in a if d.epoch == 0] != [d.index for d in a if d.epoch == 1], "a new order each epoch"


def test_a_change_of_weights_moves_no_row_before_it_and_loses_none_after():
    sizes = {"a": 40, "b": 40}
    mixture = Weighted(weights={"a": 1, "b": 1}, window=10)
    before = mixture.draws(0, count=100, sizes=sizes, seed=0)
    after = mixture.draws(0, count=100, sizes=sizes, seed=0, history=[_change(35, a=9, b=1)])
    assert before[:40] == after[:40], "35 lies in the fourth window, so the fifth is the first with new weights"
    assert Counter(d.source for d in after[40:]) == {"a": 54, "b": 6}
    assert sorted(d.index for d in after if d.source == "a" and d.epoch == 0) == list(range(40))


def test_weights_follow_their_schedule_over_tokens():
    mixture = Weighted(schedule=[(0, {"a": 1, "b": 0}), ("1k", {"a": 0, "b": 1})], window=10, seq_len=10)
    draws = mixture.draws(0, count=150, sizes={"a": None, "b": None}, seed=0)
    counts = [Counter(d.source for d in draws[w * 10 : w * 10 + 10])["b"] for w in range(15)]
    assert counts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10, 10]
    assert mixture.wanted(100, sizes={"a": None, "b": None}) == pytest.approx({"a": 0.55, "b": 0.45})


def test_a_source_stops_at_its_epochs_and_the_others_share_the_rest():
    mixture = Weighted(weights={"a": 2, "b": 1, "c": 1}, window=8, most_epochs={"a": 1.5})
    draws = mixture.draws(0, count=80, sizes={"a": 10, "b": None, "c": None}, seed=0)
    assert Counter(d.source for d in draws) == {"a": 15, "b": 33, "c": 32}


def test_a_mixture_of_which_all_is_used_up_says_so():
    mixture = Weighted(weights={"a": 1, "b": 1}, window=8, most_epochs=1)
    sizes = {"a": 5, "b": 6}
    draws = mixture.draws(0, count=11, sizes=sizes, seed=0)
    assert Counter(d.source for d in draws) == {"a": 5, "b": 6}
    with pytest.raises(DataError, match="the mixture is used up at row 11: every source reached most_epochs 1"):
        mixture.draws(11, count=1, sizes=sizes, seed=0)


def test_temperature_two_draws_by_the_square_root_of_bytes():
    amounts = {"a": {"rows": 1, "bytes": 900, "seconds": 4}, "b": {"rows": 1, "bytes": 100, "seconds": 4}}
    assert Weighted(temperature=2.0).resolved(amounts).weights == pytest.approx({"a": 30, "b": 10})
    assert Weighted(of="seconds").resolved(amounts).weights == {"a": 4, "b": 4}
    assert Weighted(weights="equal").resolved(amounts).weights == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": 1}}, "no weight to b; write 0"),
        ({"weights": {"a": 1, "bb": 1}}, "names 'bb', which is no source"),
        ({"most_epochs": {"z": 1}}, "names 'z'"),
        ({"of": "seconds"}, "cannot be weighed by seconds"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Weighted(**settings).resolved({"a": {"bytes": 1}, "b": {"bytes": 1}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": -1}}, "weights must lie in 0"),
        ({"weights": {"a": 0}}, "one above 0"),
        ({"weights": {"a": float("nan")}}, "weights must lie in 0"),
        ({"schedule": [(5, {"a": 1})]}, "begins at 0 tokens"),
        ({"schedule": [(0, {"a": 1})], "weights": {"a": 1}}, "not both"),
        ({"window": 0}, "window must lie in 1"),
        ({"temperature": 0.0}, "temperature must lie in 0"),
        ({"most_epochs": 0.0}, "most_epochs must lie in 0"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Weighted(**settings)


def _measured(position, **losses):
    return Measurement(step=0, position=position, name="loss_nats", values=losses)


def test_a_mixture_by_loss_shows_more_of_what_is_learned_worst():
    mixture = ByLoss(weights={"a": 1, "b": 1}, eta=1.0, every=40, window=40)
    history = [_measured(40, a=2.0, b=2.0 + 1.0986122886681098)]  # ln 3 nats worse
    draws = mixture.draws(0, count=80, sizes={"a": None, "b": None}, seed=0, history=history)
    assert Counter(d.source for d in draws[:40]) == {"a": 20, "b": 20}
    assert Counter(d.source for d in draws[40:]) == {"a": 10, "b": 30}


def test_no_row_behind_a_decision_is_drawn_before_it_is_recorded():
    mixture = ByLoss(weights={"a": 1, "b": 1}, every=8, window=8)
    stream = Stream(name="s", sources={}, mixture=mixture, views=[], seq_len=1, batch_size=6, vocab_size=2)
    sizes = {"a": None, "b": None}
    assert stream.due(8) is None, "rows 0 to 7 need no measurement"
    assert stream.due(9) == 8
    with pytest.raises(PendingError, match="the rows from 8 on wait"):
        mixture.draws(6, count=6, sizes=sizes, seed=0, history=stream.history)
    stream.history.append(_measured(8, a=1.0, b=1.0))
    assert stream.due(16) is None and stream.due(17) == 16
    assert len(mixture.draws(6, count=6, sizes=sizes, seed=0, history=stream.history)) == 6


def test_eta_zero_is_the_base_mixture_exactly():
    sizes = {"a": 9, "b": None}
    history = [_measured(p, a=3.0, b=1.0) for p in (8, 16, 24)]
    plain = Weighted(weights={"a": 2, "b": 1}, window=8).draws(0, count=32, sizes=sizes, seed=5)
    assert (
        ByLoss(weights={"a": 2, "b": 1}, window=8, every=8, eta=0.0).draws(0, count=32, sizes=sizes, seed=5, history=history)
        == plain
    )


@given(
    weights=st.lists(st.integers(0, 20), min_size=6, max_size=12).filter(any),
    off=st.sets(st.integers(0, 11), min_size=1, max_size=9),
    window=st.integers(3, 40),
)
@settings(max_examples=80, deadline=None)
def test_every_window_is_full_also_when_sources_are_switched_off(weights, off, window):
    names = [chr(97 + i) for i in range(len(weights))]
    later = [0 if i in off else w for i, w in enumerate(weights)]
    if not any(later):
        return
    history = [_change(4 * window, **dict(zip(names, map(float, later), strict=True)))]
    mixture = Weighted(weights=dict(zip(names, map(float, weights), strict=True)), window=window)
    drawn = mixture.draws(0, count=12 * window, sizes=dict.fromkeys(names), seed=0, history=history)
    assert len(drawn) == 12 * window
    assert not {d.source for d in drawn[4 * window :]} & {names[i] for i, w in enumerate(later) if not w}


def test_windows_before_a_measurement_are_not_counted_again(monkeypatch):
    counted = []
    import seedbed.mixture.weighted as module

    real = module.shared_out
    monkeypatch.setattr(module, "shared_out", lambda *a, **k: (counted.append(1), real(*a, **k))[1])
    mixture, history = ByLoss(weights={"a": 1, "b": 1}, window=4, every=4), []
    for n in range(1, 40):
        mixture.draws(4 * (n - 1), count=4, sizes={"a": None, "b": None}, seed=0, history=history)
        history.append(_measured(4 * n, a=1.0 + n % 3, b=1.0))
    assert len(counted) == 39
