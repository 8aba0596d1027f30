"""Micro-batches, ranks and threads: what they may change (rounding), and what a resume does about it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from seedbed.core.errors import InterruptedRunError, RefusedError
from seedbed.engine.checkpoints import load_weights, read_state
from seedbed.experiments import commands
from seedbed.experiments.plan.load import load
from seedbed.experiments.plan.run_plan import read_plan
from seedbed.experiments.run.layout import Session
from seedbed.experiments.run.run import create, execute, finished
from seedbed.experiments.run.signals import Signals
from seedbed.experiments.run.stages import whole_system
from tests.experiments.test_run import _metrics, _run
from tests.processes import ended, ranks

BOUND = 1e-5  # relative, on every loss of 14 steps in float32: 80 times the spacing of its numbers
DROPOUT = {"model.attention_dropout": 0.1}


def _quiet(line):
    return None


def _bits(folder):
    return finished(folder)["evaluations"]["text"]["numbers"]["bits_per_byte"]


def _losses(folder):
    return [line["loss_nats"] for line in _metrics(folder)]


def _stopped(recipe, folder, monkeypatch, *, sets=None, threads=1, after=3):
    create(load(recipe, sets=sets).plan(arm="nca", seed=0, threads=threads), folder, recipe_text="x")
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: next(calls) == after)
        execute(folder, say=_quiet)
    return folder


@pytest.mark.parametrize("size", [1, 3])
def test_another_micro_batch_on_resume_changes_a_layout_free_run_by_rounding_only(a_run, tmp_path, monkeypatch, size):
    whole = a_run / "run"
    folder = _stopped(a_run / "tiny.yaml", tmp_path / "run", monkeypatch)
    said = []
    commands.resume(folder, say=said.append, session=Session(micro_batch_size=size))
    assert any("layout-free, so it goes on the same but for rounding" in line for line in said)
    assert _losses(folder) == pytest.approx(_losses(whole), rel=BOUND)
    assert _losses(folder)[:3] == _losses(whole)[:3]
    layout = read_state(folder / "checkpoints/final")["layout"]
    assert layout == {"threads": 1, "micro_batch_size": {"soil": size, "text": size}, "ranks": 1}


def test_a_resume_reuses_the_layout_it_finds(recipe, tmp_path, monkeypatch):
    """Also when the layout itself was changed on the way: the newest checkpoint's holds."""
    folder = _stopped(recipe, tmp_path / "run", monkeypatch)
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: next(calls) == 2)
        execute(folder, say=_quiet, session=Session(micro_batch_size=2))
    said = []
    commands.resume(folder, say=said.append)
    assert not any("layout" in line for line in said)
    assert read_state(folder / "checkpoints/final")["layout"]["micro_batch_size"] == {"soil": 2, "text": 2}


@pytest.mark.parametrize(
    "session",
    [
        pytest.param(Session(micro_batch_size=1), id="micro-batch"),
        pytest.param(Session(threads=2), id="threads", marks=pytest.mark.slow),  # which wait for each other
    ],
)
def test_where_draws_hang_on_the_layout_another_one_needs_a_word(recipe, tmp_path, monkeypatch, session):
    from dataclasses import replace

    few = {"stages.soil.budget.steps": 4, "stages.text.budget.steps": 2}
    folder = _stopped(recipe, tmp_path / "run", monkeypatch, sets=DROPOUT | few)
    with pytest.raises(RefusedError, match="another layout than the checkpoint's.*--inexact"):
        commands.resume(folder, say=_quiet, session=session)
    assert finished(folder) is None
    said = []
    commands.resume(folder, say=said.append, session=replace(session, inexact=True))
    assert any("will not be that of an undisturbed run" in line for line in said)


def test_where_draws_hang_on_the_layout_micro_batches_do_change_the_loss(recipe, tmp_path):
    """So the refusal is not for nothing."""
    one, four = (_run(recipe, tmp_path / str(n), sets={**DROPOUT, "stages.text.micro_batch_size": n}).folder for n in (1, 4))
    text = [[x["loss_nats"] for x in _metrics(f) if x["stage"] == "text"] for f in (one, four)]
    assert text[0][0] != pytest.approx(text[1][0], rel=BOUND)


def _run_by_ranks(number, recipe, out, *words, module="seedbed", **environment):
    return ranks(number, module, "run", recipe, "--arm", "nca", "--threads", 1, "--out", out, *words, **environment)


