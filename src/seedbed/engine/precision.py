"""Which device, which number type, how many threads, compiled or not: decided once, recorded, the same on resume."""

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from seedbed.core.errors import ConfigError
from seedbed.core.records import Batch
from seedbed.core.variables import among_ranks, number_of
from seedbed.engine.ranks import Ranks

PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt (malloc.h)
BF16_WIDTH = 192  # on a processor with bf16 tiles, narrower models lose more by casting than they gain (measured)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a run computes."""

    device: torch.device
    bfloat16: bool
    threads: int
    ranks: Ranks = field(default_factory=Ranks)
    compiled: bool = False  # whether blocks are compiled
    recompute: bool = False  # whether a block's inner states are made again in the backward pass, instead of kept
    shards: int = 1  # ranks over which weights, gradients and moments are split; 1: every rank has them whole

    def fetched(self, batch: Batch) -> Batch:
        """Return a batch on the device; from pinned memory it comes while the device still computes."""
        return batch.map(partial(Tensor.to, device=self.device, non_blocking=True)) if self.device.type != "cpu" else batch

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()


def available_threads() -> int:
    """Return how many processors this process may use; ranks on one machine share them out."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // (number_of("LOCAL_WORLD_SIZE", default=1) if among_ranks() else 1))


def settled_device(device: str) -> str:
    """Return the device that "auto" means here. Raises ConfigError for one that is not there."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is found; take --device cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("no MPS device is found; take --device cpu or auto")
    if device not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}; got {device!r}")
    return device


def settled_shards(shard: str, ranks: Ranks) -> int:
    """Return over how many ranks weights are split. Raises ConfigError for what cannot be had of so many ranks."""
    if shard not in ("none", "all") and not (shard.isdecimal() and int(shard)):
        raise ConfigError(f"--shard takes none, all or a number of ranks, got {shard!r}")
    found = {"none": 1, "all": ranks.size}.get(shard) or int(shard)
    if ranks.size % found:
        raise ConfigError(
            f"--shard {shard}: {ranks.size} rank(s) do not make groups of {found}; give none, all or a number that divides "
            f"{ranks.size}, or start more ranks with torchrun"
        )
    return found


def _keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one, instead of giving it back and taking it anew, page by page.

    glibc alone is asked; whether it would have kept it by itself hangs on what the process allocated first.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for name, bytes_ in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**30)):
            library.mallopt(name, bytes_)


def prepare_machine(
    *,
    device: str,
    precision: str,
    threads: int | None,
    width: int,
    deterministic: bool = False,
    ranks: Ranks | None = None,
    compiled: bool | None = None,
    recompute: bool = False,
    shard: str = "none",
) -> Machine:
    """Set threads, determinism and denormals for this process; return what was chosen.

    "auto" takes CUDA where there is one. Precision "auto" takes bfloat16 on a GPU that has it, and on a processor with bf16
    tiles from a width of BF16_WIDTH on. A processor always computes deterministically, a GPU if `deterministic` is asked for
    (slower). `compiled` None compiles on a GPU only: on a processor it needs a C++ compiler and its time. `shard` is "none",
    "all", or a number of ranks. Raises ConfigError for a device that is not there, or a number that does not divide all ranks.
    """
    device = settled_device(device)
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
    # else all new memory is written once before anything uses it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device == "cpu":
        _keep_freed_memory()
    ranks = ranks or Ranks()
    if device == "cuda" and ranks.size > 1:
        torch.cuda.set_device(number_of("LOCAL_RANK", default=ranks.rank))
    return Machine(
        device=torch.device(device),
        bfloat16=fast,
        threads=chosen,
        ranks=ranks,
        compiled=device == "cuda" if compiled is None else compiled,
        recompute=recompute,
        shards=settled_shards(shard, ranks),
    )


def _has_tiles() -> bool:
    """Whether the processor multiplies bf16 matrices in tiles (AMX)."""
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(found and found())
