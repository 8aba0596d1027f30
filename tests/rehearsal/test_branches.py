"""A schedule without an end, and annealed branches from it (infinite rate): the trunk is not moved, branches are read."""

import itertools
import json

import pytest

from seedbed.core.errors import ConfigError, InterruptedRunError
from seedbed.experiments.commands import validated
from seedbed.experiments.plan.load import load
from seedbed.experiments.run import run as module
from seedbed.experiments.run.signals import Signals
from tests.rehearsal.inputs import final, numbers

CODE = """
from dataclasses import dataclass

from seedbed.core.protocols import Schedule


@dataclass(frozen=True, kw_only=True)
class Infinite(Schedule):
    neutral = {"warmup": 0, "anneal_from": None}
    warmup: int = 2
    anneal_from: int | None = None

    def __call__(self, progress):
        rate = min(1.0, (progress.step + 1) / self.warmup) if self.warmup else 1.0
        if self.anneal_from is None or progress.step < self.anneal_from:
            return rate
        return rate * (progress.steps - progress.step) / (progress.steps - self.anneal_from + 1)
"""


def _branched(rehearse):
    method = rehearse(CODE)
    text = method.recipe.read_text().replace(
        "evaluations: 1}", f"schedule: {{kind: {method.part('Infinite')}}}, evaluations: 1}}"
    )
    method.recipe.write_text(text)
    anneal = {"name": "anneal", "stream": "text", "budget": {"steps": 2}, "evaluations": 1}
    kinds = {at: {"kind": method.part("Infinite"), "anneal_from": at} for at in (2, 4)}
    branches = {
        "early": {"at": 2, "stages": [{**anneal, "schedule": kinds[2]}]},
        "late": {"at": "text", "stages": [{**anneal, "schedule": kinds[4]}]},
    }
    return method.sets(branches=branches)


def test_branches_leave_the_trunk_as_it_is_and_are_evaluated(rehearse, monkeypatch):
    method = _branched(rehearse)
    whole = method.is_exact(monkeypatch, judged=False)
    plain = method.run("plain", arm="plain")
    assert numbers(whole) == numbers(plain), "the trunk is the run without branches, bit for bit"
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (run / "checkpoints/final" / name for run in (whole, plain))
        assert one.read_bytes() == other.read_bytes()
    states = [json.loads((run / "checkpoints/final/state.json").read_text())["counters"] for run in (whole, plain)]
    assert states[0] == states[1], "cursor included"

    said = final(whole)["branches"]
    assert [said[n]["at"] for n in ("early", "late")] == [2, 4]
    assert said["early"]["evaluations"]["text"]["numbers"] != final(whole)["evaluations"]["text"]["numbers"]
    early = numbers(whole / "branches/early")
    assert [line["step"] for line in early] == [1, 2] and early[-1]["learning_rate"] < early[0]["learning_rate"]
    trunk = numbers(whole)
    assert early[0]["loss_nats"] == trunk[2]["loss_nats"], "it shows the rows that the trunk shows there, with its weights"
    assert early[0]["learning_rate"] == pytest.approx(1e-3 * 2 / 3), "and its clock goes on"
    ledger = final(whole)["ledger"]["text"]
    assert ledger["branches"]["positions"] >= 2 * 2 * 4 * 16 and ledger["train"]["positions"] == 4 * 4 * 16


def test_arms_with_branches_are_judged(rehearse):
    assert (_branched(rehearse).judged() / "branches/late/final.json").is_file()


def test_a_run_stopped_inside_a_branch_goes_on_there(rehearse, monkeypatch):
    method = _branched(rehearse)
    whole = method.run("whole")
    folder = method.folder / "stopped"
    module.create(method.plan(), folder, recipe_text="x")
    calls = itertools.count(1)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: next(calls) == 5)
        module.execute(folder, say=lambda line: None)
    assert (folder / "branches/early/checkpoints").is_dir() and not (folder / "final.json").exists()
    module.execute(folder, say=lambda line: None)
    assert numbers(folder / "branches/early") == numbers(whole / "branches/early")
    one, other = (final(run)["branches"]["late"]["evaluations"] for run in (folder, whole))
    assert one == other


@pytest.mark.parametrize(
    ("at", "said"), [("txt", r"branches.early.at: no stage 'txt'; did you mean"), (0, "greater than or equal to 1")]
)
def test_a_branch_from_nowhere_is_refused(rehearse, at, said):
    method = _branched(rehearse)
    method.recipe.write_text(method.recipe.read_text().replace('"at": 2', f'"at": {json.dumps(at)}'))
    with pytest.raises(ConfigError, match=said):
        load(method.recipe)


def test_a_branch_that_fails_leaves_the_trunk_as_it_is(rehearse):
    method = _branched(rehearse)
    text, nan = method.recipe.read_text(), json.dumps([method.part("Nan")])
    method.recipe.write_text(text.replace('"at": 2, "stages": [{', f'"at": 2, "stages": [{{"objective": {nan}, '))
    file = method.folder / "mine.py"
    file.write_text(file.read_text() + NAN)
    whole = method.run("whole")
    said = final(whole)
    assert said["status"] == "done" and "nan" in said["branches"]["early"]["failed"] and "text" in said["evaluations"]
    assert "late/text" in said["evaluations"] and "early/text" not in said["evaluations"]


NAN = """

from seedbed.core.protocols import Objective
from seedbed.core.records import Loss


@dataclass(frozen=True, kw_only=True)
class Nan(Objective):
    neutral = "it has none"
    layout_free = True

    def count(self, batch):
        return 1.0

    def __call__(self, outputs, *, batch, context):
        return Loss(sum_nats=outputs.hidden_BTD.sum() * float("nan"))
"""


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        ({"at": 99}, "branches.early.at: the run has 4 steps, and there is no step 99"),
        ({"optimizer": "muon"}, "moments of adamw cannot go on with muon"),
        ({"weights": {"from": "run:elsewhere"}}, "the first stage of a branch goes on from trunk, got 'run:elsewhere'"),
        ({"carry": ["weights", "clock"]}, "carry: say `weights: {from: trunk, fresh: "),
    ],
)
def test_a_branch_that_could_not_begin_is_found_before_the_trunk_is_trained(rehearse, branch, said):
    method = _branched(rehearse)
    anneal = {"name": "anneal", "stream": "text", "budget": {"steps": 2}, **{k: v for k, v in branch.items() if k != "at"}}
    method.recipe.write_text(method.recipe.read_text().partition("study:")[0])
    branches = {"early": {"at": branch.get("at", 2), "stages": [anneal]}}
    with pytest.raises(ConfigError, match=said):
        validated(method.recipe, sets={"branches": branches})
