"""A linear that rounds at random in training (as NVFP4 does): its draws have names of their own and move nobody else's."""

import pytest

from seedbed.core.errors import RefusedError
from seedbed.experiments import commands
from seedbed.experiments.run.layout import Session
from seedbed.experiments.run.signals import Signals
from tests.rehearsal.inputs import numbers

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

from seedbed.core.drawing import forward_seed
from seedbed.models.layers.site import Layer


class Rounded(nn.Linear):
    scale = 64.0

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        draws = torch.Generator(x.device).manual_seed(forward_seed(self.role, "rounding"))
        noise = torch.rand(x.shape, generator=draws, device=x.device)
        rounded = x + ((x * self.scale + noise).floor() / self.scale - x).detach() * SHARE
        return nn.functional.linear(rounded, self.weight)


@dataclass(frozen=True, kw_only=True)
class Linear(Layer):
    neutral = "it rounds"
    sites, layout_free = ("linear",), False

    def build(self, site):
        return Rounded(site.sizes["in_features"], site.sizes["out_features"], bias=False)
"""


@pytest.mark.parametrize("recompute", [False, True])
def test_a_linear_that_draws(rehearse, monkeypatch, recompute):
    method = rehearse(CODE.replace("SHARE", "1.0"))
    layers = {"linear": {"kind": method.part("Linear"), "at": ["mlp@1"]}}
    method.sets(**{"model.layers": layers, "model.attention_dropout": 0.1})
    whole = method.is_exact(monkeypatch, judged=False)
    if recompute:
        assert numbers(method.run("again", recompute=True)) == numbers(whole), "a pass made again draws the same"
        return
    with pytest.raises(RefusedError, match="another layout"):
        _stopped_then(method, monkeypatch, Session(micro_batch_size=1))
    mine = method.folder / "mine.py"
    mine.write_text(mine.read_text().replace("* 1.0", "* 0.0"))
    silent = method.run("silent")
    text = method.recipe.read_text()
    method.recipe.write_text(text[: text.index('"model.layers"')] + text[text.index('"model.attention_dropout"') :])
    control = method.run("control")
    assert [x["loss_nats"] for x in numbers(silent)] == pytest.approx([x["loss_nats"] for x in numbers(control)], rel=1e-5), (
        "dropout's draws stay where they were"
    )
    assert numbers(silent)[0]["loss_nats"] != numbers(whole)[0]["loss_nats"]


def _stopped_then(method, monkeypatch, session):
    from seedbed.core.errors import InterruptedRunError
    from seedbed.experiments.run import run as module

    folder = method.folder / "stopped"
    module.create(method.plan(), folder, recipe_text="x")
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: True)
        module.execute(folder, say=lambda line: None)
    commands.resume(folder, say=lambda line: None, session=session)
