"""A mixture that follows the losses of sources which give rows, not text (Skill-it): measured, recorded, then used."""

import json

from tests.rehearsal.inputs import HELD_OUT, STUDY, numbers

CODE = """
from dataclasses import dataclass, replace

import numpy as np

from seedbed.core.draws import stream
from seedbed.core.protocols import Mixture, Source
from seedbed.core.records import Draw, Row


@dataclass(frozen=True, kw_only=True)
class Skill(Source):
    neutral = "made up"
    seq_len: int
    step: int = 1
    vocab_size = 16

    def size(self, split):
        return None

    def fingerprint(self):
        return f"skill-{self.step}"

    def rows(self, indices, *, seed, split):
        starts = [int(stream(seed, split, i).integers(16)) for i in indices]
        steps = self.step * np.arange(self.seq_len + 1)
        return [Row(tokens_T=(start + steps) % 16, weights_T=np.ones(self.seq_len + 1)) for start in starts]


@dataclass(frozen=True, kw_only=True)
class Worst(Mixture):
    neutral = "it follows the losses"
    wants = ("loss_nats", 4)

    def draws(self, start, *, count, sizes, seed, history=()):
        found = []
        for position in range(start, start + count):
            known = [m for m in history if m.position <= position]
            names = sorted(sizes)
            name = max(names, key=known[-1].values.get) if known else names[position % len(names)]
            found.append(Draw(name, position, 0))
        return found
"""

RECIPE = """
name: rehearsal
model: {kind: decoder, num_layers: 1, d_model: 16, num_heads: 2}
streams:
  skills:
    sources: {one: {kind: "MINE:Skill"}, three: {kind: "MINE:Skill", step: 3}}
    mixture: {kind: "MINE:Worst"}
    seq_len: 8
    batch_size: 4
stages:
  - {name: skills, stream: skills, budget: {steps: 5}, evaluations: 1}
"""


def test_a_mixture_that_follows_the_losses_of_rows(rehearse, monkeypatch):
    method = rehearse(CODE + HELD_OUT, RECIPE + STUDY).sets(
        **{"stages.skills.optimizer": {"kind": "adamw", "learning_rate": 1e-2}}
    )
    whole = method.is_exact(monkeypatch)
    told = [json.loads(line) for line in (whole / "feedback.jsonl").read_text().splitlines()]
    assert [m["position"] for m in told] == [4, 8, 12, 16] and set(told[0]["values"]) == {"one", "three"}
    shown = json.loads((whole / "final.json").read_text())["ledger"]["skills"]["tokens"]
    worst = [max(m["values"], key=m["values"].get) for m in told]
    assert shown == {name: 8 * (2 + 4 * worst.count(name)) for name in ("one", "three")}
    assert len(numbers(whole)) == 5
