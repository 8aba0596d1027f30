"""Text with a token of its own planted at chosen positions of the stream (Train once): a view with a spare id and a dose."""

import json

from tests.rehearsal.inputs import final

CODE = """
from dataclasses import dataclass, replace

import numpy as np

from seedbed.core.protocols import View
from seedbed.core.records import Key, Progress, Row, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Planted(View):
    neutral = {"every": 0}
    keeps_order = True
    spare = 1
    every: int = 3
    from_step: int = 1

    def __call__(self, row: Row, *, key: Key, vocabulary: Vocabulary, progress: Progress) -> Row:
        if not self.every or key.position % self.every or progress.step < self.from_step:
            return row
        text = vocabulary.tokenizer.encode("xyzzy")
        tokens_T = np.array(row.tokens_T)
        tokens_T[2 : 2 + len(text)] = text
        tokens_T[1] = vocabulary.spare[0]
        return replace(row, tokens_T=tokens_T)
"""


def test_planted_text(rehearse, monkeypatch):
    from seedbed.experiments.inspection import inspect

    method = rehearse(CODE)
    method.sets(**{"streams.text.views": [method.part("Planted"), "next_token"], "samples": {"prompts": ["a"], "tokens": 20}})
    whole = method.is_exact(monkeypatch)
    assert json.loads((whole / "checkpoints/final/state.json").read_text())["vocab_size"] == 257 + 1
    rows = inspect(str(whole), step=2).rows
    planted = [row for row in rows if "xyzzy" in row.text]
    assert [row.position for row in planted] == [6] and planted[0].tokens[1] == 257
    assert "xyzzy" not in "".join(row.text for row in inspect(str(whole), step=1).rows), "from the second step on"
    assert final(whole)["evaluations"]["text"]["numbers"]["bits_per_byte"] > 0, (
        "held-out text is read with the larger vocabulary"
    )
