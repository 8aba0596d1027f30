"""An encoder that fills in withheld tokens, then the same weights as a causal model (masked pre-training): views and sight."""

import pytest

from seedbed.core.errors import ConfigError
from tests.rehearsal.inputs import numbers

CODE = """
from dataclasses import dataclass, replace

import numpy as np

from seedbed.core.draws import stream
from seedbed.core.protocols import View


@dataclass(frozen=True, kw_only=True)
class Masked(View):
    neutral = "what is not hidden is not asked"
    keeps_order = True
    spare = 1
    rate: float = 0.3

    def __call__(self, row, *, key, vocabulary, progress):
        tokens_T = row.tokens_T[:-1]
        hidden_T = stream(key.seed, key.stream, "masked", key.position).random(len(tokens_T)) < self.rate
        return replace(
            row,
            tokens_T=np.where(hidden_T, vocabulary.spare[0], tokens_T),
            targets_T=tokens_T,
            weights_T=hidden_T.astype(np.float32),
            documents_T=row.documents_T[:-1],
        )
"""


def _recipe(method, view):
    text = method.recipe.read_text()
    start, end = text.index("  - {name: text"), text.index("evaluate:")
    stage = text[start:end].replace("steps: 4", "steps: 2")
    encode = stage.replace("name: text", "name: encode").replace("stream: text", "stream: more")
    encode = encode.replace("evaluations", "model: {mask: bidirectional}, evaluations")
    stage = stage.replace("evaluations", "weights: {from: encode, fresh: [embedding, head]}, evaluations")
    text = (text[:start] + encode + stage + text[end:]).replace("batch_size: 2", f"batch_size: 4\n    views: [{view}]")
    method.recipe.write_text(text.replace("name: plain}", "name: plain, change: {without: encode, give_budget_to: text}}"))


def test_a_masked_encoder_and_then_a_causal_model(rehearse, monkeypatch):
    method = rehearse(CODE)
    _recipe(method, method.part("Masked"))
    whole = method.is_exact(monkeypatch, after=3)
    assert all(0 < line["loss_nats"] < 8 for line in numbers(whole))
    assert "watched" not in numbers(whole)[1], "what follows is no question to a model that sees it"
    assert "text" in numbers(whole)[3]["watched"]


def test_a_view_whose_answer_is_in_sight_is_refused(rehearse):
    method = rehearse(CODE)
    _recipe(method, "next_token")
    with pytest.raises(ConfigError, match=r"stages.encode: the model sees later positions, and the view streams.more.views.0 "):
        method.plan()


def test_a_study_whose_last_model_sees_the_answer_is_refused(rehearse):
    method = rehearse(CODE)
    views = {"streams.text.views": [method.part("Masked")], "model.mask": "bidirectional"}
    method.sets(**views)
    with pytest.raises(
        ConfigError, match=r"evaluate.text: it fits no stage of arm method \(stage text: the model sees later positions"
    ):
        method.is_exact(None)
