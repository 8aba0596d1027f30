"""What a run writes down while it goes: metrics.jsonl, a line a step, and log.txt. The lines are the truth;
trackers follow them.

A line whose loss or gradient norm leaps out of the steps before it says so under `spikes`, and the log names the step.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from seedbed.core.durable import write_whole
from seedbed.core.run_record import RunRecord
from seedbed.core.speaking import heard_or_not

_BEFORE = 64  # steps of the stage that a step is held against
_AT_LEAST = 16
_DEVIATIONS = 6  # a loss so many standard deviations above the mean is a spike
_TIMES = 10  # a gradient norm so many times the median is a spike


class Metrics:
    """metrics.jsonl. On resume, lines after the checkpoint are cut off; they will be written again.

    `follow` gets every line after it is written.
    """

    def __init__(
        self, path: Path, *, keep: int, say: Callable[[str], None], follow: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        lines = []
        self.spikes: list[dict[str, Any]] = []
        self._before: deque[dict[str, Any]] = deque(maxlen=_BEFORE)
        self._times: dict[str, list[float]] = {}  # of a stage: seconds that its steps waited for rows, and took
        for line in RunRecord(path.parent).metrics() if keep else ():
            lines.append(json.dumps(line) + "\n")
            self._remember(line)
            if line["run_step"] >= keep:
                break  # what comes then may be in pieces
        write_whole(path, "".join(lines))
        self._file = path.open("a", encoding="utf-8")
        self._say, self._follow, self._last_said = heard_or_not(say), follow, 0.0

    def __call__(self, line: dict[str, Any]) -> None:
        line = line | self._leaps(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._remember(line)
        if self._follow is not None:
            self._follow(line)
        for name, leap in line.get("spikes", {}).items():
            self._say(
                f"note: {name} leapt to {line[name]:.4g} at step {line['run_step']} (before it {leap['usual']:.4g}); "
                f"`seedbed inspect RUN --step {line['run_step']}` shows its rows"
            )
        watched = line.get("watched", {})
        if watched or time.monotonic() - self._last_said > 10:
            self._last_said = time.monotonic()
            speed = line["tokens"] / line["step"] / line["seconds"]
            read = (f", {name} {next(iter(numbers.values())):.4f}" for name, numbers in watched.items())
            self._say(
                f"{line['stage']} step {line['step']}: loss {line['loss_nats']:.4f}{''.join(read)}, "
                f"rate {line['learning_rate']:.2e}, gradient {line['gradient_norm']:.2f}, {speed:,.0f} tokens/s"
            )

    def waited(self, stage: str) -> float:
        """Return the share of the time of a stage's steps in which they waited for their rows."""
        waiting, whole = self._times[stage]
        return waiting / whole

    def sync(self) -> None:
        """Have all lines on disk, before a checkpoint is that knows of them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _leaps(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"spikes": ...} if this step leaps out of those before it, else nothing."""
        before = [b for b in self._before if b["stage"] == line["stage"]]
        if len(before) < _AT_LEAST:
            return {}
        losses, norms = ([b[name] for b in before] for name in ("loss_nats", "gradient_norm"))
        found = {}
        if line["loss_nats"] > fmean(losses) + _DEVIATIONS * stdev(losses):
            found["loss_nats"] = {"usual": fmean(losses), "deviation": stdev(losses)}
        if line["gradient_norm"] > _TIMES * median(norms):
            found["gradient_norm"] = {"usual": median(norms)}
        return {"spikes": found} if found else {}

    def _remember(self, line: dict[str, Any]) -> None:
        self._before.append(line)
        times = self._times.setdefault(line["stage"], [0.0, 0.0])
        times[0] += line["data_seconds"]
        times[1] += line["seconds"]
        if "spikes" in line:
            self.spikes.append({name: line[name] for name in ("stage", "run_step", "loss_nats", "gradient_norm", "spikes")})


class Log:
    """log.txt and the screen, line by line."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, heard_or_not(say)

    def __enter__(self) -> Callable[[str], None]:
        self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        return self._write

    def _write(self, line: str) -> None:
        self._say(line)
        with suppress(OSError):
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()
