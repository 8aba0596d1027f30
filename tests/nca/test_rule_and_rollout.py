import numpy as np
import pytest

from seedbed.core.errors import ConfigError
from seedbed.nca.reference import float_logits, integer_rule
from seedbed.nca.rollout import float_error, logits, roll_out, start_grid
from seedbed.nca.rule import LOGIT_BITS, compose, draw_rule, draw_weights, layer_scales, lecun_scale
from seedbed.nca.tables import FRACTION_BITS, GUMBEL, TRUNCATED_NORMAL, build, tables
from tests.conftest import DATA


def test_the_shipped_tables_are_the_quantiles_they_claim_to_be():
    np.testing.assert_allclose(tables(), build(), rtol=0, atol=1)
    assert (np.diff(tables(), axis=1) > 0).all(), "strictly rising, so that different indices are different values"
    assert abs(tables()[TRUNCATED_NORMAL]).max() <= 2 * 2**FRACTION_BITS


def test_the_scale_is_lecun_normal():
    assert lecun_scale(108) / 2**FRACTION_BITS == pytest.approx(108**-0.5 / 0.87962566103423978, abs=2**-FRACTION_BITS)


def _float_weights(states, *, seed=3):
    """A rule's weights as floats, drawn as the integer path draws them."""
    layers = [np.empty(shape, dtype=np.int64) for shape in ((9, states + 2, 4), (4, 16), (16, states))]
    flat = [layer.reshape(-1) for layer in layers]
    draw_weights(np.uint64(seed), layer_scales(states, True), 0, 2, tables()[TRUNCATED_NORMAL], *flat)
    return layers


@pytest.mark.parametrize("states", [2, 10])
def test_the_integer_path_is_the_published_network(states):
    first, second, third = _float_weights(states)
    zero = [np.zeros(n, dtype=np.int64) for n in (4, 16, states)]
    rule = compose(first, second, third, *zero, wrap_states=True)
    as_float = {
        "Conv_0_kernel": first.reshape(3, 3, states + 2, 4) / 2**FRACTION_BITS,
        "Conv_1_kernel": second[None, None] / 2**FRACTION_BITS,
        "Conv_2_kernel": third[None, None] / 2**FRACTION_BITS,
        "Conv_0_bias": np.zeros(4),
        "Conv_1_bias": np.zeros(16),
        "Conv_2_bias": np.zeros(states),
    }
    as_float = {name: value.astype(np.float32) for name, value in as_float.items()}
    grid = np.random.default_rng(0).integers(0, states, (6, 6)).astype(np.uint8)
    ours = logits(rule, grid) / 2.0**LOGIT_BITS
    np.testing.assert_allclose(ours, float_logits(as_float, grid, states=states), atol=1e-5)


def test_the_state_axis_wraps_unless_told_otherwise():
    wrapped = draw_rule(5, states=4, wrap_states=True, split="train")
    clean = draw_rule(5, states=4, wrap_states=False, split="train")
    edge = np.abs(wrapped.table_KNH[:, [0, 3]]).mean() / np.abs(wrapped.table_KNH[:, 1:3]).mean()
    assert edge > 1.15, "the edge states carry two channels"
    assert abs(np.abs(clean.table_KNH[:, [0, 3]]).mean() / np.abs(clean.table_KNH[:, 1:3]).mean() - 1) < 0.35


def test_a_torus_moves_with_its_content():
    rule = draw_rule(9, states=3, wrap_states=True, split="train")
    grid = np.random.default_rng(1).integers(0, 3, (5, 5)).astype(np.uint8)
    moved = np.roll(grid, (1, 2), (0, 1))
    np.testing.assert_array_equal(np.roll(logits(rule, grid), (1, 2), (0, 1)), logits(rule, moved))


def _roll(rule, grid, **changes):
    settings = {"key": 11, "frames": 4, "burn_in": 2, "stride": 1, "temperature": 1e-4, "identity_bias": 0.0}
    return roll_out(rule, grid, **{**settings, **changes})


def test_at_temperature_zero_a_step_is_the_argmax():
    rule = draw_rule(2, states=5, wrap_states=True, split="train")
    grid = start_grid(4, states=5, grid=6, uniform=False)
    frames = _roll(rule, grid, temperature=0.0, burn_in=0)
    np.testing.assert_array_equal(frames[0], grid)
    np.testing.assert_array_equal(frames[1], logits(rule, grid).argmax(-1))


