"""What is committed under results/ follows from its own records, and README and docs tell those numbers."""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import pytest

from seedbed.experiments.study.check import check_comparison

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


def test_the_systems_page_is_made_from_recipes_and_records():
    made = tool("systems")
    assert (ROOT / "docs/systems.md").read_text() == made.page(), "run `make systems`"
    rows = [line.split(" | ") for line in made.page().splitlines() if re.match(r"\| \d", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, 48))
    assert {len(row) for row in rows} == {9}


def test_a_contrast_that_could_not_have_seen_its_effect_is_not_told():
    said = tool("systems").verdict
    assert said({"verdict": "undecided", "minimum_detectable_nats": 0.03}, published=None) == "not told"
    assert said({"verdict": "undecided", "minimum_detectable_nats": None}, published=None) == "not told"
    assert said({"verdict": "undecided", "minimum_detectable_nats": 0.03}, published=0.06) == "undecided"
    assert said({"verdict": "worse", "minimum_detectable_nats": 0.5}, published=None) == "worse"


# A number with two decimals or more under a heading of README or docs: of the records that stand under that heading
# (results/NAME), or as results/LOG.md has it; numbers that are settings are listed here.
SETTINGS = {
    # versions and an address; LOG: +0.0073; tests/nca: the shares of the vectors
    "README.md": {"3.11", "3.12", "3.13", "3.14", "2603.10055", "0.007", "99.95", "99.99"},
    "docs/automaton.md": {"0.25", "1.2.12"},
    "docs/continue.md": {"0.02"},
    "docs/systems.md": {},  # held by the test above
}
NUMBER = re.compile(r"(?<![\w.])\d+\.\d{2,}(?![\w.])")


def sections(text):
    """The text under each heading, without what stands in fences."""
    return re.split(r"^#+ .*$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE)


@cache
def numbers_of(name):
    """All numbers of the JSON files of a record, as a dict from how they look with n decimals."""
    found = set()

    def walk(value):
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.update(f"{abs(value):.{n}f}" for n in range(2, 7))

    for file in (ROOT / "results" / name).rglob("*.json"):
        walk(json.loads(file.read_text()))
    return found


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_a_number_of_a_page_is_one_of_the_record_that_it_names(page):
    if page == "docs/systems.md":
        pytest.skip("made from the records: the test above")
    log = (ROOT / "results/LOG.md").read_text()
    wrong = {}
    for section in sections((ROOT / page).read_text()):
        records = set(re.findall(r"results/([a-z0-9-]+)(?![a-zA-Z0-9.-])", section))
        known = set().union(*(numbers_of(name) for name in records)) if records else set()
        for number in set(NUMBER.findall(section)) - known - set(SETTINGS.get(page, ())):
            if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", log):
                wrong[number] = sorted(records)
    assert wrong == {}, f"of no record that is named under the same heading: {wrong}"


SPEED = re.compile(r"\d+(\.\d+)? times (as fast|the fast)|\d(\.\d+)?x as fast|\d [MG]B/s|\d[MG]? tokens a second")
PROCESSOR = re.compile(r"Xeon|EPYC|H100|H200")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_a_speed_is_told_with_the_processor_that_it_was_measured_on(page):
    paragraphs = re.split(r"\n\s*\n|\n(?=- )", (ROOT / page).read_text())
    assert [p for p in paragraphs if SPEED.search(p) and not PROCESSOR.search(p)] == []


def test_speeds_are_found_at_all():
    assert sum(len(list(SPEED.finditer((ROOT / page).read_text()))) for page in ("README.md", "docs/scale.md")) > 4


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
