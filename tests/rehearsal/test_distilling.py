"""A small teacher's probabilities as soft targets for the first steps (SALT): lent, metered, not called after the switch."""

import json
import shutil

import pytest

from seedbed.core.errors import ConfigError, DataError, RefusedError
from seedbed.experiments.commands import validated
from seedbed.experiments.estimate.estimate import estimate
from seedbed.experiments.export.export import export
from seedbed.experiments.run.givers import place_in, recipes_of
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


def _taught(method, giver):
    """The method with a teacher, whose share of the loss is a half."""
    text = method.recipe.read_text()
    method.recipe.write_text(text.replace("stages:", f"models: {{teacher: {giver}}}\nstages:", 1))
    return method.sets(**{"stages.text.objective": [{"kind": method.part("Distill"), "share": 0.5}]})


@pytest.mark.slow
@pytest.mark.parametrize("charged", [True, False])
def test_a_teacher_from_a_recipe_is_trained_first(rehearse, monkeypatch, charged):
    method = rehearse(CODE)
    recipe = method.folder / "teacher.yaml"
    recipe.write_text(method.recipe.read_text().replace("name: rehearsal", "name: teacher").split("study:")[0])
    _taught(method, json.dumps({"from": f"recipe:{recipe}", "charged": charged}))
    whole = method.is_exact(monkeypatch, judged=False) if charged else method.run("whole")
    teacher = final(place_in(whole, f"recipe:{recipe}"))
    assert teacher["name"] == "teacher" and teacher["seed"] == 0
    ledger = final(whole)["ledger"]["text"]
    (told,) = final(whole)["trained_first"].values()
    assert ("givers" in ledger) == charged == (told["cost"] == "charged")
    if charged:
        assert ledger["givers"]["flops_run"] > teacher["ledger"]["text"]["train"]["flops_run"] * 0.99


@pytest.mark.slow
def test_a_teacher_from_a_recipe_is_as_one_from_its_run(rehearse):
    method = rehearse(CODE)
    recipe = method.folder / "teacher.yaml"
    recipe.write_text(method.recipe.read_text().replace("name: rehearsal", "name: teacher").split("study:")[0])
    _taught(method, json.dumps({"from": f"recipe:{recipe}"}))
    assert "lent" in estimate(method.plan())[0].parts_mib, "told before it is there"
    whole = method.run("whole")
    text = method.recipe.read_text()
    method.recipe.write_text(text.replace(f"recipe:{recipe}", f"run:{place_in(whole, f'recipe:{recipe}')}"))
    assert numbers(method.run("lent")) == numbers(whole)


def test_a_recipe_that_takes_from_itself_is_refused(rehearse):
    method = rehearse(CODE)
    _taught(method, json.dumps({"from": f"recipe:{method.recipe}"}))
    assert list(recipes_of(method.plan())) == [f"recipe:{method.recipe}"], "its control teaches it, and has no teacher"
    text, objective = method.recipe.read_text(), json.dumps([{"kind": method.part("Distill"), "share": 0.5}])
    method.recipe.write_text(text.replace("evaluations: 1}", f"evaluations: 1, objective: {objective}}}", 1))
    with pytest.raises(ConfigError, match="takes a model from itself"):
        method.plan()


def test_a_teacher_of_another_vocabulary_is_found_by_validate(rehearse):
    method = rehearse(CODE)
    other = method.run("other", arm="plain", sets={"model.vocab_size": 300})
    _taught(method, json.dumps({"from": f"run:{other}"}))
    with pytest.raises(ConfigError, match=r"models.teacher: .* knows 300 ids, and stage text has 257"):
        validated(method.recipe)


def test_so_is_one_that_a_recipe_will_train(rehearse):
    method = rehearse(CODE)
    recipe = method.folder / "teacher.yaml"
    teacher = method.recipe.read_text().replace("name: rehearsal", "name: teacher").split("study:")[0]
    recipe.write_text(teacher.replace("num_heads: 2}", "num_heads: 2, vocab_size: 300}"))
    _taught(method, json.dumps({"from": f"recipe:{recipe}"}))
    with pytest.raises(ConfigError, match=r"models.teacher: recipe:.* knows 300 ids, and stage text has 257"):
        validated(method.recipe)
    recipe.write_text(teacher)
    validated(method.recipe)


def test_a_teacher_from_a_model_folder(rehearse):
    pytest.importorskip("transformers")
    method = rehearse(CODE)
    run = method.run("teacher", arm="plain")
    export(run, method.folder / "llama")
    _taught(method, json.dumps({"from": f"hf:{method.folder / 'llama'}"}))
    validated(method.recipe)
    lent = numbers(method.run("from-folder"))
    method.recipe.write_text(method.recipe.read_text().replace(f"hf:{method.folder / 'llama'}", f"run:{run}"))
    assert [x["loss_nats"] for x in lent] == pytest.approx([x["loss_nats"] for x in numbers(method.run("from-run"))], rel=1e-6)


def test_two_recipes_that_end_alike_are_two_givers(tmp_path):
    assert place_in(tmp_path, "recipe:a/teacher.yaml") != place_in(tmp_path, "recipe:b/teacher.yaml")
