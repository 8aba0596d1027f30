import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seedbed.core.errors import ConfigError, DataError, RefusedError
from seedbed.experiments import commands
from seedbed.experiments.study.check import check_comparison
from seedbed.experiments.study.comparison import compared, sentence
from seedbed.experiments.study.speed import tokens_to_reach
from seedbed.experiments.study.study import compare
from seedbed.experiments.study.tune import trials, tune
from tests.processes import forked


def _compare(recipe, out, **settings):
    return compare(recipe, out=out, say=lambda line: None, **settings)


@pytest.fixture
def finished_study(a_study):
    """The recipe and the folder of a study that is only read."""
    return a_study / "tiny.yaml", a_study / "out"


@pytest.fixture
def copied(a_study, tmp_path):
    """A copy of that study's folder, to be changed."""
    return shutil.copytree(a_study / "out", tmp_path / "copy")


def _data(folder):
    return json.loads((folder / "comparison.json").read_text())


def test_a_study_ends_in_a_verdict_with_all_its_numbers(finished_study):
    _, folder = finished_study
    data = _data(folder)
    wanted = {"seeds", "arms", "metric", "budget", "contrasts", "minimum_detectable", "failures", "looks", "ledger", "commit"}
    assert wanted | {"verdict"} <= set(data)
    (contrast,) = data["contrasts"]
    assert (contrast["arm"], contrast["reference"]) == ("nca", "scratch")
    for name in ("mean", "interval", "p", "p_holm", "per_seed", "tokens_to_reference", "minimum_detectable"):
        assert contrast[name] is not None, name
    for seed, difference in contrast["per_seed"].items():
        each = [data["arms"][arm]["per_seed"][seed]["bits_per_byte"] for arm in ("nca", "scratch")]
        assert difference == pytest.approx(each[0] - each[1])
    assert data["ledger"]["nca"]["stages"]["soil"]["tokens"] == {"nca": 768}
    assert data["ledger"]["nca"]["stages"]["soil"]["generate"]["flops_run"] > 0
    assert "soil" not in data["ledger"]["scratch"]["stages"]
    assert data["verdict"].startswith("stage soil did not learn: nothing to transfer (nca/seed-0, nca/seed-1)")


def test_arms_are_paired_by_seed(finished_study):
    _, folder = finished_study
    folders = {(a, s): folder / a / f"seed-{s}" for a in ("scratch", "nca") for s in (0, 1)}
    data = {k: json.loads((f / "final.json").read_text())["data"]["text"] for k, f in folders.items()}
    assert len(set(data.values())) == 1
    items = {k: [json.loads(x)["id"] for x in (f / "items/text.jsonl").read_text().splitlines()] for k, f in folders.items()}
    assert items["scratch", 0] == items["nca", 0] == items["nca", 1]


def test_every_number_follows_from_the_run_folders(finished_study):
    _, folder = finished_study
    assert check_comparison(folder) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["contrasts", 0, "mean"], -0.5),
        (["arms", "nca", "mean"], 1.0),
        (["verdict"], "nca is better"),
        (["ledger", "nca", "total", "tokens"], 0),
    ],
)
def test_an_altered_number_is_found(copied, path, value):
    data = at = _data(copied)
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    (copied / "comparison.json").write_text(json.dumps(data))
    assert [d.split(":")[0] for d in check_comparison(copied)] == [".".join(map(str, path))]


def test_a_finished_study_is_read_again_not_run_again(finished_study, copied):
    recipe, _ = finished_study
    before = {p: p.stat().st_mtime for p in copied.rglob("final.json")}
    again = _compare(recipe, copied, threads=1)
    assert before == {p: p.stat().st_mtime for p in copied.rglob("final.json")}
    assert {**again.data, "looks": None} == {**_data(copied), "looks": None}


def test_seeds_after_the_verdict_are_refused(finished_study):
    recipe, folder = finished_study
    with pytest.raises(RefusedError, match="adding seeds until it fits is not a test"):
        _compare(recipe, folder, seeds="0-2")
    with pytest.raises(RefusedError, match=r"refused"):
        _compare(recipe, folder, seeds="0")


def test_seeds_are_fixed_once_any_result_can_have_been_seen(finished_study, copied):
    recipe, _ = finished_study
    (copied / "comparison.json").unlink()
    (copied / "nca/seed-1/final.json").unlink()
    with pytest.raises(RefusedError, match="has results of its 2 seeds"):
        _compare(recipe, copied, seeds="0-2")


def test_a_first_verdict_at_an_undeclared_look_is_refused(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("  seeds: 0-1", "  looks: [3, 6]\n  seeds: 0-1"))
    with pytest.raises(RefusedError, match=r"declares looks at \[3, 6\] seeds; 2 seeds are none of them"):
        _compare(recipe, tmp_path / "out")


