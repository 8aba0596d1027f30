import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.records import Progress
from seedbed.schedules.cosine import Cosine
from seedbed.schedules.piecewise import Piecewise
from seedbed.schedules.warmup import Warmup
from seedbed.schedules.wsd import WarmupStableDecay


def _rates(schedule, steps=10):
    return [schedule(Progress(step=s, steps=steps)) for s in range(steps)]


def test_a_warm_up_over_the_whole_stage_ends_at_the_peak():
    assert _rates(Warmup(share=1.0), 4) == [0.25, 0.5, 0.75, 1.0]
    assert sum(_rates(Warmup(share=1.0), 5000)) / 5000 == pytest.approx(0.5, abs=1e-3), "the published mean multiplier"


def test_a_cosine_rises_falls_and_ends_at_its_floor():
    rates = _rates(Cosine(warmup=0.2, floor=0.1), 10)
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.1 + 0.9 * 0.5), "half-way down at half the fall"


def test_wsd_holds_the_peak_then_falls_in_a_line():
    assert _rates(WarmupStableDecay(warmup=0.2, decay=0.4, floor=0.0)) == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.0]
    )


def test_wsd_before_the_fall_is_the_same_for_any_length():
    short, long = (_rates(WarmupStableDecay(warmup=20 / n, decay=0.2), n) for n in (100, 200))
    assert short[:80] == long[:80]


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [(Warmup, {"share": 1.5}), (Cosine, {"floor": -0.1}), (WarmupStableDecay, {"warmup": 0.6, "decay": 0.6})],
)
def test_impossible_shares_are_refused(schedule, settings):
    with pytest.raises(ConfigError):
        schedule(**settings)


def test_points_are_joined_by_lines_and_two_at_one_step_make_a_jump():
    schedule = Piecewise(points=((1, 1.0), (3, 0.0), (3, 0.5), (5, 0.7)))
    assert _rates(schedule, 7) == pytest.approx([1, 1, 0.5, 0.5, 0.6, 0.7, 0.7])
    assert _rates(schedule, 7) == pytest.approx(_rates(schedule, 100)[:7]), "steps are absolute"
    with pytest.raises(ConfigError, match="steps from 0 on that never fall"):
        Piecewise(points=((3, 1.0), (1, 0.0)))
