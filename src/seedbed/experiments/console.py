"""What a study shows while it runs: machine, arms and minutes first, progress on the way, the verdict last.

On a terminal one line a run is kept up to date; elsewhere plain lines, when a run changes its state and each half minute.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from seedbed.engine.precision import available_threads
from seedbed.experiments.environment import memory_gib, processor
from seedbed.experiments.estimate.estimate import estimate
from seedbed.experiments.estimate.timing import timed
from seedbed.experiments.plan.arms import parse_seeds
from seedbed.experiments.plan.load import Loaded
from seedbed.experiments.study.comparison import Comparison
from seedbed.experiments.study.side_by_side import RunStatus

_EVERY_SECONDS = 30.0


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], str] = {}
        self._last = time.monotonic()
        self._begun = time.monotonic()

    def watch(self, statuses: Sequence[RunStatus]) -> None:
        due = time.monotonic() - self._last > _EVERY_SECONDS
        if due:
            self._last = time.monotonic()
        for s in statuses:
            changed = self._states.get((s.arm, s.seed), "waiting") != s.state
            self._states[s.arm, s.seed] = s.state
            if changed or (due and s.state == "running"):
                done = sum(x.state in ("done", "failed") for x in statuses)
                at = f", {s.stage} step {s.step}, loss {s.loss_nats:.3f}" if s.loss_nats is not None else ""
                clock = _clock(time.monotonic() - self._begun)
                print(f"[{clock}, {done}/{len(statuses)} runs] {s.arm} seed {s.seed}: {s.state}{at}", flush=True)


class Bars:
    """One line a run on a terminal."""

    def __init__(self, steps: dict[str, int]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._steps = steps
        self._progress = Progress(
            TextColumn("{task.description:28}"), BarColumn(), TextColumn("{task.fields[text]:40}"), TimeElapsedColumn()
        )
        self._tasks: dict[tuple[str, int], Any] = {}

    def watch(self, statuses: Sequence[RunStatus]) -> None:
        self._progress.start()
        for s in statuses:
            k = (s.arm, s.seed)
            if s.state == "waiting":
                continue
            if k not in self._tasks:
                total = self._steps.get(s.arm)
                self._tasks[k] = self._progress.add_task(f"{s.arm} seed {s.seed}", total=total, text="starting")
            loss = f"{s.stage} step {s.step}, loss {s.loss_nats:.3f}" if s.loss_nats is not None else s.state
            done = self._steps.get(s.arm) if s.state == "done" else s.steps_done
            self._progress.update(self._tasks[k], completed=done, text=s.state if s.state in ("done", "failed") else loss)
        if all(s.state in ("done", "failed") for s in statuses):
            self._progress.stop()

    def close(self) -> None:
        self._progress.stop()


class Console:
    """All that `seedbed compare` prints."""

    def __init__(self, loaded: Loaded, *, jobs: int, threads: int | None, seeds: str | None, aa: bool, **chosen: Any) -> None:
        self._loaded, self._jobs, self._aa, self._chosen = loaded, jobs, aa, chosen
        self._threads = threads or max(1, available_threads() // jobs)
        self._seeds = parse_seeds(seeds) if seeds else loaded.seeds
        self._begun = time.monotonic()
        self._view: Lines | Bars = Lines()

    def announce(self) -> None:
        """Print machine, arms, seeds and the minutes to expect (from a few timed steps)."""
        memory = memory_gib()
        print(f"machine: {processor()}, {available_threads()} core(s)" + (f", {memory:.0f} GiB" if memory else ""))
        control = self._loaded.arms[0]
        arms = [control, control] if self._aa else self._loaded.arms
        print(f"arms: {', '.join(arms)}; seeds: {', '.join(map(str, self._seeds))}")
        print(f"{self._jobs} run(s) side by side, {self._threads} thread(s) each")
        found = {
            a: estimate(timed(self._loaded.plan(arm=a, seed=self._seeds[0], threads=self._threads, **self._chosen)))
            for a in set(arms)
        }
        seconds = sum(s.seconds for a in arms for s in found[a]) * len(self._seeds) / self._jobs
        for arm in dict.fromkeys(arms):
            stages = ", ".join(f"{s.stage} {s.tokens:,} tokens" for s in found[arm])
            print(f"  {arm}: {stages}; {found[arm][-1].parameters:,} parameters")
        print(f"estimated: {max(1, round(seconds / 60))} min, plus starting up", flush=True)
        if sys.stdout.isatty():
            self._view = Bars({a: sum(s.steps for s in found[a]) for a in found})

    def watch(self, statuses: list[RunStatus]) -> None:
        self._view.watch(statuses)

    def close(self) -> None:
        """Give the terminal back, however the study ended."""
        if isinstance(self._view, Bars):
            self._view.close()

    def conclude(self, found: Comparison) -> None:
        """Print the verdict, what is detectable beside what was published, and the page's path."""
        data = found.data
        print(f"\nverdict: {data['verdict']}")
        for c in data["contrasts"]:
            if c["minimum_detectable_nats"] is not None:
                published = f"; the paper reports {data['published_nats']} nats" if data["published_nats"] else ""
                print(
                    f"  {c['arm']} against {c['reference']}: {c['mean_nats']:+.4f} nats per token; with these seeds "
                    f"{c['minimum_detectable_nats']:.4f} nats are detectable (80 % power){published}"
                )
        print(f"took {_clock(time.monotonic() - self._begun)}\npage: {found.folder / 'report.html'}")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