@pytest.mark.pages
def test_a_study_whose_arm_failed_on_every_seed_still_has_its_page(copied):
    from seedbed.report.page import write_study_page

    for seed in (0, 1):
        (copied / f"nca/seed-{seed}/final.json").write_text(json.dumps({"status": "failed", "error": "the loss became nan"}))
    assert "nothing can be said" in compared(copied).verdict
    html = write_study_page(copied).read_text()
    assert html.count("Failed: nca seed") == 2


def test_runs_on_changed_data_are_not_compared(copied):
    file = copied / "nca/seed-1/final.json"
    final = json.loads(file.read_text())
    final["data"]["text"] = "another"
    file.write_text(json.dumps(final))
    with pytest.raises(RefusedError, match=r"stream text differ between seeds \[0, 1\] of arm nca"):
        compared(copied)


@pytest.mark.parametrize("what", ["test number", "tokens", "plan"])
def test_a_run_record_that_does_not_follow_from_its_own_files_is_found(copied, what):
    run = copied / "nca/seed-1"
    if what == "plan":
        file = run / "resolved.yaml"
        file.write_text(file.read_text().replace("clip_norm: 1.0", "clip_norm: 2.0"))
    else:
        final = json.loads((run / "final.json").read_text())
        final["evaluations"]["text"]["numbers"]["bits_per_byte"] -= 0.5 if what == "test number" else 0
        final["ledger"]["text"]["tokens"]["text"] += 1 if what == "tokens" else 0
        (run / "final.json").write_text(json.dumps(final))
    compared(copied)
    wanted = {"test number": "nca/seed-1.text.bits_per_byte", "tokens": "nca/seed-1.tokens.text", "plan": "nca/seed-1"}
    assert [d.split(":")[0] for d in check_comparison(copied)] == [wanted[what]]
    if what == "plan":
        with pytest.raises(RefusedError, match="was changed since the study began"):
            commands.resume(copied)


