"""What is committed under results/ follows from its own records, and the README tells those numbers."""

import json
from pathlib import Path

import pytest

from seedbed.experiments.comparison import check_comparison

ROOT = Path(__file__).parents[1]
STUDIES = [file.parent for file in sorted((ROOT / "results").glob("*/comparison.json"))]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda f: f.name)
def test_every_number_of_a_committed_study_can_be_derived_again(folder):
    assert check_comparison(folder) == []


def test_the_readme_tells_the_demo_s_own_numbers():
    data = json.loads((ROOT / "results/nca-demo/comparison.json").read_text())
    readme = (ROOT / "README.md").read_text()
    (contrast,) = data["contrasts"]
    told = [contrast["mean"], *contrast["interval"]]
    assert all(f"{number:+.4f}" in readme for number in told)
    each = [seed["bits_per_byte"] for arm in data["arms"].values() for seed in arm["per_seed"].values()]
    each += [arm["mean"] for arm in data["arms"].values()]
    assert all(f"{number:.4f}" in readme for number in each)
    assert f"**{contrast['verdict'].capitalize()}**" in readme


def test_the_readme_tells_the_study_s_own_numbers():
    readme = (ROOT / "README.md").read_text()
    for name in ("nca-text", "nca-text-aa"):
        for contrast in json.loads((ROOT / "results" / name / "comparison.json").read_text())["contrasts"]:
            told = [f"{contrast['mean']:+.4f}", "{:+.4f} to {:+.4f}".format(*contrast["interval"]), f"{contrast['p_holm']:.3f}"]
            assert f"{' | '.join(told)} | {contrast['verdict']} |" in readme
