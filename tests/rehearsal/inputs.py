"""What the rehearsals share: a method's essence is a part of the user's own, in a file beside a tiny recipe, and nothing of it
stands in the package. It is trained, stopped, gone on with, and judged.
"""

import itertools
import json
import textwrap

import pytest

from seedbed.core.errors import InterruptedRunError
from seedbed.experiments.assemble import check_parts
from seedbed.experiments.plan.load import load
from seedbed.experiments.run.borders import check_givers
from seedbed.experiments.run.run import create, execute
from seedbed.experiments.run.signals import Signals
from seedbed.experiments.study.study import compare

RECIPE = """
name: rehearsal
model: {kind: decoder, num_layers: 2, d_model: 16, num_heads: 2}
streams:
  text:
    source: {kind: text, path: CORPUS, section_bytes: 400, valid_share: 0.1, test_share: 0.1}
    tokenizer: bytes
    seq_len: 16
    batch_size: 4
  more:
    source: {kind: text, path: CORPUS, section_bytes: 300, valid_share: 0.1, test_share: 0.1}
    tokenizer: bytes
    seq_len: 16
    batch_size: 2
stages:
  - {name: text, stream: text, budget: {steps: 4}, evaluations: 1}
evaluate:
  text: {kind: bits_per_byte, valid_bytes: 500, test_bytes: 500}
study:
  control: {name: plain}
  arms: {method: {}}
  seeds: 0-1
"""


# what rows of a stream ask, held out: for methods whose model reads no text
HELD_OUT = """

from seedbed.core.protocols import Evaluator
from seedbed.core.records import Item, Measure, Reading, TokenTargets


@dataclass(frozen=True, kw_only=True)
class HeldOut(Evaluator):
    neutral = "it reads and changes nothing"
    measures = {"loss_nats": Measure(unit="nats per target", per_token=True)}

    def unfit(self, material):
        return ""

    def read(self, subject):
        batch, outputs = subject.outputs(subject.rows("valid", count=8))
        asked = TokenTargets(ids_BT=batch.targets_BT, weights_BT=batch.weights_BT)
        values = {"nats": float(outputs.token_loss(asked).sum_nats), "asked": float(batch.weights_BT.sum())}
        return Reading(items=[Item(id="rows", group="rows", values=values)])

    def summary(self, items):
        return {"loss_nats": sum(i.values["nats"] for i in items) / sum(i.values["asked"] for i in items)}
"""
STUDY = """
evaluate: {held_out: "MINE:HeldOut"}
study:
  control: {name: plain}
  arms: {method: {}}
  seeds: 0-1
"""


class Rehearsal:
    """One method on a folder of its own."""

    def __init__(self, folder, corpus, code, recipe=RECIPE):
        self.folder = folder
        (folder / "mine.py").write_text(textwrap.dedent(code))
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(recipe.replace("CORPUS", str(corpus)).replace("MINE", str(folder / "mine.py")))

    def part(self, name):
        return f"{self.folder / 'mine.py'}:{name}"

    def sets(self, **method):
        """Say what the method's arm changes, by path."""
        text = self.recipe.read_text()
        self.recipe.write_text(text.replace("arms: {method: {}}", f"arms: {{method: {json.dumps(method)}}}"))
        return self

    def plan(self, *, arm=None, seed=0, sets=None, **where):
        loaded = load(self.recipe, sets=sets)
        plan = loaded.plan(arm=arm or loaded.arms[-1], seed=seed, threads=1, **where)
        check_parts(plan)
        check_givers(plan)
        return plan

    def run(self, name, **settings):
        """Train a run whole, and return its folder; without an `arm` the method's, or the only one."""
        create(self.plan(**settings), self.folder / name, recipe_text="x")
        execute(self.folder / name, say=lambda line: None)
        return self.folder / name

    def stopped_and_gone_on(self, name, monkeypatch, *, after=2, between=lambda: None):
        """Train a run that is stopped after some steps and resumed, and return its folder."""
        create(self.plan(), self.folder / name, recipe_text="x")
        calls = itertools.count(1)
        with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
            patch.setattr(Signals, "stopped", lambda self: next(calls) == after)
            execute(self.folder / name, say=lambda line: None)
        between()
        execute(self.folder / name, say=lambda line: None)
        return self.folder / name

    def is_exact(self, monkeypatch, *, after=2, judged=True):
        """Assert that stopping and going on changes no bit; return the folder of the whole run: the study's first run of the
        method, or without `judged` a run of its own."""
        whole = self.judged() if judged else self.run("whole")
        resumed = self.stopped_and_gone_on("resumed", monkeypatch, after=after)
        one, other = (numbers(folder) for folder in (whole, resumed))
        assert one == other and len(one) >= 4
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (whole / "checkpoints/final" / file).read_bytes() == (resumed / "checkpoints/final" / file).read_bytes()
        return whole

    def judged(self):
        """Run the study, assert that it ends in a verdict, and return the folder of the method's first run."""
        found = compare(self.recipe, out=self.folder / "study", say=lambda line: None, threads=1).data
        (contrast,) = found["contrasts"]
        assert (contrast["arm"], contrast["reference"]) == ("method", "plain") and set(contrast["per_seed"]) == {"0", "1"}
        assert contrast["verdict"] and len(contrast["interval"]) == 2 and not found["failures"]
        return self.folder / "study/method/seed-0"


def numbers(folder):
    """Return what a run computed: all of metrics.jsonl but the seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


def final(folder):
    return json.loads((folder / "final.json").read_text())
