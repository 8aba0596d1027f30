"""An early block is pulled towards what the last one of a trained model gives (LET), less and less, then not at all."""

from tests.rehearsal.inputs import final, numbers

CODE = """
from dataclasses import dataclass

import torch.nn.functional as F

from seedbed.core.protocols import Objective
from seedbed.core.records import Loss


@dataclass(frozen=True, kw_only=True)
class LateToEarly(Objective):
    neutral = "at weight 0 it is not computed"
    layout_free = True
    models = ("teacher",)
    taps = ("block.0",)

    def count(self, batch):
        return float(batch.weights_BT.numel())

    def __call__(self, outputs, *, batch, context):
        late = context.models["teacher"](batch, taps=("block.-1",)).taps["block.-1"]
        alike = F.cosine_similarity(outputs.taps["block.0"], late, dim=-1)
        return Loss(sum_nats=(1 - alike).sum(), parts={"cosine": alike.sum()})
"""


def test_late_states_teach_early_ones(rehearse, monkeypatch):
    method = rehearse(CODE)
    teacher = method.run("teacher", arm="plain")
    text = method.recipe.read_text()
    method.recipe.write_text(text.replace("stages:", f'models: {{teacher: {{from: "run:{teacher}@4"}}}}\nstages:'))
    weight = {"schedule": "piecewise", "points": [[0, 0.1], [2, 0.0]]}
    method.sets(**{"stages.text.objective": ["tokens", {"kind": method.part("LateToEarly"), "weight": weight}]})
    whole = method.is_exact(monkeypatch)
    lines = numbers(whole)
    assert -1 <= lines[0]["parts"]["LateToEarly.cosine"] <= 1
    assert abs(lines[0]["loss_nats"] - lines[0]["parts"]["tokens"] - 0.1 * lines[0]["parts"]["LateToEarly"]) < 1e-6
    assert abs(lines[1]["loss_nats"] - lines[1]["parts"]["tokens"] - 0.05 * lines[1]["parts"]["LateToEarly"]) < 1e-6
    assert "parts" not in lines[2], "at weight 0 there is one term, and the teacher is not called"
    assert final(whole)["ledger"]["text"]["lent"]["flops_run"] > 0
    assert numbers(method.run("again", recompute=True)) == lines, "a tap is the block's output when blocks are made again, too"
