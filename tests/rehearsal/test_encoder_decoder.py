"""Rows with a source of their own (translation): parts of another length, padded, and a model that reads both."""

import pytest

from tests.rehearsal.inputs import HELD_OUT, STUDY, numbers

CODE = """
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from seedbed.core.draws import stream
from seedbed.core.protocols import ModelKind, Source
from seedbed.core.records import Batch, Cost, Role, Row
from seedbed.core.roles import role_of, with_role
from seedbed.models.outputs import Outputs
from seedbed.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    neutral = "made up"
    seq_len: int
    vocab_size = 12

    def size(self, split):
        return None

    def fingerprint(self):
        return "pairs"

    def rows(self, indices, *, seed, split):
        return [self._row(stream(seed, split, i)) for i in indices]

    def _row(self, draws):
        source = draws.integers(0, 10, int(draws.integers(2, 6)))
        target = np.concatenate([[10], source[::-1], [11]])
        return Row(tokens_T=target, weights_T=np.ones(len(target)), parts={"source": Row(tokens_T=source)})


class Both(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size
        settings = {"num_layers": 1, "d_model": 16, "num_heads": 2}
        self.encoder = Decoder(**settings, mask="bidirectional").build(vocab_size=vocab_size)
        self.decoder = Decoder(**settings).build(vocab_size=vocab_size)
        self.cross = with_role(nn.Linear(16, 16, bias=False), Role("memory", 0, "value"))
        self.roles = {name: role_of(self, name) for name, _ in self.named_parameters()}

    @property
    def blocks(self):
        return [*self.encoder.blocks, *self.decoder.blocks]

    def forward(self, batch, *, taps=(), plain=False):
        source = batch.parts["source"]
        memory = self.encoder(source).hidden_BTD
        if source.lengths_B is not None:
            there = torch.arange(memory.shape[1]) < source.lengths_B[:, None]
            memory = memory * there[..., None]
        added = self.cross(memory.sum(1, keepdim=True))
        read = self.decoder(batch)
        return Outputs(hidden_BTD=read.hidden_BTD + added, head=self.decoder.head)

    def cost(self, batch):
        source = batch.parts["source"] if batch.parts else Batch(tokens_BT=batch.tokens_BT)
        return self.encoder.cost(source) + self.decoder.cost(batch)

    def initialize(self, *, seed, stream="init", body_stream=None, embedding_std=None):
        self.encoder.initialize(seed=seed, stream="encoder")
        self.decoder.initialize(seed=seed, stream="decoder")
        with torch.no_grad():
            self.cross.weight.fill_(0.01)


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(ModelKind):
    neutral = "another model"
    layout_free, causal, width = True, True, 16

    def build(self, *, vocab_size):
        return Both(vocab_size)
"""

RECIPE = """
name: rehearsal
model: {kind: "MINE:EncoderDecoder"}
streams:
  pairs: {source: {kind: "MINE:Pairs"}, seq_len: 8, batch_size: 4}
stages:
  - {name: pairs, stream: pairs, budget: {steps: 4}, evaluations: 1}
"""


@pytest.mark.slow
def test_an_encoder_decoder(rehearse, monkeypatch):
    method = rehearse(CODE + HELD_OUT, RECIPE + STUDY).sets(
        **{"stages.pairs.optimizer": {"kind": "adamw", "learning_rate": 1e-2}}
    )
    whole = method.is_exact(monkeypatch)
    one = numbers(method.run("one", sets={"stages.pairs.micro_batch_size": 1}))
    assert [x["loss_nats"] for x in one] == pytest.approx([x["loss_nats"] for x in numbers(whole)], rel=1e-5), (
        "padding changes nothing"
    )
