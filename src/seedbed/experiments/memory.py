"""What memory this process has taken, and how much it may take."""

import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch


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


def memory_limit(device: torch.device) -> float | None:
    return float(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else memory_bytes()


def resident_bytes() -> float:
    """Return what this process has in memory now: program, libraries, data."""
    gc.collect()
    try:
        return float(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):  # not Linux: the most there ever was
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
