"""A task by which a study is judged, of which more is better: share of characters that a model continues rightly."""

import json

import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.run_record import RunRecord
from seedbed.experiments.study.check import check_comparison
from tests.rehearsal.inputs import final, numbers

CODE = """
from dataclasses import dataclass

from seedbed.core.protocols import Evaluator
from seedbed.core.records import Item, Measure, Reading


@dataclass(frozen=True, kw_only=True)
class Right(Evaluator):
    neutral = "it reads and changes nothing"
    measures = {"right": Measure(unit="share of characters", better="more")}
    needs = ("causal",)
    rows: int = 6

    def unfit(self, material):
        return "" if material.tokenizer else "its stream gives no text"

    def watched(self, subject):
        return self.summary(self.read(subject).items)

    def read(self, subject):
        batch, outputs = subject.outputs(subject.rows("valid", count=self.rows))
        right = (outputs.logits().argmax(-1) == batch.targets_BT) * batch.weights_BT
        pairs = zip(right.sum(1).tolist(), batch.weights_BT.sum(1).tolist())
        return Reading(items=[Item(id=str(i), group="rows", values={"right": r, "asked": n}) for i, (r, n) in enumerate(pairs)])

    def summary(self, items):
        return {"right": sum(i.values["right"] for i in items) / sum(i.values["asked"] for i in items)}
"""


def _method(rehearse, **more):
    method = rehearse(CODE)
    text = method.recipe.read_text()
    text = text[: text.index("evaluate:")] + text[text.index("study:") :].replace("arms:", "metric: task.right\n  arms:")
    task = {"task": {"kind": method.part("Right"), **more}}
    method.recipe.write_text(text + f"evaluate: {json.dumps(task)}\n")
    return method.sets(**{"stages.text.optimizer": {"kind": "adamw", "learning_rate": 3e-2}})


def test_a_study_is_judged_by_a_task(rehearse, monkeypatch):
    method = _method(rehearse, bar={"right": 0.9}, watch={"every": 2})
    whole = method.is_exact(monkeypatch)
    study = whole.parents[1]
    data = json.loads((study / "comparison.json").read_text())
    assert (data["metric"], data["unit"], data["better"]) == ("task.right", "share of characters", "more")
    (contrast,) = data["contrasts"]
    each = {arm: [s["right"] for s in found["per_seed"].values()] for arm, found in data["arms"].items()}
    wanted = [m - p for m, p in zip(each["method"], each["plain"], strict=True)]
    assert list(contrast["per_seed"].values()) == pytest.approx(wanted) and any(wanted)
    assert contrast["mean_nats"] is None, "it has no loss beside it"
    assert data["verdict"].startswith("stage text did not come to right 0.9 (plain/seed-0, plain/seed-1, method/seed-0")
    assert [sorted(line.get("watched", {})) for line in numbers(whole)] == [[], ["task"], [], ["task"]]
    found = final(whole)["evaluations"]["task"]
    assert numbers(whole)[-1]["watched"]["task"]["right"] == found["numbers"]["right"] and not found["bar"]["met"]
    assert len(RunRecord(whole).items("task")) == 6 and final(whole)["ledger"]["text"]["evaluate"]["flops_run"] > 0
    assert check_comparison(study) == []


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("tsk.right", "study.metric: arm plain has no evaluation 'tsk'; did you mean 'task'"),
        ("task.wrong", "no measure 'wrong'"),
    ],
)
def test_a_metric_that_is_not_there_is_refused(rehearse, metric, said):
    method = _method(rehearse)
    method.recipe.write_text(method.recipe.read_text().replace("metric: task.right", f"metric: {metric}"))
    with pytest.raises(ConfigError, match=said):
        method.judged()


def test_an_evaluator_that_lacks_a_method_is_named_with_the_page_to_read(rehearse):
    method = _method(rehearse)
    file = method.folder / "mine.py"
    file.write_text(file.read_text().replace("def summary", "def summed"))
    with pytest.raises(ConfigError, match=r"lacks summary, which every part of evaluate has; .*CONTRIBUTING.md"):
        method.judged()
