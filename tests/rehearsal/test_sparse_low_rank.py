"""A linear of a low-rank and a sparse part (SLTrain): own first values, own cost, dense wherever another form meets it."""

import json

import torch
from safetensors.torch import load_file

from seedbed.core.records import Batch, blank
from seedbed.experiments import commands
from seedbed.models.forms import dense_twin

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

from seedbed.core.protocols import Neutral
from seedbed.models.layers.site import Flops, Layer


class LowRankAndSparse(nn.Module):
    def __init__(self, n_in, n_out, rank, kept):
        super().__init__()
        self.A, self.B = nn.Parameter(torch.empty(rank, n_in)), nn.Parameter(torch.empty(n_out, rank))
        self.values = nn.Parameter(torch.empty(kept))
        self.register_buffer("places", torch.empty(kept, dtype=torch.int32))

    def first_values(self, draws, *, std):
        self.B.zero_()
        self.A.copy_(torch.from_numpy(draws("A").uniform(-std, std, self.A.shape)))
        self.values.copy_(torch.from_numpy(draws("values").normal(0, std, self.values.shape)))
        cells = len(self.B) * self.A.shape[1]
        self.places.copy_(torch.from_numpy(draws("places").choice(cells, len(self.places), replace=False)))

    def flops(self):
        dense = 2.0 * len(self.B) * self.A.shape[1]
        factors = 2.0 * (self.A.numel() + self.B.numel())
        return Flops(run=dense + factors * len(self.A), ideal=factors + 2.0 * len(self.values))

    def dense(self):
        sparse = torch.zeros(len(self.B) * self.A.shape[1]).index_put((self.places.long(),), self.values)
        return self.B @ self.A + sparse.view(len(self.B), -1)

    def take_dense(self, weight):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        rank = len(self.A)
        self.B.copy_(u[:, :rank] * s[:rank])
        self.A.copy_(v[:rank])
        self.values.copy_((weight - self.B @ self.A).flatten()[self.places.long()])

    def forward(self, x):
        return x @ self.dense().t()


@dataclass(frozen=True, kw_only=True)
class Linear(Layer):
    neutral = "another parameterization"
    sites, layout_free = ("linear",), True
    rank: int = 2
    density: float = 0.05

    def build(self, site):
        n_in, n_out = site.sizes["in_features"], site.sizes["out_features"]
        return LowRankAndSparse(n_in, n_out, self.rank, round(self.density * n_in * n_out))
"""


def test_a_sparse_low_rank_linear(rehearse, monkeypatch):
    method = rehearse(CODE)
    method.sets(**{"model.layers": {"linear": {"kind": method.part("Linear"), "at": ["mlp", "attention.value@1"]}}})
    whole = method.is_exact(monkeypatch)
    state = json.loads((whole / "checkpoints/final/state.json").read_text())
    held = load_file(whole / "checkpoints/final/model.safetensors")
    assert state["roles"]["blocks.0.mlp.up.places"] == ["mlp", 0, "up.places"]
    assert state["roles"]["blocks.1.attention.value.A"] == ["attention", 1, "value.A"]
    assert "blocks.0.attention.value.weight" in held, "where `at` does not match, a plain linear stands"

    again = method.run("seed-1", seed=1)
    one, other = (load_file(run / "checkpoints/final/model.safetensors")["blocks.0.mlp.up.places"] for run in (whole, again))
    assert not torch.equal(one, other), "the support is a function of the seed"
    model = commands.open_run(whole, device="cpu").model
    twin = dense_twin(model)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(twin(Batch(tokens_BT=ids)).logits(), model(Batch(tokens_BT=ids)).logits())
    cost, dense = model.cost(blank(rows=1, seq_len=16)), twin.cost(blank(rows=1, seq_len=16))
    assert cost.flops_ideal < dense.flops_run < cost.flops_run, "what is made, and what would be enough"
