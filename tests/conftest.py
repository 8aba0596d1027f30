"""Shared by all tests: one thread, small recipes, a finished small run."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"  # larger data sets, on machines that have them

TINY = """
name: tiny
model: {kind: decoder, num_layers: 2, d_model: 32, num_heads: 2}
streams:
  soil:
    source: {kind: nca, states: 2, grid: 4, patch: 2}
    seq_len: 32
    batch_size: 4
  text:
    source: {kind: text, path: "CORPUS", section_bytes: 400, valid_share: 0.1, test_share: 0.1}
    tokenizer: bytes
    seq_len: 32
    batch_size: 4
stages:
  - {name: soil, stream: soil, budget: {steps: 6}, schedule: {kind: warmup, share: 1.0}, floor_rows: 4}
  - name: text
    stream: text
    budget: {steps: 8}
    optimizer: adamw
    schedule: {kind: wsd}
    weights: {from: soil}
    embedding_std: 0.02
    evaluations: 2
evaluate: {valid_bytes: 1k, samples: ["a"], sample_tokens: 4}
checkpoint_every: 5
study:
  control: {name: scratch, change: {without: soil}}
  arms: {nca: {}}
  seeds: 0-1
  published_nats: 0.06
tune:
  seeds: [1000]
  grids:
    scratch: {stages.text.optimizer.learning_rate: [1e-3, 3e-3]}
    nca: {stages.text.optimizer.learning_rate: [1e-3, 3e-3]}
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text file of about 12 kB in short paragraphs."""
    lines = [f"The {n}th paragraph speaks of {n * 7 % 13} apples and {n * 5 % 11} pears.\n\n" for n in range(220)]
    file = tmp_path / "corpus.txt"
    file.write_text("".join(lines))
    return file


@pytest.fixture
def recipe(tmp_path: Path, corpus: Path) -> Path:
    """A study of two arms that trains in a second."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace("CORPUS", str(corpus)))
    return file


@pytest.fixture
def runs_here(monkeypatch):
    """The runs of a study are computed one after the other in this process, which has imported torch already."""
    from seedbed.experiments import study
    from seedbed.experiments.run import Sitting, execute

    class Ended:
        returncode = 0

        def poll(self):
            return 0

    def start(run, threads, track):
        (run / "worker.err").touch()
        execute(run, say=lambda line: None, sitting=Sitting(track=tuple(track)))
        return Ended()

    monkeypatch.setattr(study, "_start", start)
    yield
    torch.set_num_threads(1)
