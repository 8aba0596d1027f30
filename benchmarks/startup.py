"""How long one waits: for `seedbed --help`, for what a run imports and from there to the end of its first step, for a worker.

    python benchmarks/startup.py [--recipe nca-demo] [--arm scratch] [--threads 2] [--repeats 5]

Every repeat is a process of its own; the first one, which compiles modules, counts nothing. Medians of seconds on the clock.
`imports` are all modules that are there before the run begins; what it imports on its way counts to its first step, and so
does all that comes before that step: reading the corpus, building the model, the folder. `worker` is how long the first rows of
a data worker take on the arm's last stream, `worker_mib` what memory it holds then. `additions` are ten million additions in
Python, to compare machines by. `compiling`, tried once: an automaton's first row where nothing is compiled yet. The last line
is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

RUN = """
import os, sys, threading, time
begun = time.perf_counter()
from seedbed.experiments import commands
recipe, arm, threads, folder = sys.argv[1:]
ready = time.perf_counter()
def watch():
    lines = os.path.join(folder, "metrics.jsonl")
    while not (os.path.exists(lines) and os.path.getsize(lines)):
        time.sleep(0.005)
    print(ready - begun, time.perf_counter() - ready, flush=True)
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
commands.run(recipe, arm=arm, seed=0, threads=int(threads), out=folder, say=lambda line: None)
"""

WORKER = """
import sys, time
from functools import partial
from pathlib import Path
from seedbed.engine.feed import Feed
from seedbed.experiments.plan.load import load
from seedbed.experiments.streams import build_stream, open_stream
recipe, arm = sys.argv[1:]
plan = load(recipe).plan(arm=arm, seed=0)
name = plan.stages[-1].stream
stream = build_stream(name, plan.streams[name]).stream
begun = time.perf_counter()
with Feed(stream, seed=0, workers=1, opener=partial(open_stream, name, plan.streams[name])) as feed:
    feed.take(0, until=100 * stream.batch_size)
    taken = time.perf_counter() - begun
    (worker,) = feed._pool._processes
    (held,) = [x for x in Path(f"/proc/{worker}/status").read_text().splitlines() if x.startswith("VmRSS")]
print(taken, int(held.split()[1]) / 1024)
"""

COMPILING = """
import time
from seedbed.sources.nca import NcaRows
begun = time.perf_counter()
NcaRows(states=2, grid=4, seq_len=128).rows([0], seed=0, split="train")
print(time.perf_counter() - begun)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="nca-demo")
    parser.add_argument("--arm", default="scratch")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    found: dict[str, list[float]] = {
        name: [] for name in ("help", "imports", "first_step", "worker", "worker_mib", "additions")
    }
    for repeat in range(asked.repeats + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "seedbed", "--help"], check=True, capture_output=True)
        taken = {"help": time.perf_counter() - begun}
        with tempfile.TemporaryDirectory() as place:
            taken["imports"], taken["first_step"] = _said(RUN, asked.recipe, asked.arm, asked.threads, f"{place}/run")
        taken["worker"], taken["worker_mib"] = _said(WORKER, asked.recipe, asked.arm)
        begun, total = time.perf_counter(), 0
        for n in range(10_000_000):
            total += n
        taken["additions"] = time.perf_counter() - begun
        for name, seconds in taken.items():
            found[name] += [seconds] if repeat else []
    with tempfile.TemporaryDirectory() as nothing:
        found["compiling"] = _said(COMPILING, NUMBA_CACHE_DIR=nothing)
    medians = {name: median(values) for name, values in found.items()}
    for name, value in medians.items():
        print(f"{name}: {value:.2f} ({min(found[name]):.2f} to {max(found[name]):.2f})")
    print(json.dumps(medians))


def _said(code: str, *words: str, **variables: str) -> list[float]:
    """Return the numbers that a process of its own prints."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})
    return [float(word) for word in done.stdout.split()]


if __name__ == "__main__":
    main()
