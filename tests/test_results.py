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
