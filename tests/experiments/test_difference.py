"""What `seedbed diff` finds: nothing between two equal runs, and what was changed, by its path, between others."""

import json
import shutil

import pytest
import torch

from seedbed.core.errors import DataError, InterruptedRunError, RunFailedError
from seedbed.experiments import commands
from seedbed.experiments.difference import Change, as_text, diff
from seedbed.experiments.plan.load import load
from seedbed.experiments.run.run import create, execute
from seedbed.experiments.run.signals import Signals


def run(recipe, out, *, arm="scratch", **settings):
    return commands.run(recipe, out=out, arm=arm, threads=1, say=lambda line: None, **settings).folder


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_two_runs_of_one_recipe_are_the_same_but_for_the_time_they_took(recipe, tmp_path):
    found = diff(run(recipe, tmp_path / "a"), run(recipe, tmp_path / "b"))
    assert found.same and found.weights_equal
    assert found.losses.steps_one == found.losses.shared_steps == 8
    assert found.seconds_one > 0 and found.seconds_other > 0
    lines = as_text(found).splitlines()
    for line in ("recipe: the same", "data: the same", "code: the same", "environment: the same", "layout: the same"):
        assert line in lines
    for line in ("  evaluations: the same", "  ledger: the same", "  losses: the same at all 8 steps"):
        assert line in lines
    assert "  weights: the same (after step 8)" in lines


