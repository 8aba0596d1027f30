"""How long one waits: for `seedbed --help`, for what a run imports, and from there to the end of its first step.

    python benchmarks/startup.py [--recipe nca-demo] [--arm scratch] [--threads 2] [--repeats 5]

Every repeat is a process of its own; the first one, which compiles modules, counts nothing. Medians of seconds on the clock.
`imports` are all modules that are there before the run begins; what it imports on its way counts to its first step, and so
does all that comes before that step: reading the corpus, building the model, the folder. `additions` are ten million additions
in Python, to compare machines by. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="nca-demo")
    parser.add_argument("--arm", default="scratch")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in ("help", "imports", "first_step", "additions")}
    for repeat in range(asked.repeats + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "seedbed", "--help"], check=True, capture_output=True)
        taken = {"help": time.perf_counter() - begun}
        with tempfile.TemporaryDirectory() as place:
            words = [sys.executable, "-c", RUN, asked.recipe, asked.arm, asked.threads, str(Path(place) / "run")]
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        taken["imports"], taken["first_step"] = map(float, said.split())
        begun, total = time.perf_counter(), 0
        for n in range(10_000_000):
            total += n
        taken["additions"] = time.perf_counter() - begun
        for name, seconds in taken.items():
            found[name] += [seconds] if repeat else []
    medians = {name: median(values) for name, values in found.items()}
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.2f} s ({min(found[name]):.2f} to {max(found[name]):.2f})")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
