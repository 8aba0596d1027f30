"""Graphs, joined to one batch (pre-training of graph networks): a source, a model and an objective of one's own."""

import pytest

from tests.rehearsal.inputs import HELD_OUT, STUDY, final, numbers

CODE = """
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from seedbed.core.draws import stream
from seedbed.core.protocols import ModelKind, Objective, Source, View
from seedbed.core.records import Cost, Graph, Loss, Role, Row
from seedbed.core.roles import role_of, with_role
from seedbed.models.outputs import Outputs


@dataclass(frozen=True, kw_only=True)
class Molecules(Source):
    neutral = "made up"
    seq_len: int
    vocab_size = 5

    def size(self, split):
        return None

    def fingerprint(self):
        return "molecules"

    def rows(self, indices, *, seed, split):
        return [self._row(stream(seed, split, i)) for i in indices]

    def _row(self, draws):
        n = int(draws.integers(3, 8))
        tokens = draws.integers(0, 4, n)
        edges = np.stack([np.arange(n - 1), np.arange(1, n)])
        graph = Graph(edges_2E=np.concatenate([edges, edges[::-1]], 1), edge_features_EF=np.ones((2 * n - 2, 2)))
        label = {"toxic": float(tokens.sum() % 2), "assay": np.array([np.nan, tokens.mean()])}
        return Row(tokens_T=tokens, graph=graph, labels=label, cost=Cost())


@dataclass(frozen=True, kw_only=True)
class HiddenNodes(View):
    neutral = "what is not hidden is not asked"
    keeps_order = True

    def __call__(self, row, *, key, vocabulary, progress):
        from dataclasses import replace

        hidden = stream(key.seed, "hidden", key.position).random(row.length) < 0.4
        return replace(row, tokens_T=np.where(hidden, 4, row.tokens_T), targets_T=row.tokens_T, weights_T=hidden * 1.0)


class Net(nn.Module):
    def __init__(self, vocab_size, width):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = with_role(nn.Embedding(vocab_size, width), Role("embedding"))
        self.blocks = nn.ModuleList(with_role(nn.Linear(width, width, bias=False), Role("mlp", i, "up")) for i in range(2))
        self.head = with_role(nn.Linear(width, vocab_size, bias=False), Role("head"))
        self.roles = {name: role_of(self, name) for name, _ in self.named_parameters()}

    def forward(self, batch, *, taps=(), plain=False):
        states = self.embedding(batch.tokens_BT)[0]
        start, end = batch.graph.edges_2E
        for block in self.blocks:
            states = states + torch.relu(block(torch.zeros_like(states).index_add(0, end, states[start])))
        return Outputs(hidden_BTD=states[None], head=self.head)

    def cost(self, batch):
        flops = 2.0 * batch.size.positions * sum(p.numel() for p in self.blocks.parameters())
        return Cost(positions=batch.size.positions, flops_run=flops, flops_ideal=flops)

    @torch.no_grad()
    def initialize(self, *, seed, stream="init", body_stream=None, embedding_std=None):
        draws = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.copy_(torch.randn(p.shape, generator=draws) * 0.1)


@dataclass(frozen=True, kw_only=True)
class GraphNet(ModelKind):
    neutral = "another model"
    layout_free, causal, width = True, False, 16

    def build(self, *, vocab_size):
        return Net(vocab_size, self.width)


@dataclass(frozen=True, kw_only=True)
class Property(Objective):
    neutral = "it has a head of its own"
    layout_free = True

    def build(self, model, *, seed):
        head = nn.Linear(16, 1)
        with torch.no_grad():
            for p in head.parameters():
                p.fill_(0.01)
        return head

    def count(self, batch):
        return float(batch.size.rows)

    def __call__(self, outputs, *, batch, context):
        pooled = torch.zeros(batch.graphs, 16).index_add(0, batch.graph.graph_of_T, outputs.hidden_BTD[0])
        logits = context.own(pooled)[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels["toxic"], reduction="sum")
        assert batch.labels["assay"].shape == (batch.graphs, 2)
        return Loss(sum_nats=loss, parts={"right": ((logits > 0) == (batch.labels["toxic"] > 0)).float().sum()})
"""

RECIPE = """
name: rehearsal
model: {kind: "MINE:GraphNet"}
streams:
  graphs: {source: {kind: "MINE:Molecules"}, views: ["MINE:HiddenNodes"], seq_len: 8, batch_size: 4}
stages:
  - name: graphs
    stream: graphs
    budget: {steps: 4}
    objective: [tokens, {kind: "MINE:Property", weight: 0.5}]
    evaluations: 1
"""


def test_a_graph_network(rehearse, monkeypatch):
    method = rehearse(CODE + HELD_OUT, RECIPE + STUDY).sets(
        **{"stages.graphs.optimizer": {"kind": "adamw", "learning_rate": 1e-2}}
    )
    whole = method.is_exact(monkeypatch)
    lines = numbers(whole)
    assert lines[-1]["tokens"] == final(whole)["ledger"]["graphs"]["train"]["positions"], "nodes, and no padding"
    assert 0 <= lines[0]["parts"]["Property.right"] <= 1
    cut = numbers(method.run("cut", sets={"stages.graphs.micro_batch_size": 1}))
    assert [x["loss_nats"] for x in cut] == pytest.approx([x["loss_nats"] for x in lines], rel=1e-5), "a graph is never cut"
