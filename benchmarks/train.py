"""How fast training steps are: ours, transformers.Trainer with LlamaForCausalLM, litgpt and a plain loop in torch.

    make peers
    python benchmarks/train.py [--shapes 4x128,6x256-small,6x256-large,12x768] [--rounds 5] [--steps N]
        [--batch-tokens N] [--threads 2] [--peers hf,litgpt,plain] [--all] [--device auto] [--precision auto]
        [--peak-tflops N] [--profile]

All train the same decoder (untied head) from the same weights on the same rows: AdamW (fused, constant rate, no decay), clipped
gradients, float32 on a processor, bfloat16 autocast on a GPU. Each contender is a process of its own (benchmarks/peers), with
its own environment, and stays alive; it trains when its turn comes. First each is tried for a few steps, eager and compiled;
then only the faster of the two goes on (with --all both), and they take turns: `steps` steps each in every round, in an order
that rotates and turns round. What counts is the median of a round's seconds per step; first steps and compilation count
nothing. Between rounds the machine's own matrix products are measured, with the same threads: the ceiling.

`losses_equal` says that no two contenders' losses at the same step, of all steps, differ by 1e-3 or more. `fraction_of_ceiling`
is three times the forward FLOPs of the model's own formula, the head at every position, per second of the median step, over the
ceiling; `mfu` the same over --peak-tflops. `peak_memory_mib` is a process's largest resident memory with all that it imported
(on a GPU what torch had allocated). `step_processor_seconds` are a step's seconds on all its threads, waiting in a spin
included: where other work runs beside, they move less than the clock. The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from seedbed.core.records import blank
from seedbed.engine.precision import prepare_machine
from seedbed.models.decoder import Decoder
from seedbed.models.hugging_face import llama_config, llama_weights
from seedbed.models.products import product
from seedbed.sources.text import Text

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".venv-peers"
PEERS = ("hf", "litgpt", "plain")
VARIANTS = ("eager", "compiled")
TOLERANCE = 1e-3  # nats
OPTIMIZER = {"learning_rate": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "clip_norm": 1.0}


@dataclass(frozen=True, kw_only=True)
class Shape:
    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int
    batch_tokens: int  # of a step on a processor
    cuda_batch_tokens: int
    steps: int  # of a turn on a processor: a few seconds
    warm_up: int  # steps that count nothing
    trial_steps: int
    trials: int = 2  # turns

    def decoder(self) -> Decoder:
        sizes = {name: getattr(self, name) for name in ("num_layers", "d_model", "num_heads", "d_ff")}
        return Decoder(**sizes)


SHAPES = {
    "4x128": Shape(
        num_layers=4, d_model=128, num_heads=4, d_ff=344, vocab_size=256, seq_len=512,
        batch_tokens=4096, cuda_batch_tokens=65_536, steps=3, warm_up=2, trial_steps=1,
    ),
    "6x256-small": Shape(
        num_layers=6, d_model=256, num_heads=8, d_ff=688, vocab_size=256, seq_len=256,
        batch_tokens=4096, cuda_batch_tokens=65_536, steps=1, warm_up=1, trial_steps=1,
    ),
    "6x256-large": Shape(
        num_layers=6, d_model=256, num_heads=8, d_ff=688, vocab_size=10_002, seq_len=512,
        batch_tokens=4096, cuda_batch_tokens=65_536, steps=1, warm_up=1, trial_steps=1,
    ),
    "12x768": Shape(
        num_layers=12, d_model=768, num_heads=12, d_ff=2048, vocab_size=50_257, seq_len=512,
        batch_tokens=1024, cuda_batch_tokens=32_768, steps=1, warm_up=1, trial_steps=1, trials=1,
    ),
}  # fmt: skip
CUDA_STEPS = 20  # of a turn, for every shape


class Contender:
    """A process that trains when told to."""

    def __init__(self, family: str, variant: str, *, job: Path, folder: Path, threads: int) -> None:
        self.name, self.family = f"{family}-{variant}", family
        self._log = folder / f"{self.name}.log"
        self.seconds: list[float] = []  # per step, by round
        self.processor_seconds: list[float] = []  # the same, of all its threads
        self.losses: list[float] = []  # of every step from the first
        self.peak_memory_mib = 0.0
        self.facts: dict[str, Any] = {}  # parameters and versions, once it is ready
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if family == "seedbed" and "PYTHONPATH" in os.environ else {}
        around = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | path
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python_of(family), str(HERE / "peers" / f"with_{family}.py"), str(job), variant],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=around | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            )

    def hear(self) -> dict[str, Any]:
        """Return the next answer. Ends the benchmark if the process died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.name} ended ({self._process.wait()}); the end of its log:\n{self._log.read_text()[-4000:]}"
            )
        return json.loads(line)

    def train(self, steps: int, *, profile: bool = False) -> dict[str, Any]:
        """Have it train on and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"steps": steps, "profile": profile}) + "\n")
        self._process.stdin.flush()
        answer = self.hear()
        self.losses += answer["losses"]
        self.peak_memory_mib = answer["peak_memory_mib"]
        return answer

    def turn(self, steps: int) -> None:
        answer = self.train(steps)
        self.seconds.append(answer["step_seconds"])
        self.processor_seconds.append(answer["step_processor_seconds"])

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def python_of(family: str) -> str:
    """Return the interpreter of a contender; the plain loop needs torch and nothing else, so it has ours."""
    return sys.executable if family in ("seedbed", "plain") else str(ENVIRONMENTS / family / "bin" / "python")


class Ceiling:
    """The machine's matrix products, in FLOPs a second: the best of six at a time, half of them as our own models make them."""

    def __init__(self, *, device: str, bfloat16: bool) -> None:
        self._width = 8192 if device == "cuda" else 2048
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        self._left, self._right, self._out = (
            torch.randn(self._width, self._width, device=device, dtype=dtype) for _ in range(3)
        )
        self._cuda = device == "cuda"
        self.found: list[float] = []

    def measure(self) -> None:
        best = float("inf")
        for turn in range(8):  # the first two wake the threads
            self._settle()
            begun = time.perf_counter()
            if turn % 2:
                torch.mm(self._left, self._right, out=self._out)
            else:
                product(self._left, self._right)
            self._settle()
            best = min(best, time.perf_counter() - begun)
        self.found.append(2 * self._width**3 / best)

    def _settle(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def tokens_of(shape: Shape, *, count: int) -> np.ndarray:
    """Return text that can be learned: bytes of the package's prose, or draws in which half the tokens follow from the last.

    Other tokens are drawn by Zipf's law, so frequent and rare ids both occur.
    """
    if shape.vocab_size == 256:
        text = "\n\n".join(d.text for d in Text(path="builtin:prose").documents("train")).encode()
        found = np.frombuffer(text, dtype=np.uint8).astype(np.int32)
        return np.tile(found, -(-count // len(found)))[:count]
    draws = np.random.default_rng(0)
    follower = draws.permutation(shape.vocab_size)
    shares = 1 / np.arange(1, shape.vocab_size + 1)
    tokens = draws.choice(shape.vocab_size, size=count, p=shares / shares.sum()).astype(np.int32)
    for place in np.flatnonzero(draws.random(count) < 0.5):
        if place:
            tokens[place] = follower[tokens[place - 1]]
    return tokens


def write_job(shape: Shape, folder: Path, *, steps: int, rows: int, machine: Mapping[str, Any]) -> tuple[Path, float]:
    """Write weights, data and job; return the job's file and the FLOPs of a step."""
    decoder = shape.decoder()
    model = decoder.build(vocab_size=shape.vocab_size)
    model.initialize(seed=0)
    save_file({name: weight.contiguous() for name, weight in llama_weights(model).items()}, folder / "weights.safetensors")
    length = shape.seq_len
    tokens = tokens_of(shape, count=steps * rows * length + 1)
    np.save(folder / "data.npy", np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length])
    job = {
        **{name: getattr(shape, name) for name in ("num_layers", "d_model", "num_heads", "d_ff", "vocab_size", "seq_len")},
        "rope_base": decoder.rope_base,
        "norm_eps": decoder.norm_eps,
        "llama_config": llama_config(decoder.shape, vocab_size=shape.vocab_size),
        "weights": str(folder / "weights.safetensors"),
        "data": str(folder / "data.npy"),
        "batch_size": rows,
        "steps": steps,
        **OPTIMIZER,
        **machine,
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json", 3 * model.cost(blank(rows=rows, seq_len=length)).flops_run


def largest_differences(contenders: Sequence[Contender]) -> dict[str, float]:
    """Return, for every contender, the largest distance of its losses from the median contender's at the same step."""
    found = {}
    for contender in contenders:
        medians = [
            statistics.median_low([c.losses[step] for c in contenders if step < len(c.losses)])
            for step in range(len(contender.losses))
        ]
        found[contender.name] = max(abs(a - b) for a, b in zip(contender.losses, medians, strict=True))
    return found


def spread_of_losses(contenders: Sequence[Contender]) -> float:
    """Return the largest difference of two losses at the same step."""
    steps = range(max(len(c.losses) for c in contenders))
    at_step = [[c.losses[step] for c in contenders if step < len(c.losses)] for step in steps]
    return max(max(losses) - min(losses) for losses in at_step)


def try_out(family: str, *, shape: Shape, both: bool, **start: Any) -> tuple[list[Contender], list[Contender]]:
    """Start and try both variants; return those that go on and those that were stopped."""
    pair = [Contender(family, variant, **start) for variant in VARIANTS]
    for contender in pair:
        contender.facts = contender.hear()
        contender.train(shape.warm_up)
    tried: dict[str, list[float]] = {c.name: [] for c in pair}
    for trial in range(shape.trials):
        for contender in pair[:: 1 if trial % 2 == 0 else -1]:
            tried[contender.name].append(contender.train(shape.trial_steps)["step_seconds"])
    best = min(pair, key=lambda c: statistics.median(tried[c.name]))
    for name, seconds in tried.items():
        print(f"  {name}: {statistics.median(seconds):.3f} s a step on trial", flush=True)
    if both:
        return pair, []
    (slower,) = (c for c in pair if c is not best)
    slower.stop()
    return [best], [slower]


def measure(name: str, asked: argparse.Namespace, *, device: str, bfloat16: bool) -> dict[str, Any]:
    """Return the findings on a shape."""
    shape = SHAPES[name]
    batch_tokens = asked.batch_tokens or (shape.cuda_batch_tokens if device == "cuda" else shape.batch_tokens)
    rows = max(1, batch_tokens // shape.seq_len)
    steps = asked.steps or (CUDA_STEPS if device == "cuda" else shape.steps)
    before = shape.warm_up + shape.trials * shape.trial_steps
    total = before + (asked.rounds + (1 if asked.profile else 0)) * steps
    print(f"{name}: {total} steps of {rows} x {shape.seq_len} tokens", flush=True)
    ceiling = Ceiling(device=device, bfloat16=bfloat16)
    going_on: list[Contender] = []
    stopped: list[Contender] = []
    with tempfile.TemporaryDirectory() as place:
        machine = {"device": device, "bfloat16": bfloat16, "threads": asked.threads}
        job, flops = write_job(shape, Path(place), steps=total, rows=rows, machine=machine)
        start = {"job": job, "folder": Path(place), "threads": asked.threads}
        try:
            for family in ("seedbed", *asked.peers):
                kept, slower = try_out(family, shape=shape, both=asked.all, **start)
                going_on += kept
                stopped += slower
            for number in range(asked.rounds):
                at = number % len(going_on)
                order = going_on[at:] + going_on[:at]
                for contender in order[:: 1 if number % 2 == 0 else -1]:
                    contender.turn(steps)
                ceiling.measure()
            profile = ""
            if asked.profile:
                ours = min((c for c in going_on if c.family == "seedbed"), key=lambda c: statistics.median(c.seconds))
                profile = ours.train(steps, profile=True)["profile"]
                print(f"{ours.name}, operators by their own time, in % of {steps} steps:\n{profile}", flush=True)
        finally:
            for contender in going_on:
                contender.stop()
    return findings(
        name, going_on, stopped, tokens=rows * shape.seq_len, flops=flops, ceiling=statistics.median(ceiling.found), asked=asked
    )


def findings(
    name: str,
    contenders: Sequence[Contender],
    stopped: Sequence[Contender],
    *,
    tokens: int,
    flops: float,
    ceiling: float,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Print a table; return what the last line says of a shape."""
    medians = {c.name: statistics.median(c.seconds) for c in contenders}
    ours = min((c for c in contenders if c.family == "seedbed"), key=lambda c: medians[c.name])
    peers = [c for c in contenders if c.family != "seedbed"]
    best = min(peers, key=lambda c: medians[c.name]) if peers else None
    everyone = [*contenders, *stopped]
    difference, own = spread_of_losses(everyone), largest_differences(everyone)
    deviating = [name for name, value in own.items() if value >= TOLERANCE]
    heads = ("tokens/s", "s/step", "min", "max", "cpu s", "memory MiB", "of ceiling", "loss off by")
    print("  " + " " * 18 + "".join(f"{head:>12}" for head in heads))
    for c in sorted(contenders, key=lambda c: medians[c.name]):
        seconds = medians[c.name]
        times = (seconds, min(c.seconds), max(c.seconds), statistics.median(c.processor_seconds))
        print(
            f"  {c.name:18}{tokens / seconds:12,.0f}{''.join(f'{value:12.3f}' for value in times)}"
            f"{c.peak_memory_mib:12,.0f}{flops / seconds / ceiling:12.3f}{own[c.name]:12.1e}"
        )
    print(f"  ceiling {ceiling / 1e9:,.1f} GFLOP/s; loss {ours.losses[0]:.4f} to {ours.losses[-1]:.4f}", flush=True)
    found = {
        "name": name,
        "tokens_per_s": tokens / medians[ours.name],
        "best_peer": best.name if best else None,
        "ratio_to_best_peer": medians[best.name] / medians[ours.name] if best else None,
        "fraction_of_ceiling": flops / medians[ours.name] / ceiling,
        "losses_equal": difference < TOLERANCE,
        "largest_loss_difference": difference,
        "deviating": deviating,
        "peak_memory_mib": ours.peak_memory_mib,
        "ceiling_gflops_per_s": ceiling / 1e9,
        "step_gflops": flops / 1e9,
        "steps": len(ours.losses),
        "batch_tokens": tokens,
        "parameters": sorted({c.facts["parameters"] for c in everyone}),  # one number, or the models differ
        "versions": {c.family: c.facts["versions"] for c in contenders},
        "contenders": {
            c.name: {
                "tokens_per_s": tokens / medians[c.name],
                "peak_memory_mib": c.peak_memory_mib,
                "step_seconds": {"median": medians[c.name], "min": min(c.seconds), "max": max(c.seconds)},
                "step_processor_seconds": statistics.median(c.processor_seconds),
            }
            for c in contenders
        },
    }
    if asked.peak_tflops:
        found["mfu"] = flops / medians[ours.name] / (asked.peak_tflops * 1e12)
    return found


def machine_facts(asked: argparse.Namespace, *, device: str, bfloat16: bool) -> dict[str, Any]:
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return {
        "processor": processor,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "precision": "bfloat16" if bfloat16 else "float32",
        "threads": asked.threads,
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def listed(known: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=listed(list(SHAPES)), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a turn; left out: as many as fit the shape")
    parser.add_argument("--batch-tokens", type=int, help="of a step; left out: as the shape has it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=listed(PEERS), default=list(PEERS))
    parser.add_argument("--all", action="store_true", help="both variants of each go on, not the faster one only")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, from its maker: adds mfu")
    parser.add_argument("--profile", action="store_true", help="print where the time of our steps goes")
    asked = parser.parse_args()
    missing = [family for family in asked.peers if not Path(python_of(family)).exists()]
    if missing:
        raise SystemExit(f"there is no environment for {', '.join(missing)}: run `make peers`, or leave them out with --peers")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if asked.device == "auto" else asked.device
    bfloat16 = device == "cuda" if asked.precision == "auto" else asked.precision == "bfloat16"
    prepare_machine(device=device, precision="float32", threads=asked.threads, width=0)
    facts = machine_facts(asked, device=device, bfloat16=bfloat16)
    shapes = [measure(name, asked, device=device, bfloat16=bfloat16) for name in asked.shapes]
    print(json.dumps({"shapes": shapes, "machine": facts}))


if __name__ == "__main__":
    main()
