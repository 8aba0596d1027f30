"""Which device, which number type, how many threads: decided once, recorded, the same on resume."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from seedbed.core.errors import ConfigError
from seedbed.engine.ranks import Ranks

PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps")
BF16_WIDTH = 192  # on a processor with bf16 tiles, narrower models lose more by casting than they gain (measured)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a run computes."""

    device: torch.device
    bfloat16: bool
    threads: int
    ranks: Ranks = field(default_factory=Ranks)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()


def available_threads() -> int:
    """Return how many processors this process may use; ranks on one machine share them out."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def settled_device(device: str) -> str:
    """Return the device that "auto" means here."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def prepare_machine(
    *, device: str, precision: str, threads: int | None, width: int, deterministic: bool = False, ranks: Ranks | None = None
) -> Machine:
    """Set threads, determinism and denormals for this process; return what was chosen.

    "auto" takes CUDA where there is one. Precision "auto" takes bfloat16 on a GPU that has it, and on a processor with bf16
    tiles from a width of BF16_WIDTH on. A processor always computes deterministically, a GPU if `deterministic` is asked for
    (slower). Raises ConfigError for a device that is not there.
    """
    device = settled_device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is found; take --device cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("no MPS device is found; take --device cpu or auto")
    if device not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}; got {device!r}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else device == "cpu" and _has_tiles() and width >= BF16_WIDTH
    else:
        fast = precision == "bfloat16"
    chosen = threads or available_threads()
    torch.set_num_threads(chosen)
    torch.set_flush_denormal(True)
    if deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product is made
    torch.use_deterministic_algorithms(device == "cpu" or deterministic)
    ranks = ranks or Ranks()
    if device == "cuda" and ranks.size > 1:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Machine(device=torch.device(device), bfloat16=fast, threads=chosen, ranks=ranks)


def _has_tiles() -> bool:
    """Whether the processor multiplies bf16 matrices in tiles (AMX)."""
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(found and found())
