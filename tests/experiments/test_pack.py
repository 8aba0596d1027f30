"""A packed study tells what the study told: every number, every page, every refusal."""

import json
import shutil

import pytest

from seedbed.core.errors import DataError, RefusedError
from seedbed.core.run_record import RUNS, RunRecord, runs_of
from seedbed.experiments.difference import diff
from seedbed.experiments.inspection import inspect
from seedbed.experiments.study.check import check_comparison
from seedbed.experiments.study.pack import pack
from seedbed.report.page import write_page
from tests.command_line import fails, seedbed


@pytest.fixture(scope="session")
def a_packed_study(once, a_study):
    """The study of a_study, packed (out-packed). For reading only."""
    return once("a-packed-study", lambda folder: pack(a_study / "out", out=folder / "out-packed"))


@pytest.fixture
def both(a_study, a_packed_study):
    return a_study / "out", a_packed_study / "out-packed"


def test_a_packed_study_is_a_few_small_files_and_every_number(both):
    study, packed = both
    assert {p.name for p in packed.iterdir()} == {"study.json", "recipe.yaml", "comparison.json", RUNS}
    assert [p.relative_to(packed) for p in runs_of(packed)] == [p.relative_to(study) for p in runs_of(study)]
    for whole, small in zip(runs_of(study), runs_of(packed), strict=True):
        one, other = RunRecord(whole), RunRecord(small)
        assert other.is_packed and not one.is_packed
        assert list(other.metrics()) == list(one.metrics())
        for told in ("final", "environment", "plan_text", "feedback_text", "log_text"):
            assert getattr(other, told)() == getattr(one, told)()
        assert other.evaluations() == one.evaluations() != []
        for name in one.evaluations():
            assert other.items(name) == one.items(name) != []
    assert check_comparison(packed) == []


def test_the_first_run_s_pictures_are_kept_and_no_other_s(both):
    study, packed = both
    shown = [key for key in runs_of(study) if any(RunRecord(key).exhibits())]
    assert len(shown) == 2
    kept = [key for key in runs_of(packed) if any(RunRecord(key).exhibits())]
    assert [k.relative_to(packed) for k in kept] == [shown[0].relative_to(study)]
    assert list(RunRecord(kept[0]).exhibits()) == list(RunRecord(shown[0]).exhibits())


@pytest.mark.pages
@pytest.mark.slow
def test_a_packed_study_has_the_page_that_the_study_had(both, tmp_path):
    pages = []
    for source, name in zip(both, ("whole", "packed"), strict=True):
        folder = tmp_path / name / "study"
        shutil.copytree(source, folder)
        (folder / "report.html").unlink(missing_ok=True)
        pages.append(write_page(folder).read_text())
    assert pages[0] == pages[1]


def test_a_number_that_was_altered_is_found_in_a_packed_study_too(both, tmp_path):
    copy = shutil.copytree(both[1], tmp_path / "copy")
    file = copy / "comparison.json"
    file.write_text(file.read_text().replace("0.0", "0.1", 1))
    assert check_comparison(copy)
    raw = bytearray((copy / RUNS).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / RUNS).write_bytes(raw)
    with pytest.raises(DataError, match=r"runs\.xz is broken"):
        check_comparison(copy)


def test_texts_of_items_stay_only_where_the_licence_allows(a_study, tmp_path):
    study = shutil.copytree(a_study / "out", tmp_path / "study")
    for run in runs_of(study):
        items = [json.loads(line) | {"text": "as it was"} for line in (run / "items/text.jsonl").read_text().splitlines()]
        (run / "items/text.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for licence, kept in (("CC-BY-SA-4.0", True), ("public domain", True), ("CC BY-NC 4.0", False), ("", False)):
        for run in runs_of(study):
            note = run / "reader/reader.json"
            facts = json.loads(note.read_text())
            facts["licences"] = {"text": licence} if licence else {}
            note.write_text(json.dumps(facts))
        after = [i for run in runs_of(pack(study, out=tmp_path / f"p{kept}{licence}")) for i in RunRecord(run).items("text")]
        assert {i.text for i in after} == {"as it was" if kept else ""}


def test_two_runs_of_a_packed_study_are_told_apart_and_looked_at(both):
    study, packed = both
    runs = [[folder / arm / "seed-0" for arm in ("scratch", "nca")] for folder in both]
    told = [[getattr(diff(*pair), what) for what in ("recipe", "data", "scores", "ledger", "losses")] for pair in runs]
    assert told[0] == told[1]
    shown = inspect(packed / "nca/seed-0", step=1)
    assert shown.rows == inspect(study / "nca/seed-0", step=1).rows


@pytest.mark.parametrize(
    "words",
    [
        ["resume", "P"],
        ["resume", "P/nca/seed-0"],
        ["sample", "P/nca/seed-0"],
        ["eval", "P/nca/seed-0", "--text", "builtin:prose"],
        ["export", "P/nca/seed-0", "--out", "E"],
        ["compare", "tiny.yaml", "--out", "P"],
        ["pack", "P"],
    ],
)
def test_what_needs_weights_is_refused_with_the_reason(both, a_study, tmp_path, words):
    (tmp_path / "P").symlink_to(both[1])
    shutil.copy(a_study / "tiny.yaml", tmp_path / "tiny.yaml")
    fails(4, *words, cwd=tmp_path, saying="packed")
    assert not (tmp_path / "E").exists() and not (tmp_path / "P-packed").exists()


def test_a_study_that_has_not_ended_or_was_altered_is_not_packed(a_study, tmp_path):
    study = shutil.copytree(a_study / "out", tmp_path / "study")
    before = sorted(p.name for p in study.iterdir())
    fails(4, "pack", "study", "--out", "study", cwd=tmp_path)
    final = study / "nca/seed-0/final.json"
    kept = final.read_text()
    facts = json.loads(kept)
    facts["evaluations"]["text"]["numbers"]["bits_per_byte"] += 1e-3
    final.write_text(json.dumps(facts))
    with pytest.raises(RefusedError, match="does not follow from its runs"):
        pack(study)
    final.write_text(kept)
    assert "packed: study-packed (" in seedbed("pack", "study", cwd=tmp_path).worked()
    fails(4, "pack", "study", cwd=tmp_path, saying="study-packed")
    (study / "comparison.json").unlink()
    with pytest.raises(DataError, match="seedbed resume"):
        pack(study, out=tmp_path / "other")
    assert sorted(p.name for p in study.iterdir()) == [n for n in before if n != "comparison.json"]
    assert {p.name for p in tmp_path.iterdir()} == {"study", "study-packed"}
