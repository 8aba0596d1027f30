"""Shared by all tests: one thread, small recipes, things that are made once for all of pytest's workers."""

import fcntl
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import torch._dynamo  # which the first optimizer imports: no case is charged for that

from tests.processes import plain_page

torch.set_num_threads(1)
pytest_plugins = ["tests.costs"]

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
  - {name: soil, stream: soil, budget: {steps: 6}, schedule: {kind: warmup, share: 1.0}}
  - name: text
    stream: text
    budget: {steps: 8}
    optimizer: adamw
    schedule: {kind: wsd}
    weights: {from: soil}
    embedding_std: 0.02
    evaluations: 2
evaluate:
  text: {kind: bits_per_byte, valid_bytes: 1k}
  rules: {kind: rule_inference, stage: soil, rows: 4}
samples: {prompts: ["a"], tokens: 4}
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


def write_corpus(folder: Path) -> Path:
    """A text file of about 12 kB in short paragraphs."""
    lines = [f"The {n}th paragraph speaks of {n * 7 % 13} apples and {n * 5 % 11} pears.\n\n" for n in range(220)]
    file = folder / "corpus.txt"
    file.write_text("".join(lines))
    return file


def write_recipe(folder: Path, corpus: Path) -> Path:
    """A study of two arms that trains in a second."""
    file = folder / "tiny.yaml"
    file.write_text(TINY.replace("CORPUS", str(corpus)))
    return file


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path, corpus: Path) -> Path:
    return write_recipe(tmp_path, corpus)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Give a function (name, build) that returns a folder which `build(folder)` filled, once for all of pytest's workers.

    Whoever is the first to need it builds it, the others wait; nobody changes it (copy what is to be changed).
    """
    from tests.costs import free

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)

    def built(name, build):
        folder, done = shared / name, shared / f"{name}.done"
        with free(), (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                build(folder)
                done.touch()
        return folder

    return built


@pytest.fixture(autouse=True)
def pages_are_plain(request, monkeypatch):
    """A run's and a study's page are drawn only in tests with the mark `pages`: that takes as long as a tiny run."""
    if request.node.get_closest_marker("pages") is None:
        from seedbed.experiments.run import run
        from seedbed.report import page

        monkeypatch.setattr(run, "_write_page", plain_page)
        monkeypatch.setattr(page, "write_study_page", plain_page)


@pytest.fixture
def runs_here(monkeypatch):
    """The runs of a study are computed one after the other in this process, which has imported torch already."""
    run_here(monkeypatch)
    yield
    torch.set_num_threads(1)


def run_here(patch):
    """As the fixture runs_here, for a scope of one's own."""
    from seedbed.experiments.run.layout import Session
    from seedbed.experiments.run.run import execute
    from seedbed.experiments.study import side_by_side

    class Ended:
        returncode = 0

        def poll(self):
            return 0

    def start(run, threads, track):
        (run / "worker.err").touch()
        execute(run, say=lambda line: None, session=Session(track=tuple(track)))
        return Ended()

    patch.setattr(side_by_side, "_start", start)
    patch.setattr(side_by_side, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture(scope="session")
def a_study(once):
    """A finished study of the tiny recipe, with its pages: recipe (tiny.yaml) and study folder (out). For reading only."""

    def build(folder):
        from seedbed.experiments.study.study import compare

        recipe = write_recipe(folder, write_corpus(folder))
        with pytest.MonkeyPatch.context() as patch:
            run_here(patch)
            compare(recipe, out=folder / "out", jobs=2, threads=1, say=lambda line: None, command="seedbed compare tiny.yaml")
        torch.set_num_threads(1)

    return once("a-study", build)


@pytest.fixture(scope="session")
def a_run(once):
    """A finished run of the tiny recipe's arm nca with seed 0, with its page: corpus, recipe and run folder (run). For reading
    only."""

    def build(folder):
        from seedbed.experiments import commands

        recipe = write_recipe(folder, write_corpus(folder))
        commands.run(recipe, out=folder / "run", arm="nca", threads=1, say=lambda line: None)

    return once("a-run", build)
