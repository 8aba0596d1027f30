"""Many runs side by side, each in a process of its own; one that fails leaves the others going, a signal stops them all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.core.errors import ConfigError, DataError, InterruptedRunError, RefusedError, RunFailedError, SeedbedError
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.run.run import finished
from seedbed.experiments.run.signals import PARENT, STOPPING


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where one run of a study stands, for whoever shows it. `state`: waiting, running, done or failed."""

    arm: str
    seed: int
    state: str
    stage: str = ""
    step: int = 0
    steps_done: int = 0
    loss_nats: float | None = None


def run_all(
    folder: Path,
    plans: Mapping[tuple[str, int], RunPlan],
    *,
    jobs: int,
    threads: int,
    watch: Callable[[list[RunStatus]], None],
    track: Sequence[str] = (),
) -> None:
    """Run what has not ended, the longest first, at most `jobs` at a time, each in a process of its own."""
    order = sorted(plans, key=lambda k: -plans[k].tokens())
    waiting = [k for k in order if finished(folder / k[0] / f"seed-{k[1]}") is None]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    told: set[tuple[str, int]] = set()
    stopping = False

    def want_stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    old = {}
    with suppress(ValueError):
        heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        old = {number: signal.signal(number, want_stop) for number in heard}
    problems: list[SeedbedError] = []
    try:
        while running or (waiting and not stopping and not problems):
            while waiting and len(running) < jobs and not stopping and not problems:
                arm, seed = waiting.pop(0)
                running[arm, seed] = _start(folder / arm / f"seed-{seed}", threads, track)
            time.sleep(0.2)
            for k in [k for k, process in running.items() if process.poll() is not None]:
                problem = _ended(folder / k[0] / f"seed-{k[1]}", running.pop(k).returncode, stopping=stopping)
                if problem is not None:
                    problems.append(problem)
            if stopping or problems:
                for k in running.keys() - told:
                    running[k].send_signal(signal.SIGTERM)
                    told.add(k)
            with suppress(OSError):  # of whoever looks on
                watch([_status(folder, k, plans[k], running) for k in order])
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for number, handler in old.items():
            signal.signal(number, handler)
    if problems:
        raise problems[0]
    if stopping:
        raise InterruptedRunError(f"stopped; every run has saved a checkpoint, `seedbed resume {folder}` goes on")


def _start(run: Path, threads: int, track: Sequence[str]) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, PARENT: str(os.getpid()), "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    with (run / "worker.err").open("wb") as errors:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "seedbed.experiments.run.worker",
                str(run),
                *track,
            ],  # -P: nothing of the folder one is in
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches the study, which tells its runs
        )


def _ended(run: Path, code: int, *, stopping: bool) -> SeedbedError | None:
    """Return what a run's end means for the study: a failure that is recorded leaves it going, anything else stops it."""
    said = (run / "worker.err").read_text(encoding="utf-8", errors="replace").strip()
    if code == 0 or finished(run) is not None:
        (run / "worker.err").unlink(missing_ok=True)
        return None
    if stopping and code in (InterruptedRunError.exit_code, -signal.SIGTERM, -signal.SIGINT):
        return None  # the signal came before the run could listen: nothing was computed yet
    name = f"{run.parent.name}/{run.name}"
    if code < 0:
        return RunFailedError(
            f"the process of {name} was killed by signal {-code} (out of memory?); what it computed is kept: "
            f"`seedbed resume {run.parent.parent}` goes on"
        )
    kinds = {e.exit_code: e for e in (ConfigError, DataError, RefusedError, InterruptedRunError)}
    return kinds.get(code, RunFailedError)(f"{name}: {said or f'ended with code {code}'}")


def _status(folder: Path, k: tuple[str, int], plan: RunPlan, running: Mapping[Any, Any]) -> RunStatus:
    run = folder / k[0] / f"seed-{k[1]}"
    final = finished(run)
    state = final["status"] if final else "running" if k in running else "waiting"
    line: dict[str, Any] = {}
    if state == "running" and (run / "metrics.jsonl").is_file():
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            for raw in reversed(file.read().splitlines()):
                with suppress(ValueError):
                    line = json.loads(raw)
                    break
    return RunStatus(
        arm=k[0],
        seed=k[1],
        state=state,
        stage=line.get("stage", ""),
        step=line.get("step", 0),
        steps_done=line.get("run_step", 0),
        loss_nats=line.get("loss_nats"),
    )


def quiet(statuses: list[RunStatus]) -> None:
    """Show nothing."""
