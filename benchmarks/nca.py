"""How fast the automaton makes tokens: fresh rule per row, 10 updates of burn-in, 27 frames, rule drawing and tokens included.

Ten states, 12x12 cells, 2x2 patches; the filtered figure counts tokens of accepted rows only, band 0.5 to 1.0. `naive_ratio` is
the raw figure over that of a plain NumPy roll-out, measured in the same process. The last line is JSON; times are medians.
Usage: python benchmarks/nca.py [--quick] [--threads N] [--device cuda]
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from seedbed.nca import Automaton
from seedbed.nca.patches import Patches
from seedbed.nca.rule import draw_rule

FRAMES = 27


def tokens_per_s(make: Callable[[int], int], *, rows: int, repeats: int) -> float:
    """Return the median of tokens per second over `repeats` calls of `make(first index)`, each of `rows` rows."""
    make(10**6)  # compiles, warms up
    speeds = []
    for i in range(repeats):
        started = time.perf_counter()
        made = make(i * rows)
        speeds.append(made / (time.perf_counter() - started))
    return statistics.median(speeds)


def naive_row(index: int, patches: Patches) -> int:
    """One row as a reader of the paper would write it in NumPy: float32, noise for every cell and state."""
    rng = np.random.default_rng(index)
    rule = draw_rule(index, states=patches.states, wrap_states=True, split="train")
    table, out = rule.table_KNH.astype(np.float32) / 2**24, rule.out_NH.T.astype(np.float32) / 2**20
    grid = rng.integers(0, patches.states, (patches.grid, patches.grid))
    frames = []
    for step in range(10 + FRAMES - 1):
        hidden = sum(table[k, np.roll(grid, (1 - k // 3, 1 - k % 3), (0, 1))] for k in range(9))
        logits = np.maximum(hidden, 0) @ out + 1e-4 * rng.gumbel(size=(*grid.shape, patches.states))
        grid = logits.argmax(-1)
        if step >= 9:
            frames.append(grid)
    return len(patches.framed(patches.encode(np.stack(frames).astype(np.uint8))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", help="roll out in torch there, too")
    args = parser.parse_args()
    rows, repeats = (2000, 3) if args.quick else (8000, 7)
    raw, filtered = Automaton(), Automaton(band=(0.5, 1.0))

    def compiled(automaton: Automaton) -> Callable[[int], int]:
        return lambda start: automaton.generate(rows, frames=FRAMES, seed=0, start=start, threads=args.threads).size

    found = {
        "raw_tokens_per_s": tokens_per_s(compiled(raw), rows=rows, repeats=repeats),
        "filtered_tokens_per_s": tokens_per_s(compiled(filtered), rows=rows, repeats=repeats),
    }
    naive = tokens_per_s(lambda i: naive_row(i, raw.patches), rows=1, repeats=20)
    found |= {"naive_ratio": found["raw_tokens_per_s"] / naive, "threads": args.threads}
    if args.device:
        from seedbed.nca.rollout_torch import TorchRoller

        roller = TorchRoller(args.device)
        on_device = tokens_per_s(
            lambda i: roller.rollouts(filtered, range(i, i + 1024), frames=FRAMES, seed=0)[1].size, rows=1024, repeats=3
        )
        found[f"filtered_tokens_per_s_{args.device}"] = on_device
    for name, value in found.items():
        print(f"{name}: {value:,.1f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
