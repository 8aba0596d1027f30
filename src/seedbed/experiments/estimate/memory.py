"""What memory this process has taken, how much it may take, and what cannot fit."""

import gc
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from seedbed.core.errors import ConfigError
from seedbed.engine.precision import settled_device, settled_shards
from seedbed.engine.ranks import Ranks
from seedbed.experiments.assemble import build_model, build_system, trained_of
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.streams import BuiltStream

_ROW_BYTES, _TOKEN_BYTES = 500, 12  # of a row of a step, before it is in a batch: shown tokens, targets, weights


def memory_bytes() -> float | None:
    """Return the memory that this process may use: the machine's, or less if a group or a limit says so; None if unknown."""
    found = []
    with suppress(ValueError, OSError):
        found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    for limit in _group_limits():
        with suppress(ValueError, OSError):  # "max", or no such file
            found.append(float(limit.read_text(encoding="ascii")))
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        found.append(float(most))
    return min(found, default=None)


def _group_limits() -> Iterator[Path]:
    """Give the files that may limit this process's memory: of its control group and those around it."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root = Path("/sys/fs/cgroup/memory" if kinds else "/sys/fs/cgroup")
            name = "memory.limit_in_bytes" if kinds else "memory.max"
            here = root / path.lstrip("/")
            yield from (folder / name for folder in (here, *here.parents) if folder.is_relative_to(root))


def check_fits(plan: RunPlan, built: Mapping[str, BuiltStream], ranks: Ranks, *, shard: str | None = None) -> None:
    """Raise ConfigError, before anything is written, for a stage that no way of computing fits into this machine.

    That is less than what it will take: its weights and gradients, and its rows as tokens. `--dry-run` estimates the whole.
    """
    shards, device = settled_shards(shard or plan.shard, ranks), torch.device(settled_device(plan.device))
    for spec in plan.stages:
        stream = built[spec.stream].stream
        with torch.device("meta"):
            system = build_system(plan, spec, build_model(plan, spec, vocab_size=stream.vocab_size))
        weights = sum(p.numel() for p in system.parameters())
        rows = -(-stream.batch_size // ranks.size) * (_ROW_BYTES + _TOKEN_BYTES * stream.seq_len)
        for what, needed, limit in (
            (
                "weights and gradients",
                4 * (weights + sum(p.numel() for _, p in trained_of(spec, system))) / shards,
                memory_limit(device),
            ),
            ("rows of a step", rows, memory_bytes()),
        ):
            if limit is not None and needed > limit:
                raise ConfigError(
                    f"stage {spec.name}: its {what} alone take {needed / 2**30:,.1f} GiB, and there are {limit / 2**30:,.1f}; "
                    "take a smaller model, batch_size or seq_len, split it over ranks (--shard), or take a larger machine"
                )


def memory_limit(device: torch.device) -> float | None:
    return float(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else memory_bytes()


def resident_bytes() -> float:
    """Return what this process has in memory now: program, libraries, data."""
    gc.collect()
    try:
        return float(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):  # not Linux: the most there ever was
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
