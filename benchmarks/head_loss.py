"""How fast head and cross-entropy are, forward and backward: in chunks of several lengths, on full logits, bare products.

    python benchmarks/head_loss.py [--positions 4096] [--width 256] [--vocabulary 10002] [--threads 2] [--repeats 5]

All settings run in turn, `repeats` times; medians, in fp32. The last line is JSON: seconds by setting, and the ratio of the
package's own chunks to torch's full logits (above 1: the chunks are faster).
"""

import argparse
import json
import time
from statistics import median

import torch
import torch.nn.functional as F

from seedbed.models import head_loss as module
from seedbed.models.head_loss import Head, Targets, head_loss
from seedbed.models.products import product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("positions", 4096), ("width", 256), ("vocabulary", 10_002), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    states_ND, weight_VD = torch.randn(asked.positions, asked.width), 0.05 * torch.randn(asked.vocabulary, asked.width)
    ids_N = torch.randint(0, asked.vocabulary, (asked.positions,))
    own = module.chunk_rows(asked.positions, vocab_size=asked.vocabulary, on_processor=True)

    def leaves():
        return states_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()

    def full() -> None:
        states, weight = leaves()
        F.cross_entropy(F.linear(states, weight), ids_N, reduction="sum").backward()

    def products() -> None:
        logits_NV = product(states_ND, weight_VD.t())
        product(logits_NV, weight_VD), product(states_ND.t(), logits_NV)  # what the gradients cost

    def chunks(rows: int) -> None:
        module.chunk_rows = lambda positions, **_: min(positions, rows)
        states, weight = leaves()
        head_loss(states, Head(weight_VD=weight), Targets(weights_N=torch.ones(asked.positions), ids_N=ids_N))[0].backward()

    settings = {"full": full, "products": products}
    settings |= {f"chunks of {rows}": lambda rows=rows: chunks(rows) for rows in sorted({own // 8, own // 2, own, own * 2})}
    seconds = {name: [] for name in settings}
    for _ in range(asked.repeats):
        for name, run in settings.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    found = {name: median(values) for name, values in seconds.items()}
    for name, value in found.items():
        print(f"{name}: {value:.3f} s")
    print(json.dumps({"seconds": found, "ratio_to_full": found["full"] / found[f"chunks of {own}"]}))


if __name__ == "__main__":
    main()
