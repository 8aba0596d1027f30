"""A pair of norms of which the second uses what the first measured (BHyT), and a value that changes after each step."""

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

from seedbed.models.layers.site import Layer


class First(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))
        self.scale = nn.Parameter(torch.empty(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def first_values(self, draws, *, std):
        self.gain.fill_(1.0)
        self.scale.fill_(0.5)
        self.steps.zero_()

    def after_step(self, progress):
        self.steps += 1

    def first(self, x):
        spread = x.square().mean(-1, keepdim=True)
        return torch.tanh(self.scale * x * (spread + 1e-6).rsqrt()) * self.gain, spread


class Second(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))
        self.sibling = [out]  # read, not owned

    def second(self, x, memo):
        growth = self.sibling[0].weight.square().mean()
        return x * (memo + growth + 1e-6).rsqrt() * self.gain


@dataclass(frozen=True, kw_only=True)
class Pair(Layer):
    neutral = "another normalization"
    sites, layout_free = ("block_norms",), True

    def build(self, site):
        width = site.sizes["d_model"]
        return nn.ModuleList([First(width), Second(width, site.siblings["attention"].out)])
"""


def test_a_norm_pair_that_hands_a_memo_on(rehearse, monkeypatch):
    from safetensors.torch import load_file

    method = rehearse(CODE)
    method.sets(**{"model.layers": {"block_norms": method.part("Pair")}})
    whole = method.is_exact(monkeypatch)
    held = load_file(whole / "checkpoints/final/model.safetensors")
    assert int(held["blocks.1.attention_norm.steps"]) == 4, "it was told of every step, across the resume too"
    assert abs(float(held["blocks.0.attention_norm.scale"]) - 0.5) < 0.1, "its first value is its own, not a gain's 1"
