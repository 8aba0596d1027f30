"""What a run must survive. `make test` kills a run 3 times, `make test-slow` 10, `make fault` 50 and a study 5 times."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from seedbed.core.durable import locked
from seedbed.core.errors import DataError, InterruptedRunError, RefusedError, RunFailedError, StoppedRunError
from seedbed.experiments import commands
from seedbed.experiments.inspection import as_text, inspect
from seedbed.experiments.plan.load import load
from seedbed.experiments.run.layout import Session
from seedbed.experiments.run.run import create, execute, finished
from seedbed.experiments.run.signals import Signals
from tests.conftest import write_corpus, write_recipe
from tests.experiments.test_run import _metrics, _run, _same
from tests.processes import ended, forked

KILLS = int(os.environ.get("SEEDBED_KILLS", "10"))
WORKER = "seedbed.experiments.run.worker"


def _quiet(line):
    return None


def _begun(recipe, folder, arm="nca", **settings):
    create(load(recipe, **settings).plan(arm=arm, seed=0, threads=1), folder, recipe_text="x")
    return folder


@pytest.fixture(scope="module")
def stopped(once):
    """A run that was stopped after step 10, checkpoints of steps 8 and 10 kept, and the same run undisturbed; to be copied."""

    def build(folder):
        recipe = write_recipe(folder, write_corpus(folder))
        with pytest.MonkeyPatch.context() as patch:
            _stopped(recipe, folder / "run", patch, after=10)
        _run(recipe, folder / "whole", sets={"checkpoint_every": 2})

    return once("stopped-run", build)


@pytest.mark.parametrize("wanted", [3, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_goes_on_to_the_uninterrupted_result(stopped, tmp_path, wanted):
    """Every second kill falls into a call that makes a file durable, before or after it; the others come at any time."""
    chance = random.Random(wanted)
    whole, recipe, sets = stopped / "whole", stopped / "tiny.yaml", {"checkpoint_every": 2}
    kills, runs = 0, 0
    while kills < wanted:
        folder = _begun(recipe, tmp_path / f"killed-{runs}", sets=sets)
        while kills < wanted and finished(folder) is None:
            if kills % 2:
                process = forked(WORKER, folder)
                lines = (folder / "metrics.jsonl").stat().st_size if (folder / "metrics.jsonl").exists() else 0
                begun = time.monotonic()
                while process.poll() is None and time.monotonic() - begun < 60:
                    if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size != lines:
                        break
                    time.sleep(0.005)
                time.sleep(chance.random() * 0.1)
                process.send_signal(signal.SIGKILL)
            else:
                process = forked("tests.experiments.kill_at", folder, KILL_AT=chance.randint(1, 120))
            kills += process.wait() == -signal.SIGKILL
        commands.resume(folder, say=_quiet)
        _same(whole, folder)
        assert not [p for p in (folder / "checkpoints").iterdir() if p.name.startswith((".", "damaged"))]
        shutil.rmtree(folder)
        runs += 1


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_a_killed_study_goes_on_to_the_same_numbers(a_study, tmp_path):
    whole, out = json.loads((a_study / "out/comparison.json").read_text()), tmp_path / "killed"
    for _ in range(max(1, KILLS // 10)):
        study = forked("tests.experiments.forking_study", "compare", a_study / "tiny.yaml", "--jobs", 2, "--out", out)
        before = {p: p.stat().st_size for p in out.glob("*/*/metrics.jsonl")}
        while study.poll() is None:
            if any(p.stat().st_size != before.get(p, 0) for p in out.glob("*/*/metrics.jsonl")):
                break
            time.sleep(0.01)
        study.send_signal(signal.SIGKILL)
        study.wait()
        begun = time.monotonic()
        while time.monotonic() - begun < 30 and _alive(out):
            time.sleep(0.02)  # workers notice that their study is gone, and stop
        assert not _alive(out), "no worker is left behind"
    again = commands.resume(out, jobs=2)
    assert again.data["contrasts"][0]["per_seed"] == whole["contrasts"][0]["per_seed"]


def _alive(out):
    pids = [int(p.read_text().split()[0]) for p in out.glob("*/*/.lock")]
    return [p for p in pids if Path(f"/proc/{p}").exists() and p != os.getpid()]


def _stopped(recipe, folder, monkeypatch, *, after, sets=None):
    """A run that a signal stopped after so many steps; checkpoints every 2 steps, the last 2 kept."""
    _begun(recipe, folder, sets={"checkpoint_every": 2, **(sets or {})})
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: next(calls) == after)
        execute(folder, say=_quiet)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_harmed_checkpoint_is_named_and_the_one_before_is_used(stopped, tmp_path, name, harm):
    folder = shutil.copytree(stopped / "run", tmp_path / "run")
    file = folder / "checkpoints/step-00000010" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(raw if harm == "flip" else raw[: len(raw) // 2])
    said = []
    commands.resume(folder, say=said.append)
    assert any("step-00000010" in line and "going back to the one before" in line for line in said)
    assert any("going on after step 8" in line for line in said)
    assert (folder / "checkpoints/damaged-step-00000010").is_dir(), "kept for whoever looks into it"
    _same(stopped / "whole", folder)


def test_without_any_whole_checkpoint_a_run_says_so_before_it_begins_again(recipe, tmp_path, monkeypatch):
    whole = _run(recipe, tmp_path / "whole", arm="scratch").folder
    folder = _begun(recipe, tmp_path / "run", arm="scratch")
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: True)
        execute(folder, say=_quiet)
    (folder / "checkpoints/step-00000001/state.json").write_text("{")
    with pytest.raises(DataError, match="no whole checkpoint is left.*resume once more to begin with the first step"):
        commands.resume(folder, say=_quiet)
    said = []
    commands.resume(folder, say=said.append)
    assert any("beginning with the first step" in line for line in said)
    assert _metrics(folder) == _metrics(whole)


def test_the_last_checkpoints_and_every_so_many_are_kept(recipe, tmp_path, monkeypatch):
    folder = _stopped(recipe, tmp_path / "run", monkeypatch, after=13, sets={"keep_last": 3, "keep_every": 5})
    kept = sorted(int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").iterdir())
    assert kept == [5, 6, 10, 12, 13], "the last three are 10, 12 and 13; 5 and 10 are kept for good; 6 gave its weights"
    commands.resume(folder, say=_quiet)
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["final", "step-00000005", "step-00000006", "step-00000010"]


def test_a_second_process_is_refused_and_a_stale_lock_is_no_hindrance(recipe, tmp_path):
    folder = _begun(recipe, tmp_path / "run", arm="scratch")
    (folder / ".lock").write_text("999999999")  # of a process that is gone
    with locked(folder):
        (code,), said = ended([forked(WORKER, folder)])
    assert code == RefusedError.exit_code and f"is being written by process {os.getpid()}" in said
    assert commands.resume(folder, say=_quiet).final["status"] == "done"


def _children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_data_workers_end_with_their_run_and_a_killed_one_is_named(recipe, tmp_path):
    folder = tmp_path / "run"
    plan = load(recipe, sets={"stages.soil.budget.steps": 100_000}).plan(arm="nca", seed=0, threads=1, data_workers=2)
    create(plan, folder, recipe_text="x")
    for victim in ("run", "worker"):
        run = forked(WORKER, folder)
        lines = (folder / "metrics.jsonl").stat().st_size if (folder / "metrics.jsonl").exists() else 0
        while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").stat().st_size in (0, lines):
            assert run.poll() is None, run.communicate()
            time.sleep(0.02)
        workers = [p for p in _children(run.pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
        assert len(workers) >= 1
        os.kill(run.pid if victim == "run" else workers[0], signal.SIGKILL)
        _, said = run.communicate()
        begun = time.monotonic()
        while time.monotonic() - begun < 20 and any(Path(f"/proc/{p}").exists() for p in workers):
            time.sleep(0.05)
        assert not any(Path(f"/proc/{p}").exists() for p in workers), "none is left behind"
        if victim == "worker":
            assert run.returncode == StoppedRunError.exit_code and "a data worker was killed" in said
    assert finished(folder) is None, "a killed worker says nothing about the method"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_data_workers_changes_nothing(recipe, tmp_path, monkeypatch, workers):
    """Also when it changes between two sessions."""
    whole = _run(recipe, tmp_path / "whole").folder
    folder = tmp_path / "run"
    create(load(recipe).plan(arm="nca", seed=0, threads=1, data_workers=workers), folder, recipe_text="x")
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Signals, "stopped", lambda self: next(calls) == 9)
        execute(folder, say=_quiet)
    commands.resume(folder, say=_quiet, session=Session(data_workers=2 - workers))
    _same(whole, folder)


def test_the_bad_step_is_named_and_can_be_looked_at(recipe, tmp_path):
    text = recipe.read_text().replace("schedule: {kind: wsd}", "schedule: {kind: wsd}\n    clip_norm: null")
    recipe.write_text(text)
    with pytest.raises(RunFailedError, match=r"seedbed inspect RUN --step \d+") as failure:
        _run(recipe, tmp_path / "run", arm="scratch", sets={"model.init_std": 1e18})
    assert "first in the gradient of" in str(failure.value) or "first in the weights of" in str(failure.value)
    step = finished(tmp_path / "run")["run_step"]
    shown = inspect(tmp_path / "run", step=step)
    assert shown.step == step and len(shown.rows) == 4
    assert "the run failed at this step" in as_text(shown)


def test_a_failure_stays_on_record_where_going_on_is_refused(recipe, corpus, tmp_path):
    with pytest.raises(RunFailedError):
        _run(recipe, tmp_path / "run", arm="scratch", sets={"model.init_std": 1e18, "stages.text.clip_norm": None})
    corpus.unlink()
    with pytest.raises(DataError, match="corpus"):
        commands.resume(tmp_path / "run", say=_quiet)
    assert finished(tmp_path / "run")["status"] == "failed"


def test_a_leaping_loss_is_recorded_said_and_kept_over_a_resume(tmp_path):
    from seedbed.experiments.run.journal import Metrics

    def line(step, loss, norm=1.0):
        return {
            "stage": "text",
            "step": step,
            "run_step": step,
            "tokens": 32 * step,
            "loss_nats": loss,
            "learning_rate": 1e-3,
            "gradient_norm": norm,
            "data_seconds": 0.0,
            "seconds": 0.1,
        }

    said = []
    metrics = Metrics(tmp_path / "metrics.jsonl", keep=0, say=said.append)
    for step in range(1, 31):
        metrics(line(step, 4.0 + 0.01 * (step % 3)))
    assert metrics.spikes == []
    metrics(line(31, 5.0))
    metrics(line(32, 4.0, norm=11.0))
    assert [s["run_step"] for s in metrics.spikes] == [31, 32]
    assert any("loss_nats leapt to 5 at step 31" in x and "inspect RUN --step 31" in x for x in said)
    metrics.close()
    again = Metrics(tmp_path / "metrics.jsonl", keep=31, say=said.append)
    assert [s["run_step"] for s in again.spikes] == [31]
    again(line(32, 4.0, norm=11.0))
    assert [s["run_step"] for s in again.spikes] == [31, 32], "what is before a step is read from the file"
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "spikes" not in lines[29] and lines[30]["spikes"]["loss_nats"]["usual"] == pytest.approx(4.01, abs=1e-3)
