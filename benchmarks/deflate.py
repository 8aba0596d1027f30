"""Our deflate lengths against the machine's zlib, on many real and random inputs: how many differ, and how fast both are.

Usage, from the repository's root: PYTHONPATH=. python benchmarks/deflate.py [--inputs 100000]
"""

import argparse
import json
import time

import numpy as np
from tests.nca.inputs import example, is_classic, zlib_length

from seedbed.nca.deflate import gzip_length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    gzip_length(np.zeros(10, dtype=np.uint8))  # compiles
    differ, ours, theirs = 0, 0.0, 0.0
    for i in range(args.inputs):
        data = example(i, rng)
        started = time.perf_counter()
        length = gzip_length(np.frombuffer(data, dtype=np.uint8))
        between = time.perf_counter()
        known = zlib_length(data)
        ours, theirs = ours + between - started, theirs + time.perf_counter() - between
        differ += length != known
    found = {"inputs": args.inputs, "differ": differ, "ratio_of_times": ours / theirs, "zlib_is_classic": is_classic()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
