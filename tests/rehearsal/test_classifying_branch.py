"""A masked encoder, judged by what a classifier on top of it reaches: a branch with a head of its own."""

import json

import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.run_record import RunRecord
from seedbed.experiments.study.check import check_comparison
from seedbed.experiments.study.pack import pack
from tests.rehearsal.inputs import final
from tests.rehearsal.test_masked_encoder import CODE as MASKED

CODE = (
    MASKED
    + """

import torch
from torch import nn

from seedbed.core.protocols import Evaluator, Objective, Source
from seedbed.core.records import Item, Loss, Measure, Reading, Row


@dataclass(frozen=True, kw_only=True)
class Topics(Source):
    neutral = "made up"
    seq_len: int
    vocab_size = 257  # bytes, as in the trunk's stream

    def size(self, split):
        return None

    def fingerprint(self):
        return "topics"

    def rows(self, indices, *, seed, split):
        made = [stream(seed, split, i).integers(97, 123, self.seq_len) for i in indices]
        return [Row(tokens_T=x, labels={"topic": int(x[0] > 109)}) for x in made]


@dataclass(frozen=True, kw_only=True)
class AsTheyAre(View):
    neutral = "it hides nothing"
    keeps_order = True
    spare = 1

    def __call__(self, row, *, key, vocabulary, progress):
        return replace(row, weights_T=np.ones(row.length, np.float32))


def scores(head, outputs):
    return head(outputs.hidden_BTD.float().mean(1))


@dataclass(frozen=True, kw_only=True)
class Classify(Objective):
    neutral = "it has a head of its own"
    layout_free = True

    def build(self, model, *, seed):
        head = nn.Linear(16, 2)
        nn.init.zeros_(head.bias)
        nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
        return head

    def count(self, batch):
        return float(batch.size.rows)

    def __call__(self, outputs, *, batch, context):
        return Loss(sum_nats=nn.functional.cross_entropy(scores(context.own, outputs), batch.labels["topic"], reduction="sum"))


@dataclass(frozen=True, kw_only=True)
class Accuracy(Evaluator):
    neutral = "it reads and changes nothing"
    measures = {"accuracy": Measure(unit="share of rows", better="more")}

    def unfit(self, material):
        return "" if material.tokenizer is None else "its rows have no topic"

    def read(self, subject):
        batch, outputs = subject.outputs(subject.rows("valid", count=16))
        right = scores(subject.own["Classify"], outputs).argmax(-1) == batch.labels["topic"]
        return Reading(items=[Item(id=str(i), group="rows", values={"right": float(r)}) for i, r in enumerate(right)])

    def summary(self, items):
        return {"accuracy": sum(i.values["right"] for i in items) / len(items)}
"""
)

RECIPE = """
name: rehearsal
model: {kind: decoder, num_layers: 2, d_model: 16, num_heads: 2, mask: bidirectional}
streams:
  text:
    source: {kind: text, path: CORPUS, section_bytes: 400, valid_share: 0.1, test_share: 0.1}
    tokenizer: bytes
    views: [{kind: "MINE:Masked"}]
    seq_len: 16
    batch_size: 4
  topics: {source: {kind: "MINE:Topics"}, views: ["MINE:AsTheyAre"], seq_len: 16, batch_size: 4}
stages:
  - {name: text, stream: text, budget: {steps: 4}}
branches:
  probe:
    at: text
    stages:
      - name: tune
        stream: topics
        budget: {steps: 2}
        objective: ["MINE:Classify"]
        weights: {from: trunk, fresh: [objective]}
    evaluate: {topics: "MINE:Accuracy"}
study:
  metric: probe/topics.accuracy
  control: {name: plain}
  arms: {method: {}}
  seeds: 0-1
"""


def _method(rehearse):
    return rehearse(CODE, RECIPE).sets(**{"stages.text.optimizer": {"kind": "adamw", "learning_rate": 3e-2}})


@pytest.mark.slow
def test_an_encoder_is_judged_by_its_classifying_branch(rehearse, monkeypatch):
    whole = _method(rehearse).is_exact(monkeypatch)
    study, found = whole.parents[1], final(whole)
    data = json.loads((study / "comparison.json").read_text())
    assert (data["metric"], data["better"]) == ("probe/topics.accuracy", "more")
    told = found["evaluations"]["probe/topics"]
    assert told == found["branches"]["probe"]["evaluations"]["topics"] and told["stage"] == "tune"
    assert data["arms"]["method"]["per_seed"]["0"]["accuracy"] == told["numbers"]["accuracy"]
    assert len(RunRecord(whole).items("probe/topics")) == 16 and "text" not in found["evaluations"]
    assert check_comparison(study) == []
    packed = RunRecord(pack(study, out=study.parent / "packed") / "method/seed-0")
    assert packed.items("probe/topics") == RunRecord(whole).items("probe/topics")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metric: probe/", "metric: prob/", "study.metric: arm plain has no branch 'prob'; did you mean 'probe'"),
        ("metric: probe/topics", "metric: probe/topic", "study.metric: arm plain has no evaluation 'topic'; did you mean"),
        (
            "{topics: ",
            "{topics: {kind: bits_per_byte}, else: ",
            "branches.probe.evaluate.topics: it fits no stage of arm plain",
        ),
    ],
)
def test_what_a_branch_does_not_have_is_refused_before_anything_is_trained(rehearse, old, new, said):
    method = _method(rehearse)
    text = method.recipe.read_text()
    assert old in text
    method.recipe.write_text(
        text.replace(old, new).replace("topics.accuracy", "topics") if "bits" in new else text.replace(old, new)
    )
    with pytest.raises(ConfigError, match=said):
        method.judged()
    assert not (method.folder / "study/plain").exists()
