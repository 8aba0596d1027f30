"""A budget in seconds is a number of steps from the first timing on: the same for all seeds, and for who goes on."""

import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.run_record import RunRecord
from seedbed.experiments import commands
from seedbed.experiments.estimate import timing
from seedbed.experiments.plan.load import load
from seedbed.experiments.plan.run_plan import read_plan
from seedbed.experiments.study.study import compare, timed_plans
from tests.rehearsal.inputs import RECIPE


@pytest.fixture
def seconds(tmp_path, corpus, monkeypatch):
    """A recipe with a budget of 0.6 s, on a machine whose steps take 0.1 s, and 0.2 s when it is asked again; the askings."""
    asked = []

    class Step:
        stage = "text"

        def __init__(self):
            asked.append(1)
            self.step_seconds = 0.1 * len(asked)

    monkeypatch.setattr(timing, "estimate", lambda plan: [Step()])
    file = tmp_path / "seconds.yaml"
    file.write_text(RECIPE.replace("CORPUS", str(corpus)).replace("budget: {steps: 4}", "budget: {seconds: 0.6}"))
    return file, asked


def test_a_run_times_a_step_once_and_keeps_what_it_found(seconds, tmp_path):
    recipe, asked = seconds
    folder = commands.run(recipe, out=tmp_path / "run", threads=1, say=lambda line: None).folder
    timed = read_plan(folder).stages[0].budget.timed
    assert (timed.steps, timed.step_seconds, len(asked)) == (6, 0.1, 1) and timed.processor
    assert len(list(RunRecord(folder).metrics())) == 6
    (folder / "final.json").unlink()
    commands.resume(folder, say=lambda line: None)
    assert len(asked) == 1 and len(list(RunRecord(folder).metrics())) == 6


def test_seeds_of_an_arm_share_its_timing_and_a_study_goes_on_with_it(seconds, tmp_path):
    recipe, asked = seconds
    loaded = load(recipe)
    plans = {(arm, seed): loaded.plan(arm=arm, seed=seed) for arm in loaded.arms for seed in (0, 1)}
    once = timed_plans(plans, tmp_path / "study")
    steps = {key: plan.stages[0].budget.timed.steps for key, plan in once.items()}
    assert steps == {("plain", 0): 6, ("plain", 1): 6, ("method", 0): 3, ("method", 1): 3} and len(asked) == 2
    for arm in loaded.arms:
        folder = tmp_path / "study" / arm / "seed-0"
        folder.mkdir(parents=True)
        (folder / "resolved.yaml").write_text(once[arm, 0].to_yaml())
    again = timed_plans(plans, tmp_path / "study")
    assert again == once and len(asked) == 2
    assert once["plain", 0].fingerprint() != once["method", 0].fingerprint(), "other numbers of steps are other plans"


def test_other_seconds_are_timed_anew(seconds):
    recipe, asked = seconds
    known = timing.timed(load(recipe).plan(arm="plain", seed=0))
    other = load(recipe, sets={"stages.text.budget": {"seconds": 1.2}}).plan(arm="plain", seed=0)
    assert timing.timed(other, known=known).stages[0].budget.timed.steps == 6 and len(asked) == 2, "1.2 s of steps of 0.2 s"


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_a_study_in_seconds_is_run_and_gone_on_with(seconds, tmp_path):
    recipe, asked = seconds
    found = compare(recipe, out=tmp_path / "study", seeds=[0], threads=1, say=lambda line: None)
    assert found.data["budget"]["seconds"] == 0.6 and len(asked) == 2
    assert found.data["budget"]["unmatched"] == {"method": 3 * 64}, "whose steps took twice as long has half of them"
    compare(recipe, out=tmp_path / "study", seeds=[0], threads=1, say=lambda line: None)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"seconds": 0}, "greater than 0"),
        ({"seconds": 5.0, "steps": 3}, "one currency of steps, tokens, flops_run, flops_ideal, seconds; got"),
        ({"steps": 3, "timed": {"steps": 3, "step_seconds": 1.0, "processor": "x"}}, "timed belongs to a budget in seconds"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(seconds, budget, said):
    with pytest.raises(ConfigError, match=said):
        load(seconds[0], sets={"stages.text.budget": budget})