def test_a_changed_rate_shows_by_its_path_and_from_the_step_on_where_losses_part(recipe, tmp_path):
    changed = {"stages.text.optimizer": {"kind": "adamw", "learning_rate": 0.01}}
    found = diff(run(recipe, tmp_path / "a"), run(recipe, tmp_path / "b", sets=changed))
    assert found.recipe.changes == [
        Change(path="stages.text.optimizer.learning_rate", one=0.001, other=0.01),
    ]
    assert found.data.same and found.ledger.same and found.layout.same
    assert found.losses.first_step == 2, "the first loss is from before the first update"
    losses = [json.loads(x)["loss_nats"] for x in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    others = [json.loads(x)["loss_nats"] for x in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    gaps = [abs(a - b) for a, b in zip(losses, others, strict=True)]
    assert (found.losses.largest_nats, found.losses.largest_step) == (max(gaps), gaps.index(max(gaps)) + 1)
    assert found.weights_equal is False and not found.same
    score = next(c for c in found.scores.changes if c.path == "text.bits_per_byte")
    text = as_text(found)
    assert f"text.bits_per_byte: {score.one} -> {score.other} ({score.other - score.one:+.6g})" in text
    assert "stages.text.optimizer.learning_rate: 0.001 -> 0.01 (+0.009)" in text
    assert "losses: first differ at step 2;" in text and "weights: different (after step 8)" in text


def test_a_stage_in_front_and_other_data_show_in_their_groups(recipe, corpus, tmp_path):
    one = run(recipe, tmp_path / "a")
    corpus.write_text(corpus.read_text().replace("apples", "plums"))
    found = diff(one, run(recipe, tmp_path / "b", arm="nca", seed=1))
    paths = {c.path: c for c in found.recipe.changes}
    assert (paths["arm"].one, paths["arm"].other, paths["seed"].other) == ("scratch", "nca", 1)
    assert paths["stages.soil.budget.steps"] == Change(path="stages.soil.budget.steps", other=6, only_in="other")
    assert [(c.path, c.only_in) for c in found.data.changes] == [("text", None), ("soil", "other")]
    assert "rules.loss_nats" in {c.path for c in found.scores.changes}
    tokens = next(c for c in found.ledger.changes if c.path == "tokens")
    assert (tokens.one, tokens.other) == (8 * 4 * 32, 14 * 4 * 32)
    assert (found.losses.steps_one, found.losses.steps_other, found.losses.shared_steps) == (8, 14, 8)
    assert found.weights_equal is None and found.weights == "the newest checkpoints are of steps 8 and 14"


def test_another_machine_code_and_layout_show_in_their_groups(recipe, tmp_path):
    one = run(recipe, tmp_path / "a")
    shutil.copytree(one, tmp_path / "b")
    env = json.loads((one / "env.json").read_text())
    edit(tmp_path / "b/env.json", processor="abacus", packages={**env["packages"], "seedbed": "0.0.9", "numpy": "1.0"})
    edit(tmp_path / "b/final.json", commit="abc")
    state = json.loads((tmp_path / "b/checkpoints/final/state.json").read_text())
    edit(tmp_path / "b/checkpoints/final/state.json", layout={**state["layout"], "ranks": 2})
    found = diff(one, tmp_path / "b")
    assert {c.path: c.other for c in found.environment.changes} == {"processor": "abacus", "packages.numpy": "1.0"}
    assert {c.path: c.other for c in found.code.changes} == {"commit": "abc", "seedbed": "0.0.9"}
    assert found.layout.changes == [Change(path="ranks", one=1, other=2)]
    assert found.recipe.same and found.losses.same and not found.same
    assert "  ranks: 1 -> 2" in as_text(found)


def test_an_unfinished_run_is_compared_as_far_as_it_came(recipe, tmp_path, monkeypatch):
    one = run(recipe, tmp_path / "a")
    plan = load(recipe).plan(arm="scratch", seed=0, threads=1)
    create(plan, tmp_path / "b", recipe_text="x")
    never = diff(one, tmp_path / "b")
    assert never.status_other == "unfinished, 0 steps so far"
    assert never.recipe.same and never.environment.absent == [f"{tmp_path / 'b'} has no env.json"]
    assert never.weights_equal is None and never.weights == f"{tmp_path / 'b'} has no checkpoint"
    assert "losses: not compared: 8 and 0 steps, none in both" in as_text(never)

    calls = iter(range(100))
    monkeypatch.setattr(Signals, "stopped", lambda self: next(calls) == 2)
    with pytest.raises(InterruptedRunError):
        execute(tmp_path / "b", say=lambda line: None)
    found = diff(one, tmp_path / "b")
    assert found.status_other == "unfinished, 3 steps so far"
    assert found.data.same and found.environment.same and found.layout.same
    assert found.scores.absent == [f"{tmp_path / 'b'} has no evaluations yet"]
    assert (found.losses.shared_steps, found.losses.first_step) == (3, None) and not found.losses.same
    assert "losses: the same at all 3 steps that are in both (8 and 3 steps)" in as_text(found)
    assert found.weights == "the newest checkpoints are of steps 8 and 3"


def test_a_failed_run_says_why_and_is_compared_all_the_same(recipe, tmp_path, monkeypatch):
    one = run(recipe, tmp_path / "a")
    norms = iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
    with pytest.raises(RunFailedError):
        run(recipe, tmp_path / "b")
    found = diff(one, tmp_path / "b")
    assert found.status_other.startswith("failed: the loss became") and found.environment.same
    assert found.scores.absent == [f"{tmp_path / 'b'} has no evaluations yet"]
    assert found.ledger.absent == [f"{tmp_path / 'b'} has no ledger yet (neither final.json nor a checkpoint)"]
    assert found.losses.steps_other == 2, "the step that failed is not a line"


def test_other_folders_are_refused_with_what_to_give(recipe, tmp_path):
    one = run(recipe, tmp_path / "study" / "scratch" / "seed-0")
    (tmp_path / "study" / "study.json").write_text("{}")
    with pytest.raises(DataError, match="is a study folder.*give one of its runs, such as .*study/scratch/seed-0"):
        diff(tmp_path / "study", one)
    with pytest.raises(DataError, match="is not a run folder.*give the folder that `seedbed run` wrote"):
        diff(one, tmp_path)
    (one / "final.json").write_text("{")
    with pytest.raises(DataError, match="final.json is broken"):
        diff(one, one)
