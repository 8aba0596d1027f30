"""How near `seedbed run --dry-run` comes: seconds a step and peak memory of real short runs over what was estimated.

    python benchmarks/estimate.py [--points 0,1,2,3] [--steps 20] [--threads 2] [--repeats 3]

Each repeat estimates a point in one process and trains it in another right after, on text from inside the package and on
automaton rows. Seconds are the median of the steps in metrics.jsonl but for the first, memory is the most that the process had
resident; ratios are medians over repeats. Other work on the machine moves the seconds of both. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

RECIPE = """
name: point
model: {{kind: decoder, size: "{size}"}}
streams:
  rows: {{{source}, seq_len: {seq_len}, batch_size: {rows}}}
stages:
  - {{name: only, stream: rows, budget: {{steps: {steps}}}, micro_batch_size: {micro}, evaluations: 1}}
evaluate: {{{evaluation}}}
"""
TEXT = 'source: {kind: text, path: "builtin:prose"}, tokenizer: bytes'
SOIL = "source: {kind: nca, states: 10, grid: 12, patch: 2}"
POINTS = [
    {"size": "0.8M", "source": TEXT, "seq_len": 256, "rows": 8, "micro": 8},
    {"size": "5M", "source": SOIL, "seq_len": 512, "rows": 4, "micro": 2},
    {"size": "20M", "source": TEXT, "seq_len": 256, "rows": 4, "micro": 2},
    {"size": "20M", "source": TEXT, "seq_len": 256, "rows": 4, "micro": 4, "recompute": True},
    {"size": "85M", "source": TEXT, "seq_len": 256, "rows": 2, "micro": 1},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default=",".join(map(str, range(len(POINTS)))))
    for name, default in (("steps", 20), ("threads", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    found = []
    for number in map(int, asked.points.split(",")):
        point = POINTS[number]
        seconds, memory = [], []
        for _ in range(asked.repeats):
            with tempfile.TemporaryDirectory() as folder:
                guess, real_seconds, real_mib = once(point, Path(folder), asked)
            seconds.append(real_seconds / guess["step_seconds"])
            memory.append(real_mib / guess["memory_mib"])
            parts = ", ".join(f"{name} {mib:.0f}" for name, mib in guess["parts_mib"].items())
            print(
                f"{named(point)}: {real_seconds:.2f} s a step, {guess['step_seconds']:.2f} estimated ({guess['how']}); "
                f"{real_mib:.0f} MiB, {guess['memory_mib']:.0f} estimated ({parts})",
                flush=True,
            )
        ratios = {"seconds": median(seconds), "memory": median(memory)}
        said = ", ".join(f"{what} {ratio:.2f}" for what, ratio in ratios.items())
        print(f"{named(point)}: measured / estimated: {said}", flush=True)
        found.append({"point": named(point), **ratios, "all_seconds": seconds, "all_memory": memory})
    print(json.dumps(found))


def named(point: dict) -> str:
    rows = "text" if point["source"] == TEXT else "automaton"
    again = ", recomputed" if point.get("recompute") else ""
    return f"{point['size']} on {rows}, {point['rows']} x {point['seq_len']}, {point['micro']} rows at once{again}"


def once(point: dict, folder: Path, asked: argparse.Namespace) -> tuple[dict, float, float]:
    """Return the estimate, the seconds of a step and the MiB of one short run."""
    recipe = folder / "point.yaml"
    evaluation = (
        "rules: {kind: rule_inference, rows: 2}"
        if point["source"] == SOIL
        else "text: {kind: bits_per_byte, valid_bytes: 1k, test_bytes: 1k}"
    )
    recipe.write_text(RECIPE.format(**point, steps=asked.steps, evaluation=evaluation))
    command = [sys.executable, "-m", "seedbed", "run", str(recipe), "--device", "cpu", "--threads", str(asked.threads)]
    command += ["--recompute"] if point.get("recompute") else []
    said = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, check=True).stdout
    (guess,) = json.loads(said.splitlines()[-1])
    child = subprocess.Popen([*command, "--out", str(folder / "run")], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the run failed: {recipe.read_text()}")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return guess, median(x["seconds"] for x in lines[1:]), used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
