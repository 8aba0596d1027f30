"""How a contender of benchmarks/train.py takes turns: it waits, trains so many steps when told to, and answers with JSON.

A contender is `python with_NAME.py JOB.json eager|compiled`. The job says model, data, steps and machine, for all the same.
Standard output belongs to the answers; whatever a library prints goes to standard error.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

VERSIONS = ("torch", "transformers", "accelerate", "litgpt", "lightning")


def read_job() -> SimpleNamespace:
    """Return the job, with `compiled`, and this process's threads set."""
    job = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()), compiled=sys.argv[2] == "compiled")
    torch.set_num_threads(job.threads)
    return job


def read_rows(job: SimpleNamespace) -> np.ndarray:
    """Return the tokens (rows, seq_len + 1), mapped from the file; step s takes rows s * batch_size on."""
    return np.load(job.data, mmap_mode="r")


class Turns:
    """Make it first, before any library can print; call `ready` before the first step and `step_done` after each."""

    def __init__(self, job: SimpleNamespace) -> None:
        self._cuda = job.device == "cuda"
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._losses: list[Any] = []
        self._asked, self._begun, self._processor_begun = 0, 0.0, 0.0
        self._profiler: Any = None

    def ready(self, *, parameters: int) -> None:
        from importlib.metadata import PackageNotFoundError, version

        versions = {}
        for name in VERSIONS:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
        self._say({"parameters": parameters, "versions": versions})
        self._wait()

    def step_done(self, loss: Any) -> None:
        """Count a step; `loss` (a number or a tensor of one) is read only at the end of a turn."""
        self._losses.append(loss)
        if len(self._losses) < self._asked:
            return
        self._settle()
        seconds, processor_seconds = time.perf_counter() - self._begun, time.process_time() - self._processor_begun
        table = self._top(seconds) if self._profiler is not None else ""
        self._say(
            {
                "step_seconds": seconds / self._asked,
                "step_processor_seconds": processor_seconds / self._asked,
                "losses": [float(loss) for loss in self._losses],
                "peak_memory_mib": self._peak_bytes() / 2**20,
                "profile": table,
            }
        )
        self._losses = []
        self._wait()

    def _wait(self) -> None:
        """Block until the next turn; end the process when there is none."""
        order = json.loads(sys.stdin.readline() or "{}")
        if not order.get("steps"):
            raise SystemExit(0)
        self._asked = order["steps"]
        if order.get("profile"):
            self._profiler = torch.profiler.profile()
            self._profiler.__enter__()
        self._settle()
        self._begun, self._processor_begun = time.perf_counter(), time.process_time()

    def _settle(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def _peak_bytes(self) -> int:
        """Memory of the device, or what this process has held at most (not what its parent held when it was forked)."""
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status")
        if status.exists():
            return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _top(self, seconds: float) -> str:
        """The operators with the most time of their own, in percent of the turn."""
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        own: Callable[[Any], float] = lambda e: e.self_device_time_total if self._cuda else e.self_cpu_time_total  # noqa: E731
        events = sorted(profiler.key_averages(), key=own, reverse=True)[:20]
        lines = [f"{own(e) / 1e4 / seconds:6.1f}%  {e.count / self._asked:8.1f} a step  {e.key[:80]}" for e in events if own(e)]
        return "\n".join(lines)

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
