"""Sets that recipes name as data:NAME/... are looked up; what is not there is told with its origin and its licence."""

import os

import pytest

from seedbed.core.errors import DataError
from seedbed.core.places import DATA_FOLDERS, found_data, whole
from seedbed.experiments.plan.load import load
from seedbed.sources.data_sets import data_place, data_sets
from seedbed.sources.files import find_files
from tests.command_line import fails, seedbed


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    """Folders of sets, of which both have one called books."""
    for folder in ("first", "second"):
        (tmp_path / folder / "books").mkdir(parents=True)
        (tmp_path / folder / "books" / "a.txt").write_text(f"{folder}: " + "words and words. " * 200)
    (tmp_path / "second/peps").mkdir()
    (tmp_path / "second/peps/b.txt").write_text("more")
    monkeypatch.setenv(DATA_FOLDERS, os.pathsep.join(str(tmp_path / name) for name in ("first", "second")))
    return tmp_path


def test_the_first_folder_that_has_a_set_gives_it(two_folders):
    assert found_data("data:books/a.txt") == whole("data:books/a.txt") == str(two_folders / "first/books/a.txt")
    assert found_data("data:peps") == str(two_folders / "second/peps") and found_data("data:stacks") is None
    assert [f.path.name for f in find_files("data:books/*.txt")] == ["a.txt"]
    assert found_data("data:../second/books") is None and found_data("data:") is None


def test_the_package_is_looked_at_last(monkeypatch):
    monkeypatch.delenv(DATA_FOLDERS, raising=False)
    assert found_data("data:prose.jsonl.gz").endswith("sources/builtin/prose.jsonl.gz")


def test_a_set_that_is_not_here_is_told_with_origin_and_licence(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_FOLDERS, str(tmp_path))
    with pytest.raises(DataError, match=r"'stacks' is not here.*Origin: github.com/.* licence: GNU FDL 1.2.*--data FOLDER"):
        find_files("data:stacks/train.jsonl")
    with pytest.raises(DataError, match=r"no data set 'stack': did you mean 'stacks'\?"):
        data_place("data:stack")
    assert all(facts["origin"].startswith("github.com/") and facts["licence"] for facts in data_sets().values())


def test_a_plan_names_the_place_and_a_recipe_without_its_set_is_still_read(recipe, two_folders):
    source = "streams.text.source.path"
    assert load(recipe, sets={source: "data:books/a.txt"}).plan(arm="nca", seed=0).streams["text"].source["path"] == str(
        two_folders / "first/books/a.txt"
    )
    assert load(recipe, sets={source: "data:stacks"}).plan(arm="nca", seed=0).streams["text"].source["path"] == "data:stacks"


def test_the_folder_of_the_command_line_wins(recipe, two_folders):
    other = two_folders / "third/books"
    other.mkdir(parents=True)
    (other / "a.txt").write_text("third")
    words = ("run", recipe, "--set", "streams.text.source.path=data:books/a.txt", "--print-config")
    assert str(other) in seedbed(*words, "--data", two_folders / "third").worked()
    fails(2, *words, "--data", two_folders / "nowhere", saying="there is no such folder")
    said = fails(
        3, "run", recipe, "--set", "streams.text.source.path=data:stacks", "--out", two_folders / "R", saying="Origin:"
    )
    assert "GNU FDL" in said and not (two_folders / "R").exists()
