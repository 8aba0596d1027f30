"""How fast this processor multiplies float32 matrices: torch's own product (MKL, usually) and oneDNN's, as models use them.

    python benchmarks/products.py [--threads 2] [--repeats 7]

For the shapes of a linear layer's forward pass and of both its gradients, the weight's also in turned order; then whether one
product for query, key and value (their weights joined anew in every pass) is faster than three, forward and backward. The two
take turns; medians. The last line is JSON: `ratio` (above 1: oneDNN is faster) by shape, their median, what
`seedbed.models.products` chooses here, and `joined` (above 1: one product is faster).
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch

from seedbed.models.products import LIBRARY, linear

SHAPES = [(4096, 128, 384), (4096, 256, 1376), (4096, 688, 256), (1024, 768, 2304), (2048, 256, 10_002)]
JOINED = [(4096, 128), (4096, 256), (1024, 768)]  # positions, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    ratios = {}
    for m, k, n in SHAPES:
        x, w, d = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
        factors = {"forward": (x, w), "states": (d, w.t()), "weight": (d.t(), x.t()), "weight, turned": (x.t(), d.t())}
        for name, (a, b) in factors.items():
            blas, onednn = _both(lambda a=a, b=b: a @ b.t(), lambda a=a, b=b: _onednn(a, b), asked.repeats)
            ratios[f"{m}x{k}x{n} {name}"] = blas / onednn
            speeds = ", ".join(f"{2e-9 * m * k * n / s:.1f}" for s in (blas, onednn))
            print(f"{m} x {k} x {n}, {name}: {speeds} GFLOP/s, {blas / onednn:.2f}x", flush=True)
    joined = {}
    for m, d in JOINED:
        apart, together = _both(*_projections(m, d), asked.repeats)
        joined[f"{m}x{d}"] = apart / together
        print(f"query, key and value of {m} x {d}: joined {apart / together:.2f}x", flush=True)
    found = {"ratio": ratios, "median": median(ratios.values()), "joined": joined}
    print(json.dumps({**found, "chosen": LIBRARY, "threads": asked.threads}))


def _onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _projections(m: int, d: int) -> tuple[Callable, Callable]:
    """Return three products with their gradients, and one that does the same."""
    x = torch.randn(m, d, requires_grad=True)
    weights = [torch.randn(d, d, requires_grad=True) for _ in range(3)]
    given = [torch.randn(m, d) for _ in weights]

    def apart() -> None:
        torch.autograd.backward([linear(x, w) for w in weights], given)

    def together() -> None:
        torch.autograd.backward(linear(x, torch.cat(weights)).split(d, dim=-1), given)

    return apart, together


def _both(blas: Callable, onednn: Callable, repeats: int) -> tuple[float, float]:
    """Return the median seconds of each; the first round counts nothing."""
    seconds = ([], [])
    for _ in range(repeats + 1):
        for function, found in zip((blas, onednn), seconds, strict=True):
            begun = time.perf_counter()
            function()
            found.append(time.perf_counter() - begun)
    return median(seconds[0][1:]), median(seconds[1][1:])


if __name__ == "__main__":
    main()
