"""A small teacher's probabilities as soft targets for the first steps (SALT): lent, metered, not called after the switch."""

import shutil

import pytest

from seedbed.core.errors import ConfigError, DataError, RefusedError
from seedbed.experiments.estimate import estimate
from tests.rehearsal.inputs import final, numbers

CODE = """
from dataclasses import dataclass

from seedbed.core.protocols import Objective
from seedbed.core.records import Loss, Teacher, TokenTargets


@dataclass(frozen=True, kw_only=True)
class Distill(Objective):
    neutral = {"share": 0.0}
    layout_free = True
    teacher: str = "teacher"
    share: float = 0.5
    exponent: float = 0.25

    @property
    def models(self):
        return (self.teacher,) if self.share else ()

    def count(self, batch):
        return float(batch.weights_BT.sum())

    def __call__(self, outputs, *, batch, context):
        soft = Teacher(outputs=context.models[self.teacher](batch), exponent=self.exponent) if self.share else None
        asked = TokenTargets(ids_BT=batch.targets_BT, weights_BT=batch.weights_BT, soft=soft, soft_share_BT=self.share)
        found = outputs.token_loss(asked)
        return Loss(sum_nats=found.sum_nats, parts={"hard": (found.nll_BT * batch.weights_BT).sum()})
"""


def test_a_teacher_for_the_first_steps(rehearse, monkeypatch):
    method = rehearse(CODE)
    teacher = method.run("teacher", arm="plain")
    text = method.recipe.read_text()
    method.recipe.write_text(text.replace("stages:", f'models: {{teacher: {{from: "run:{teacher}"}}}}\nstages:'))
    share = {"schedule": "piecewise", "points": [[0, 0.6], [2, 0.6], [2, 0.0]]}
    method.sets(**{"stages.text.objective": [{"kind": method.part("Distill"), "share": share}]})
    whole = method.is_exact(monkeypatch)
    lines, plain = numbers(whole), numbers(method.run("plain", arm="plain"))
    ledger = final(whole)["ledger"]["text"]
    assert ledger["lent"]["flops_run"] == pytest.approx(ledger["train"]["flops_run"] / 3 / 2, rel=1e-6), "two of four steps"
    assert lines[0]["loss_nats"] != plain[0]["loss_nats"] and lines[0]["parts"]["Distill.hard"] == plain[0]["loss_nats"]
    assert lines[3]["parts"]["Distill.hard"] == lines[3]["loss_nats"], "behind the switch it is the plain loss"


def test_a_teacher_that_changed_while_the_run_was_stopped_is_refused(rehearse, monkeypatch):
    method = rehearse(CODE)
    teacher = method.run("teacher", arm="plain")
    text = method.recipe.read_text()
    method.recipe.write_text(text.replace("stages:", f'models: {{teacher: {{from: "run:{teacher}"}}}}\nstages:'))
    method.sets(**{"stages.text.objective": [{"kind": method.part("Distill")}]})
    assert "lent" in estimate(method.plan())[0].parts_mib
    other = method.run("other", arm="plain", seed=1)

    def swap():
        shutil.rmtree(teacher)
        shutil.copytree(other, teacher)

    with pytest.raises(RefusedError, match=r"models.teacher is not the model any more .*run:FOLDER@STEP"):
        method.stopped_and_gone_on("stopped", monkeypatch, between=swap)


def test_at_share_zero_it_is_the_control_to_the_bit(rehearse):
    method = rehearse(CODE)
    method.sets(**{"stages.text.objective": [{"kind": method.part("Distill"), "share": 0.0}]})
    losses = [[x["loss_nats"] for x in numbers(method.run(arm, arm=arm))] for arm in ("method", "plain")]
    assert losses[0] == losses[1]


def test_a_teacher_that_is_not_there_or_does_not_fit_is_found_beforehand(rehearse):
    method = rehearse(CODE)
    method.sets(**{"stages.text.objective": [{"kind": method.part("Distill"), "share": 0.5}]})
    with pytest.raises(ConfigError, match=r"stages.text.objective.0: it needs the model 'teacher' under `models`"):
        method.plan()
    text = method.recipe.read_text()
    method.recipe.write_text(text.replace("stages:", 'models: {teacher: {from: "run:nowhere"}}\nstages:', 1))
    with pytest.raises(DataError, match=r"models.teacher.from: .*nowhere is not a run folder"):
        method.plan()
