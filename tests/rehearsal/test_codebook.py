"""An objective with a code book of its own, kept by averages (as wav2vec's and a codebook's): saved, resumed, handed on."""

from safetensors.torch import load_file

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

from seedbed.core.protocols import Objective
from seedbed.core.records import Loss


class Book(nn.Module):
    def __init__(self, width, codes, seed):
        super().__init__()
        self.project = nn.Linear(width, 4, bias=False)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.project.weight.copy_(torch.randn(4, width, generator=draws))
        self.register_buffer("codes", torch.randn(codes, 4, generator=draws))
        self.register_buffer("seen", torch.zeros(codes))
        self.pending = None

    def after_step(self, progress):
        sums, counts = self.pending
        self.seen += counts
        used = counts > 0
        self.codes[used] += 0.1 * (sums[used] / counts[used, None] - self.codes[used])


@dataclass(frozen=True, kw_only=True)
class Quantized(Objective):
    neutral = "it has a head of its own"
    layout_free = False
    taps = ("block.0",)
    codes: int = 8

    def build(self, model, *, seed):
        return Book(model.config.width, self.codes, seed)

    def count(self, batch):
        return float(batch.weights_BT.numel())

    def __call__(self, outputs, *, batch, context):
        book = context.own
        states_ND = book.project(outputs.taps["block.0"]).flatten(0, 1)
        noise = torch.rand(len(states_ND), generator=context.draws("negatives"))
        with torch.no_grad():
            nearest_N = torch.cdist(states_ND, book.codes).argmin(-1)
            sums = torch.zeros_like(book.codes).index_add(0, nearest_N, states_ND)
            book.pending = sums, torch.bincount(nearest_N, minlength=len(book.codes)).float()
        away_N = (states_ND - book.codes[nearest_N]).square().sum(-1)
        return Loss(sum_nats=(away_N * (0.5 + noise)).sum(), parts={"used": (book.pending[1] > 0).sum().float()})
"""


def test_an_objective_with_its_own_code_book(rehearse, monkeypatch):
    method = rehearse(CODE)
    text = method.recipe.read_text()
    start, end = text.index("  - {name: text"), text.index("evaluate:")
    stage = text[start:end].replace("steps: 4", "steps: 2")
    coded = f"objective: [tokens, {{kind: {method.part('Quantized')}, weight: 0.1}}]"
    two = stage.replace("name: text", "name: first").replace("evaluations", f"{coded}, evaluations") + stage.replace(
        "evaluations", f"{coded}, weights: {{from: first, fresh: [], keep: ['*']}}, evaluations"
    )
    change = "name: plain, change: {without: first, give_budget_to: text, stages.text.objective: [tokens]}}"
    method.recipe.write_text(text[:start] + two + text[end:].replace("name: plain}", change))
    whole = method.is_exact(monkeypatch, after=3)
    held = load_file(whole / "checkpoints/final/model.safetensors")
    assert float(held["objectives.Quantized.seen"].sum()) == 4 * 4 * 16, "counts of the first stage crossed the border"
    border = load_file(whole / "checkpoints/step-00000002/model.safetensors")
    assert float(border["objectives.Quantized.seen"].sum()) == 2 * 4 * 16
