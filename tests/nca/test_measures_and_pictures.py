import io
import math

import numpy as np
import pytest

from seedbed.nca import Automaton
from seedbed.nca.drawing import blocks, gif, palette
from seedbed.nca.measures import damage, entropy_bits, mutual_information_bits


def test_entropy_and_mutual_information_of_known_worlds():
    frozen = np.zeros((5, 4, 4), dtype=np.uint8)
    assert entropy_bits(frozen, states=3) == 0 == mutual_information_bits(frozen, states=3)
    halves = np.tile(np.array([[0, 1], [1, 0]], dtype=np.uint8), (6, 2, 2))
    assert entropy_bits(halves, states=2) == pytest.approx(1) == mutual_information_bits(halves, states=2)
    noise = np.random.default_rng(0).integers(0, 2, (40, 40, 40), dtype=np.uint8)
    assert entropy_bits(noise, states=2) == pytest.approx(1, abs=1e-3)
    assert mutual_information_bits(noise, states=2) == pytest.approx(0, abs=1e-3)


def test_a_clock_is_known_from_its_past_without_standing_still():
    clock = np.stack([np.full((3, 3), t % 4, dtype=np.uint8) for t in range(9)])
    assert (
        mutual_information_bits(clock, states=4)
        == pytest.approx(math.log2(4))
        == pytest.approx(entropy_bits(clock[:8], states=4))
    )


def test_damage_spreads_in_complex_rules_and_heals_in_simple_ones():
    simple = Automaton(states=4, grid=8, band=(0.0, 0.15), band_of="normalized")
    complex_ = Automaton(states=4, grid=8, band=(0.8, 1.2), band_of="normalized")
    spread = [np.mean([damage(a, i, seed=0) for i in range(30)]) for a in (simple, complex_)]
    assert spread[0] < 0.1 and spread[1] > 0.3


def test_an_animation_holds_every_frame_in_the_states_colors():
    from PIL import Image

    frames = Automaton(states=3, grid=4).rollout(0, frames=5, seed=1).frames_FGG
    picture = Image.open(io.BytesIO(gif([frames, frames], states=3, scale=2)))
    assert picture.n_frames == len({f.tobytes() for f in frames}) or picture.n_frames == 5
    assert picture.size == (2 * 4 * 2 + 2, 8)
    first = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(first[0, 0], palette(3)[frames[0, 0, 0]])


def test_blocks_show_two_cells_a_character():
    frames = np.array([[[0, 1, 0], [1, 0, 1], [1, 1, 1]]], dtype=np.uint8)
    lines = blocks(frames, states=2).splitlines()
    assert len(lines) == 2 and all(line.count("▀") == 3 for line in lines)
    red, green, blue = palette(2)[1]
    assert f"48;2;{red};{green};{blue}" in lines[0] and "48;2" not in lines[1], "the last row of an odd side has no lower cell"