@pytest.mark.usefixtures("runs_here")
def test_services_follow_every_run_of_a_study(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    compare(recipe, out=tmp_path / "study", jobs=2, seeds=[0], track=["tensorboard"])
    followed = {p.parent.parent.relative_to(tmp_path / "study") for p in (tmp_path / "study").rglob("events.*")}
    assert followed == {Path("scratch/seed-0"), Path("nca/seed-0")}


def test_a_study_that_never_reads_the_test_part_is_refused(recipe, tmp_path):
    with pytest.raises(ConfigError, match="judged by text on its test part"):
        _compare(recipe, tmp_path / "out", sets={"test": False})


def test_another_recipe_in_the_same_folder_is_refused(finished_study):
    recipe, folder = finished_study
    with pytest.raises(RefusedError, match="holds another study: plans"):
        _compare(recipe, folder, sets={"stages.text.clip_norm": 0.5})


@pytest.mark.usefixtures("runs_here")
def test_declared_looks_allow_more_seeds_and_share_alpha(a_study, copied, tmp_path):
    """The study as if it had been begun with two looks declared."""
    recipe = tmp_path / "looks.yaml"
    recipe.write_text((a_study / "tiny.yaml").read_text().replace("  seeds: 0-1", "  looks: [2, 3]\n  seeds: 0-1"))
    design = json.loads((copied / "study.json").read_text())
    (copied / "study.json").write_text(json.dumps({**design, "looks": [2, 3]}))
    (copied / "comparison.json").unlink()
    first = _compare(recipe, copied, threads=1)
    second = _compare(recipe, copied, threads=1, seeds="0-2")
    assert [x["seeds"] for x in second.data["looks"]] == [2, 3]
    assert second.data["seeds"] == [0, 1, 2]
    c = first.data["contrasts"][0]
    from seedbed.experiments.study.statistics import contrast

    shared = contrast("nca", "scratch", {int(k): v for k, v in c["per_seed"].items()}, alpha=0.025)
    assert c["interval"] == pytest.approx(list(shared.interval))


def test_a_failed_seed_stays_in_the_table(copied):
    (copied / "nca/seed-1/final.json").write_text(json.dumps({"status": "failed", "error": "the loss became nan"}))
    data = compared(copied, write=False).data
    assert data["failures"] == [{"arm": "nca", "seed": 1, "error": "the loss became nan"}]
    assert list(data["contrasts"][0]["per_seed"]) == ["0"]
    assert "one seed decides nothing" in data["verdict"]


def test_an_unfinished_study_has_no_verdict(copied):
    (copied / "nca/seed-1/final.json").unlink()
    with pytest.raises(DataError, match="nca/seed-1 has not ended"):
        compared(copied)


def test_a_terminated_study_stops_its_runs_and_exits_130(recipe, tmp_path):
    out = tmp_path / "out"
    words = ["compare", recipe, "--out", out, "--jobs", 2, "--set", "stages.text.budget.steps=100000"]
    study = forked("tests.experiments.forking_study", *words)
    while len(list(out.glob("*/*/metrics.jsonl"))) < 2:
        time.sleep(0.02)
        assert study.poll() is None, study.communicate()
    study.send_signal(signal.SIGINT)
    _, said = study.communicate()
    assert study.returncode == 130 and "seedbed resume" in said and "Traceback" not in said
    assert len(list(out.glob("*/*/checkpoints/step-*"))) >= 2
    assert not list(out.rglob(".lock"))


@pytest.mark.slow
def test_a_study_as_a_user_starts_it_ends_in_the_same_numbers(a_study, tmp_path):
    """Interpreters of their own for the study and for each of its runs."""
    out = tmp_path / "out"
    words = [
        "compare",
        str(a_study / "tiny.yaml"),
        "--jobs",
        "2",
        "--threads",
        "1",
        "--seeds",
        "0",
        "--out",
        str(out),
        "--json",
    ]
    done = subprocess.run([sys.executable, "-m", "seedbed", *words], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout.splitlines()[-1])
    assert data["contrasts"][0]["per_seed"] == {"0": _data(a_study / "out")["contrasts"][0]["per_seed"]["0"]}
    assert f"page: {out / 'report.html'}" in done.stdout and check_comparison(out) == []


@pytest.mark.usefixtures("runs_here")
def test_the_control_against_itself_differs_in_the_body_s_initial_weights_only(recipe, tmp_path):
    found = _compare(recipe, tmp_path / "aa", aa=True, jobs=2)
    assert list(found.data["arms"]) == ["scratch", "again"] and found.data["aa"]
    plans = [(tmp_path / f"aa/{arm}/seed-0/resolved.yaml").read_text().splitlines() for arm in ("scratch", "again")]
    assert [b for a, b in zip(*plans, strict=True) if a != b] == ["arm: again", "  body_stream: init-second"] or sorted(
        b.strip() for a, b in zip(*plans, strict=True) if a != b
    ) == ["arm: again", "body_stream: init-second"]
    assert found.data["contrasts"][0]["mean"] != 0


@pytest.mark.usefixtures("runs_here")
def test_a_search_gives_every_arm_as_many_trials_and_never_reads_the_test_part(recipe, tmp_path):
    found = tune(recipe, out=tmp_path / "tuning", jobs=2)
    data = found.data
    assert data["trials_per_arm"] == 2 and len(data["trials"]) == 4 and data["seeds"] == [1000]
    for arm in ("scratch", "nca"):
        best = min((t for t in data["trials"] if t["arm"] == arm), key=lambda t: t["mean"])
        assert data["best"][arm] == best["settings"]
    assert not list(found.folder.rglob("items/text.jsonl")) and list(found.folder.rglob("items/rules.jsonl"))
    assert all("text" not in json.loads(f.read_text())["evaluations"] for f in found.folder.rglob("final.json"))


def test_unfair_searches_and_tuning_seeds_in_a_study_are_refused(recipe, tmp_path):
    text = recipe.read_text()
    recipe.write_text(
        text.replace(
            "scratch: {stages.text.optimizer.learning_rate: [1e-3, 3e-3]}",
            "scratch: {stages.text.optimizer.learning_rate: [1e-3]}",
        )
    )
    with pytest.raises(ConfigError, match="as many trials"):
        tune(recipe, out=tmp_path / "a")
    recipe.write_text(text)
    with pytest.raises(RefusedError, match="were used for tuning"):
        _compare(recipe, tmp_path / "b", seeds="0,1000")
    recipe.write_text(text.replace("seeds: [1000]", "seeds: [1]"))
    with pytest.raises(ConfigError, match="never used again"):
        tune(recipe, out=tmp_path / "c")


def test_a_grid_is_every_combination():
    assert trials({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


def test_tokens_to_a_loss_are_interpolated_in_the_logarithm_and_must_hold():
    curve = [(100, 3.0), (200, 2.0), (400, 1.0)]
    assert tokens_to_reach(curve, 2.0) == 200
    assert tokens_to_reach(curve, 1.5) == pytest.approx(200 * 2**0.5)
    assert tokens_to_reach(curve, 0.5) is None
    assert tokens_to_reach([(100, 3.0), (200, 1.4), (300, 1.6), (400, 1.0)], 1.5) == pytest.approx(
        300 * (400 / 300) ** (0.1 / 0.6)
    ), "a dip that does not last does not count"


def test_a_study_without_pairs_says_so():
    from seedbed.experiments.study.statistics import contrast

    data = {"bars": {}, "unit": "bits per byte", "margin": 0.01}
    assert "nothing can be said" in sentence(data, [contrast("a", "b", {}, alpha=0.05)])


def test_a_recipe_without_a_study_cannot_be_compared(recipe, tmp_path):
    recipe.write_text(recipe.read_text().split("study:")[0])
    with pytest.raises(ConfigError, match="has no study"):
        _compare(recipe, tmp_path / "out")