def _two_are_as_one(two, whole, said):
    assert _losses(two) == pytest.approx(_losses(whole), rel=BOUND)
    assert _bits(two) == pytest.approx(_bits(whole), rel=1e-4)
    for stage in ("soil", "text"):
        one, other = (finished(f)["ledger"][stage] for f in (whole, two))
        assert other["tokens"] == one["tokens"]
        assert other["train"]["flops_run"] == pytest.approx(one["train"]["flops_run"])
    assert said.count("stage text: 8 steps") == 1, "one rank speaks"


def test_two_ranks_change_a_run_by_rounding_only(a_run, tmp_path):
    codes, said = ended(_run_by_ranks(2, a_run / "tiny.yaml", tmp_path / "two"))
    assert codes == [0, 0], said
    _two_are_as_one(tmp_path / "two", a_run / "run", said)


@pytest.mark.slow
def test_two_ranks_that_torchrun_starts_are_as_one(a_run, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seedbed", "run"]
    words = [str(a_run / "tiny.yaml"), "--arm", "nca", "--threads", "1", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    _two_are_as_one(tmp_path / "two", a_run / "run", done.stdout)


def test_one_rank_goes_on_from_two_of_which_one_was_killed(recipe, tmp_path):
    folder = tmp_path / "killed"
    sets = ["--set", "stages.text.budget.steps=2000", "--set", "checkpoint_every=3"]
    both = _run_by_ranks(2, recipe, folder, *sets)
    while not list((folder / "checkpoints").glob("step-000000[2-9]*")):
        assert both[0].poll() is None, both[0].communicate()
        time.sleep(0.01)
    both[1].send_signal(signal.SIGKILL)
    codes, _ = ended(both)
    assert codes[0] not in (0, None) and finished(folder) is None
    lines = []
    calls = iter(range(1, 100))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: next(calls) == 5)
        execute(folder, say=lines.append)
    assert any("ranks 2 -> 1" in line and "layout-free" in line for line in lines)
    steps = [json.loads(x)["run_step"] for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_split_run_that_lost_a_rank_goes_on_over_four_ranks_and_over_one(a_run, tmp_path):
    """Weights and moments split over two ranks; the second is killed after step 12."""
    folder, lost = tmp_path / "split", "tests.experiments.lost_rank"
    words = ["--shard", "all", "--set", "checkpoint_every=2"]
    codes, said = ended(_run_by_ranks(2, a_run / "tiny.yaml", folder, *words, module=lost, LOST_AFTER=12))
    assert codes[0] != 0 and finished(folder) is None
    assert "another rank of this run ended" in said and "seedbed resume" in said
    steps = sorted(p.name for p in (folder / "checkpoints").iterdir() if not p.name.startswith("."))
    assert steps[-1] >= "step-00000006" and list((folder / "checkpoints" / steps[-1]).glob("shard-00002-*"))
    shutil.copytree(folder, tmp_path / "four", ignore=shutil.ignore_patterns(".lock"))

    codes, said = ended(ranks(4, "seedbed", "resume", tmp_path / "four", "--shard", 2))
    assert codes == [0] * 4 and "ranks 2 -> 4" in said and "weights split over 2" in said, said
    lines = []
    execute(folder, say=lines.append)
    assert any("ranks 2 -> 1" in line and "layout-free" in line for line in lines)
    whole = a_run / "run"
    for found in (folder, tmp_path / "four"):
        assert _losses(found) == pytest.approx(_losses(whole), rel=BOUND)
        assert _bits(found) == pytest.approx(_bits(whole), rel=1e-4)
        assert finished(found)["ledger"]["text"]["tokens"] == finished(whole)["ledger"]["text"]["tokens"]
    model = whole_system(read_plan(tmp_path / "four"), tmp_path / "four", vocab_size=257)
    final = load_weights(tmp_path / "four/checkpoints/final")  # in parts, and under its last name
    assert all(torch.equal(final[name], p) for name, p in model.named_parameters())


def test_rows_that_cannot_be_shared_out_evenly_are_refused(recipe, tmp_path):
    codes, said = ended(ranks(3, "seedbed", "run", recipe, "--arm", "scratch", "--threads", 1, "--out", tmp_path / "run"))
    assert 0 not in codes and "batch_size 4 cannot be shared out evenly to 3 ranks" in said
