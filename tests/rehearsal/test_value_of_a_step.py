"""A designer, trained beside the learner, chooses soft targets whose step helps on a second stream (V-pretraining)."""

from safetensors.torch import load_file

from tests.rehearsal.inputs import final, numbers

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

from seedbed.core.protocols import Objective
from seedbed.core.records import Loss, TokenTargets, TopK


@dataclass(frozen=True, kw_only=True)
class Value(Objective):
    neutral = {"share": 0.0}
    layout_free = False  # the feedback's gradient is one of the micro-batch
    streams = ("more",)
    plain = True
    share: float = 0.3
    k: int = 4

    def build(self, model, *, seed):
        designer = nn.Linear(self.k, self.k)
        with torch.no_grad():
            for p in designer.parameters():
                p.copy_(torch.linspace(-0.1, 0.1, p.numel()).view(p.shape))
        return designer

    def count(self, batch):
        return float(batch.weights_BT.sum())

    def __call__(self, outputs, *, batch, context):
        chosen = list(context.model.blocks[-1].mlp.parameters())
        likely = outputs.top(self.k)
        soft = TopK(ids_BTK=likely.ids_BTK, probs_BTK=context.own(likely.probs_BTK).softmax(-1))
        asked = TokenTargets(ids_BT=batch.targets_BT, weights_BT=batch.weights_BT, soft=soft, soft_share_BT=self.share)
        learner = outputs.token_loss(asked, plain=True).sum_nats
        feedback = context.batches["more"]
        theirs = context.model(feedback, plain=True).token_loss(
            TokenTargets(ids_BT=feedback.targets_BT, weights_BT=feedback.weights_BT), plain=True
        ).sum_nats
        wanted = torch.autograd.grad(theirs, chosen)
        step = torch.autograd.grad(learner, chosen, create_graph=True)
        value = sum((a * b.detach()).sum() for a, b in zip(step, wanted, strict=True))
        mine = list(context.own.parameters())
        surrogate = sum((p * g).sum() for p, g in zip(mine, torch.autograd.grad(value, mine, retain_graph=True), strict=True))
        plain = outputs.token_loss(
            TokenTargets(
                ids_BT=batch.targets_BT,
                weights_BT=batch.weights_BT,
                soft=TopK(ids_BTK=soft.ids_BTK, probs_BTK=soft.probs_BTK.detach()),
                soft_share_BT=self.share,
            )
        ).sum_nats
        return Loss(sum_nats=plain + (surrogate - surrogate.detach()) * -1e-3, parts={"value": value})
"""


def test_a_designer_learns_from_a_second_stream(rehearse, monkeypatch):
    method = rehearse(CODE)
    method.sets(**{"stages.text.further": ["more"], "stages.text.objective": [{"kind": method.part("Value")}]})
    whole = method.is_exact(monkeypatch)
    held = load_file(whole / "checkpoints/final/model.safetensors")
    weights = held["objectives.Value.weight"].flatten().tolist()
    assert weights != [-0.1 + 0.2 * i / 15 for i in range(16)], "the designer was trained, and is in the checkpoint"
    assert any(name.startswith("objectives.Value.") for name in load_file(whole / "checkpoints/final/optimizer.safetensors"))
    ledger = final(whole)["ledger"]["text"]
    assert sum(ledger["tokens"].values()) == 4 * (4 + 2) * 16, "both streams are counted"
    assert "Value.value" in numbers(whole)[0]["parts"]
