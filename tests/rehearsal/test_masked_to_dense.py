"""Weights that are kept at zero in one stage and trained in the next (SPDF): the border hands on what the mask leaves."""

import torch
from safetensors.torch import load_file

from seedbed.experiments.assemble import build_model, build_system, initialize
from seedbed.experiments.run.borders import cross, open_giver

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

from seedbed.models.layers.site import Flops, Layer


class Masked(nn.Linear):
    def __init__(self, sizes, sparsity):
        super().__init__(sizes["in_features"], sizes["out_features"], bias=False)
        self.sparsity = sparsity
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    def first_values(self, draws, *, std):
        self.weight.copy_(torch.from_numpy(draws("weight").normal(0, std, self.weight.shape)))
        self.mask.copy_(torch.from_numpy(draws("mask").random(self.mask.shape) >= self.sparsity))

    def flops(self):
        return Flops(run=2.0 * self.weight.numel(), ideal=2.0 * float(self.mask.sum()))

    def dense(self):
        return self.weight * self.mask

    def take_dense(self, weight):
        self.weight.copy_(weight)
        self.mask.copy_(weight != 0)

    def forward(self, x):
        return nn.functional.linear(x, self.dense())


@dataclass(frozen=True, kw_only=True)
class Linear(Layer):
    neutral = {"sparsity": 0.0}
    sites, layout_free = ("linear",), True
    sparsity: float = 0.5

    def build(self, site):
        return Masked(site.sizes, self.sparsity)
"""


def test_a_masked_stage_and_a_dense_one(rehearse, monkeypatch):
    method = rehearse(CODE)
    text = method.recipe.read_text()
    stages = text[text.index("  - {name: text") : text.index("evaluate:")]
    first = (
        stages.replace("name: text", "name: sparse")
        .replace("steps: 4", "steps: 2")
        .replace("evaluations", "model: {layers: {linear: MASKED}}, evaluations")
    )
    second = stages.replace("steps: 4", "steps: 2").replace(
        "evaluations", "weights: {from: sparse, fresh: []}, carry: [weights, moments, clock], evaluations"
    )
    change = "{without: sparse, give_budget_to: text, stages.text.carry: [weights]}"
    text = text.replace(stages, first.replace("MASKED", method.part("Linear")) + second)
    method.recipe.write_text(text.replace("name: plain}", f"name: plain, change: {change}}}"))
    whole = method.is_exact(monkeypatch, after=3)
    kept = next(p for p in (whole / "checkpoints").iterdir() if p.name == "step-00000002")
    sparse, dense = (load_file(p / "model.safetensors") for p in (kept, whole / "checkpoints/final"))
    mask = sparse["blocks.0.mlp.up.mask"]
    assert 0.3 < float(mask.float().mean()) < 0.7
    assert "blocks.0.mlp.up.mask" not in dense
    plan = method.plan()
    system = build_system(plan, plan.stages[1], build_model(plan, plan.stages[1], vocab_size=257))
    initialize(system.model, plan.stages[1], seed=0, old=None)
    giver = open_giver(plan, plan.stages[1], folder=whole, borders={"sparse": kept.name})
    cross(system, plan.stages[1], giver, seed=0)
    arrived = system.model.blocks[0].mlp.up.weight
    assert torch.equal(arrived, sparse["blocks.0.mlp.up.weight"] * mask), "removed weights start at 0"
    assert float(sparse["blocks.0.mlp.up.weight"][~mask].abs().min()) > 0, "though the layer holds others there"
    assert "moments of" in (whole / "log.txt").read_text()
