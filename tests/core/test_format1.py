"""Records of the first format: every number is read as it stands, and nothing that would go on with them misreads them."""

import json
import shutil
from pathlib import Path

import pytest

from seedbed.core import run_record
from seedbed.core.errors import RefusedError
from seedbed.core.format1 import TEXT
from seedbed.core.run_record import RunRecord, read_comparison, runs_of
from seedbed.experiments import commands
from seedbed.experiments.difference import diff
from seedbed.experiments.export.export import export
from seedbed.experiments.plan.run_plan import plan_hash, read_plan
from seedbed.experiments.study.check import check_comparison
from seedbed.experiments.study.design import read_design
from seedbed.experiments.study.pack import pack
from seedbed.report.page import write_page

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = [file.parent for file in sorted(RESULTS.glob("*/comparison.json"))]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The demo's study as it was before it was packed, but for weights."""
    folder = tmp_path_factory.mktemp("first") / "nca-demo"
    folder.mkdir()
    for name in ("study.json", "comparison.json", "recipe.yaml"):
        shutil.copy(RESULTS / "nca-demo" / name, folder)
    for run in runs_of(RESULTS / "nca-demo"):
        tables, facts = run_record._opened(run)
        key, place = f"{run.parent.name}/{run.name}", folder / run.parent.name / run.name
        place.mkdir(parents=True)
        (place / "resolved.yaml").write_text(facts[key]["plan"])
        (place / "final.json").write_text(json.dumps(facts[key]["final"]))
        (place / "env.json").write_text(json.dumps(facts[key]["environment"]))
        (place / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in tables[f"{key}/metrics"]))
        items = [run_record._nested(x) for x in tables[f"{key}/items"]]
        (place / "items.jsonl").write_text("".join(json.dumps(x) + "\n" for x in items))
    return folder


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.name)
def test_every_committed_plan_has_the_hash_that_it_was_given(study):
    design, runs = read_design(study), runs_of(study)
    assert len(runs) == len(design.seeds) * (1 + len(design.arms))
    assert [run for run in runs if plan_hash(run) != design.plans[run.parent.name]] == []


def test_a_plan_that_was_altered_has_another(unpacked, tmp_path):
    run = shutil.copytree(unpacked / "nca/seed-3", tmp_path / "study/nca/seed-3")
    before = plan_hash(run)
    text = (run / "resolved.yaml").read_text()
    (run / "resolved.yaml").write_text(text.replace("clip_norm: 1.0", "clip_norm: 2.0", 1))
    assert plan_hash(run) != before


def test_its_numbers_stand_where_today_s_do(unpacked):
    record = RunRecord(unpacked / "nca/seed-3")
    raw, found = json.loads((record.folder / "final.json").read_text()), record.final()["evaluations"]
    assert found[TEXT]["numbers"] == raw["test"] and found[TEXT]["measures"]["loss_nats"]["per_token"]
    old = raw["stage0"]["soil"]
    assert found["rules"]["numbers"]["loss_nats"] == old["loss_nats"] and found["rules"]["bar"]["met"] is old["learned"]
    assert found["rules"]["facts"]["by_frame_nats"] == old["by_frame_nats"]
    lines = [json.loads(x) for x in (record.folder / "metrics.jsonl").read_text().splitlines()]
    for stage, name in (("soil", "rules"), ("text", TEXT)):
        wanted = [(x["tokens"], x["valid_loss_nats"]) for x in lines if x["stage"] == stage and "valid_loss_nats" in x]
        assert record.watched(name, "loss_nats", stage=stage) == wanted
        assert wanted or stage == "soil", "which was not yet read on the way"
    assert sum(i.values["bytes"] for i in record.items(TEXT)) == raw["test"]["bytes"]
    assert not record.items("rules"), "which that format did not keep"


def test_several_held_out_sets_are_so_many_evaluations_and_the_main_one_is_judged():
    study = RESULTS / "domain-mixture"
    raw, found = json.loads((study / "comparison.json").read_text()), read_comparison(study)
    assert found["metric"] == "prose.bits_per_byte" and found["unit"] == "bits per byte" and found["better"] == "less"
    assert set(found["described"]) == set(raw["held_out"]) == {"prose", "code", "math"}
    record = RunRecord(runs_of(study)[0])
    for name, told in record.final()["evaluations"].items():
        assert sum(i.values["bytes"] for i in record.items(name)) == told["numbers"]["bytes"], name


def test_an_altered_number_is_found(unpacked, tmp_path):
    copy = shutil.copytree(unpacked, tmp_path / "nca-demo")
    assert check_comparison(copy) == []
    file = copy / "nca/seed-3/final.json"
    final = json.loads(file.read_text())
    final["test"]["bits_per_byte"] += 1e-3
    file.write_text(json.dumps(final))
    assert any("nca/seed-3.text.bits_per_byte" in line for line in check_comparison(copy))


def test_two_runs_are_told_apart(unpacked):
    found = diff(unpacked / "nca/seed-3", unpacked / "nca/seed-4")
    assert {c.path for c in found.scores.changes} >= {"text.bits_per_byte", "rules.loss_nats"}
    assert diff(RESULTS / "nca-demo/nca/seed-3", unpacked / "nca/seed-3").scores.same


@pytest.mark.pages
@pytest.mark.slow
def test_its_page_is_drawn(unpacked, tmp_path):
    copy = shutil.copytree(unpacked, tmp_path / "nca-demo")
    html = write_page(copy).read_text()
    assert "text: bits per byte" in html and "Did stage soil reach its bar?" in html and html.count("<svg") >= 3
    assert "bits per byte" in write_page(copy / "nca/seed-3").read_text()


@pytest.mark.parametrize(
    "what",
    [
        read_plan,
        commands.resume,
        commands.open_run,
        lambda run: commands.evaluate_text(run, "builtin:prose"),
        lambda run: commands.sample(run, ["a"]),
        lambda run: export(run, run.parent / "exported"),
        lambda run: pack(run.parent.parent),
        lambda run: commands.resume(run.parent.parent),
    ],
    ids=["plan", "resume", "open", "eval", "sample", "export", "pack", "resume-study"],
)
def test_what_would_go_on_with_it_is_refused_with_the_version_that_can(unpacked, tmp_path, what):
    run = shutil.copytree(unpacked, tmp_path / "nca-demo") / "nca/seed-3"
    commit = json.loads((run / "env.json").read_text())["commit"]
    with pytest.raises(RefusedError, match=f"first format.*commit {commit}"):
        what(run)


def test_weights_of_such_a_run_are_refused(unpacked, recipe):
    from seedbed.experiments.plan.load import load
    from seedbed.experiments.run.borders import check_givers

    sets = {"stages.text.weights.from": f"run:{unpacked / 'nca/seed-3'}"}
    with pytest.raises(RefusedError, match="first format"):
        check_givers(load(recipe, sets=sets).plan(arm="nca", seed=0))