def test_leaving_noise_out_where_it_cannot_matter_changes_nothing():
    """At a high temperature all noise is drawn; the same update by hand, with every cell's noise, gives the same grid."""
    from seedbed.nca.rollout import STEPS
    from seedbed.nca.rule import mix, word

    rule = draw_rule(7, states=3, wrap_states=True, split="train")
    grid = start_grid(8, states=3, grid=4, uniform=True)
    for temperature in (1e-4, 0.02, 1.0):
        after = _roll(rule, grid, key=77, frames=1, burn_in=1, temperature=temperature)[0]
        step_key = np.uint64(mix(np.uint64(77) ^ np.uint64(mix(STEPS + np.uint64(0)))))
        noise = [
            [int(tables()[GUMBEL][int(word(step_key, np.uint64(cell * 3 + s))) >> 50]) for s in range(3)] for cell in range(16)
        ]
        expected = (logits(rule, grid).reshape(16, 3) + np.array(noise) * round(temperature * 2**24)).argmax(-1)
        np.testing.assert_array_equal(after.reshape(-1), expected)


def test_the_identity_bias_holds_cells_where_they_are():
    rule = draw_rule(2, states=5, wrap_states=True, split="train")
    grid = start_grid(4, states=5, grid=6, uniform=False)
    held = _roll(rule, grid, identity_bias=50.0)
    assert (held == grid).all()


def test_burn_in_and_stride_choose_frames_of_one_and_the_same_roll_out():
    rule = draw_rule(2, states=5, wrap_states=True, split="train")
    grid = start_grid(4, states=5, grid=6, uniform=False)
    every = _roll(rule, grid, burn_in=0, frames=12, temperature=0.3)
    np.testing.assert_array_equal(_roll(rule, grid, burn_in=3, stride=4, frames=3, temperature=0.3), every[[3, 7, 11]])


def test_a_roll_out_in_two_parts_is_the_whole():
    rule = draw_rule(2, states=5, wrap_states=True, split="train")
    grid = start_grid(4, states=5, grid=6, uniform=False)
    whole = _roll(rule, grid, frames=6, temperature=0.5)
    rest = _roll(rule, whole[2], frames=3, burn_in=1, temperature=0.5, updates_done=4)
    np.testing.assert_array_equal(rest, whole[3:])


def test_start_states_share_one_distribution_or_are_uniform():
    shares = [np.bincount(start_grid(k, states=4, grid=40, uniform=False).ravel(), minlength=4) / 1600 for k in range(40)]
    assert np.std(shares, axis=0).mean() > 0.08, "each roll-out has a distribution of its own"
    uniform = np.bincount(start_grid(1, states=4, grid=40, uniform=True).ravel(), minlength=4) / 1600
    np.testing.assert_allclose(uniform, 0.25, atol=0.05)


def test_weights_that_could_overflow_are_refused():
    with np.load(DATA / "vectors_n4.npz") as vectors:
        weights = {n: vectors[n][0] * 10 for n in vectors.files if n.startswith("Conv")}
    with pytest.raises(ConfigError, match="overflow"):
        integer_rule(weights)


@pytest.mark.parametrize("states", [2, 10, 40])
def test_float32_is_never_further_off_than_the_bound_that_lets_it_decide(states):
    rng = np.random.default_rng(0)
    for key in range(30):
        rule = draw_rule(key, states=states, wrap_states=True, split="train")
        bound = float_error(rule.table_KNH.reshape(-1, 16), rule.bias_H, rule.out_NH, rule.out_bias_N)
        exact = logits(rule, rng.integers(0, states, (12, 12), dtype=np.uint8))
        hidden_H = np.maximum(rule.table_KNH[:, 0].sum(0), 0).astype(np.float32)
        one = (hidden_H[None] * rule.out_NH.astype(np.float32)).cumsum(1, dtype=np.float32)[:, -1]
        whole = rule.out_NH.astype(np.int64) @ np.maximum(rule.table_KNH[:, 0].astype(np.int64).sum(0), 0)
        assert 2 * abs(one - whole).max() < bound < 1e-3 * 2**LOGIT_BITS
        assert abs(exact).max() < bound * 2**18, "the bound follows from the largest logit that the rule allows"


def test_states_in_any_number_of_blocks_are_decided_as_the_exact_logits_say():
    """States fill one block of lanes, one and a bit, several; with and without a bias for the present state."""
    rng = np.random.default_rng(1)
    for states in (3, 16, 17, 50):
        rule = draw_rule(states, states=states, wrap_states=True, split="train")
        grid = rng.integers(0, states, (9, 9), dtype=np.uint8)
        for bias in (0.0, 0.4):
            after = _roll(rule, grid, frames=1, burn_in=1, temperature=0.0, identity_bias=bias)[0]
            values = logits(rule, grid)
            values[np.arange(9)[:, None], np.arange(9), grid] += round(bias * 2**24) << 20
            np.testing.assert_array_equal(after, values.argmax(-1))
