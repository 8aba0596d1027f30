import numpy as np
import pytest

from seedbed.core.errors import ConfigError, DataError
from seedbed.nca.check import check
from seedbed.nca.patches import Patches
from tests.conftest import DATA, SHARED


def test_the_first_cell_of_a_patch_is_the_units_digit():
    """A 2x4 corner by hand: patch cells 1 2 / 3 4 are 1 + 2*10 + 3*100 + 4*1000."""
    grid = np.zeros((1, 4, 4), dtype=np.uint8)
    grid[0, :2, :2] = [[1, 2], [3, 4]]
    grid[0, 2, 1] = 7
    tokens = Patches(states=10, grid=4, patch=2).encode(grid)
    assert tokens.tolist() == [[4321, 0, 70, 0]]


@pytest.mark.parametrize(("states", "grid", "patch"), [(10, 12, 2), (2, 6, 3), (4, 5, 1), (3, 4, 4)])
def test_patches_go_both_ways(states, grid, patch):
    p = Patches(states=states, grid=grid, patch=patch)
    frames = np.random.default_rng(0).integers(0, states, (3, grid, grid)).astype(np.uint8)
    tokens = p.encode(frames)
    assert tokens.max() < p.start_id == states ** (patch**2)
    np.testing.assert_array_equal(p.decode(tokens), frames)
    np.testing.assert_array_equal(p.unframed(p.framed(tokens)), tokens)
    assert len(p.framed(tokens)) == 3 * ((grid // patch) ** 2 + 2) == 3 * p.frame_tokens


def test_misplaced_delimiters_are_refused():
    p = Patches(states=2, grid=4, patch=2)
    with pytest.raises(ConfigError, match="begin each frame"):
        p.unframed(np.zeros(12, dtype=np.int32))


@pytest.mark.parametrize("file", sorted(DATA.glob("vectors_*.npz")), ids=lambda f: f.stem)
def test_the_authors_vectors_are_met(file):
    found = check(file)
    assert found.ok
    assert found.logits_max_abs_error < 1e-6
    assert found.clear_step_agreement == 1.0


@pytest.mark.skipif(not (SHARED / "fixtures").is_dir(), reason="the full set of reference vectors is not on this machine")
@pytest.mark.parametrize("name", ["nca_g12_n10_p2", "nca_g12_n4_p2"])
def test_all_of_the_authors_vectors_are_met(name):
    assert check(SHARED / "fixtures" / f"{name}.npz").ok


def _altered(tmp_path, change):
    with np.load(DATA / "vectors_n4.npz") as archive:
        vectors = {name: archive[name].copy() for name in archive.files}
    change(vectors)
    file = tmp_path / "altered.npz"
    np.savez(file, **vectors)
    return file


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("tokens", "tokens_equal"),
        ("gzip_ratio", "gzip_equal"),
        ("logits", "logits_max_abs_error"),
        ("states", "step_agreement"),
    ],
)
def test_an_altered_vector_is_noticed(tmp_path, name, fails):
    def change(vectors):
        vectors[name][0] = vectors[name][0] + 1 if name != "states" else (vectors[name][0] + 1) % 4

    found = check(_altered(tmp_path, change))
    assert not found.ok
    if fails in ("tokens_equal", "gzip_equal"):
        assert getattr(found, fails) is False


def test_unfit_files_are_named(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        check(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match="cannot read"):
        check(tmp_path / "text.npz")
    with pytest.raises(DataError, match="lacks tokens"):
        check(_altered(tmp_path, lambda v: v.pop("tokens")))
    with pytest.raises(ConfigError, match="tokens has shape"):
        check(_altered(tmp_path, lambda v: v.update(tokens=v["tokens"][:, :-1])))
