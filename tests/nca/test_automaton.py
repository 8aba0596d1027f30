import numpy as np
import pytest

from seedbed.core.errors import ConfigError
from seedbed.nca import automaton as module
from seedbed.nca.automaton import Automaton
from seedbed.nca.complexity import ceiling, floor, gzip_ratio
from seedbed.nca.drawing import palette, png, strips
from seedbed.nca.golden import golden_rows

SMALL = Automaton(states=2, grid=4, patch=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_thousand_rows_are_the_golden_bytes_with_one_thread_and_two(threads):
    assert golden_rows(threads=threads) == dict.fromkeys(golden_rows.__globals__["GOLDEN"], True)


def test_a_row_depends_on_its_index_alone():
    whole = SMALL.generate(6, frames=3, seed=0)
    np.testing.assert_array_equal(SMALL.generate(2, frames=3, seed=0, start=3), whole[3:5])


def test_seeds_and_splits_differ():
    rows = [SMALL.generate(4, frames=4, seed=s, split=split) for s in (0, 1) for split in ("train", "valid")]
    assert len({r.tobytes() for r in rows}) == 4


def test_rules_of_different_splits_are_disjoint_by_construction(monkeypatch):
    """Even from the very same 64-bit key: the first weight's table index says which split it is."""
    monkeypatch.setattr(Automaton, "_word", lambda self, name, index, *rest: index * 7919 + 1)
    first = {
        split: {int(SMALL.rule(i, seed=0, split=split).table_KNH[0].sum()) for i in range(200)}
        for split in ("train", "valid", "test")
    }
    assert not first["train"] & first["valid"] and not first["train"] & first["test"] and not first["valid"] & first["test"]


def test_fresh_rules_never_repeat_and_a_pool_repeats_them_with_new_start_states():
    keys = [SMALL._word("rule", i, a, 0, "train") for i in range(300) for a in range(3)]
    assert len(set(keys)) == len(keys)
    pool = Automaton(states=4, grid=6, burn_in=0, rule_pool=3)
    again = [pool.rollout(i, frames=3, seed=0) for i in (1, 4, 7)]
    assert len({r.ratio for r in again}) == 1, "the same rule, selected once"
    assert len({r.frames_FGG.tobytes() for r in again}) > 1, "other start states"
    fresh = Automaton(states=4, grid=6, burn_in=0).rollout(1, frames=3, seed=0)
    np.testing.assert_array_equal(again[0].frames_FGG, fresh.frames_FGG)


def test_every_accepted_rule_lies_strictly_inside_the_band():
    banded = Automaton(states=4, grid=8, band=(0.2, 0.4))
    made = [banded.rollout(i, frames=10, seed=0) for i in range(20)]
    for r in made:
        assert 0.2 < r.ratio < 0.4
        assert r.ratio == gzip_ratio(banded.patches.encode(r.frames_FGG))
    assert sum(r.tries for r in made) > 20, "some were rejected"
    assert all(r.updates == r.tries * (10 + 9) for r in made), "rejected rules are charged"


def test_a_normalized_band_is_the_raw_band_over_the_ceiling():
    normal = Automaton(states=4, grid=8, band=(0.3, 0.6), band_of="normalized")
    assert normal.ratio_band == pytest.approx((0.3 * normal.reach[1], 0.6 * normal.reach[1]))


def test_a_band_out_of_reach_names_what_can_be_reached():
    with pytest.raises(ConfigError, match=r"band 0.5 to 1 .*between 0.022 \(constant\) and 0.24\d \(random tokens\)"):
        Automaton(states=2, band=(0.5, 1.0))


def test_a_band_that_no_rule_meets_ends_with_the_ratios_that_were_seen(monkeypatch):
    monkeypatch.setattr(module, "MAX_TRIES", 30)
    nearly = Automaton(states=2, grid=8, band=(0.28, 0.285))
    with pytest.raises(ConfigError, match=r"none of 30 rules .* reached from 0\.\d+ to 0\.\d+"):
        nearly.rollout(0, frames=10, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": 1}, "states must lie in 2..256"),
        ({"grid": 2}, "grid must lie"),
        ({"grid": 9, "patch": 2}, "patch must divide grid"),
        ({"states": 256, "patch": 2}, "more than 2\\^31"),
        ({"temperature": -1.0}, "temperature"),
        ({"band": (0.5, 0.4)}, "two rising numbers"),
        ({"rule_pool": 0}, "rule_pool"),
        ({"stride": 0}, "stride"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Automaton(**settings)


def test_the_reachable_range_is_that_of_constant_and_random_tokens():
    assert floor(360) == pytest.approx(32 / 1440, abs=0.003)
    assert ceiling(16, 360) == pytest.approx(0.246, abs=0.005)  # the card's measurement for two states
    assert ceiling(10_000, 360) == pytest.approx(0.669, abs=0.005)


def test_the_published_statistics_are_met():
    """Shares over 2,000 rules of the published generator (fixtures): ten states, 12x12."""
    ratios = Automaton().survey(400, seed=5).ratios
    assert np.median(ratios) == pytest.approx(0.479, abs=0.04)
    assert (ratios > 0.5).mean() == pytest.approx(0.453, abs=0.08)
    assert (ratios < 0.1).mean() == pytest.approx(0.153, abs=0.06)


def test_the_fingerprint_follows_every_setting():
    assert SMALL.fingerprint() != Automaton(states=2, grid=4, patch=2, stride=2).fingerprint()
    assert SMALL.fingerprint() == Automaton(states=2, grid=4, patch=2).fingerprint()


def test_a_picture_shows_each_cell_in_its_state_s_color():
    frames = SMALL.rollout(0, frames=3, seed=0).frames_FGG
    image = strips([frames], states=2, scale=2, gap=1)
    assert image.shape == (8, 3 * 9 - 1, 3)
    np.testing.assert_array_equal(image[0, 0], palette(2)[frames[0, 0, 0]])
    assert png(image).startswith(b"\x89PNG")
    assert len(np.unique(palette(30), axis=0)) == 30
