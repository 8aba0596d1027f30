"""What a run computed on: a fixed list of facts, never host names, home folders, tokens or the whole environment."""

import os
import platform
import subprocess
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from seedbed.engine.precision import Machine, available_threads
from seedbed.models.products import LIBRARY

_PACKAGES = ("seedbed", "torch", "numpy", "numba", "scipy", "safetensors", "pydantic")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")


def environment(machine: Machine | None = None) -> dict[str, Any]:
    """Return versions, processor, threads, number type and commit."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "processors_available": available_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "products": LIBRARY,
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "commit": commit(),
    }
    if machine is not None:
        facts |= {
            "device": machine.device.type,
            "gpu": torch.cuda.get_device_name() if machine.device.type == "cuda" else None,
            "precision": "bfloat16" if machine.bfloat16 else "float32",
            "threads": machine.threads,
            "compiled": machine.compiled,
            "ranks": machine.ranks.size,
            "shards": machine.shards,
        }
    return facts


def processor() -> str:
    """Return the processor's model name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return None


def commit() -> str:
    """Return the git commit of the source, "+changed" if files differ; of an installed package, its version."""
    source = Path(__file__).parent
    try:
        _git(source, "ls-files", "--error-unmatch", __file__)
        changed = _git(source, "status", "--porcelain", "--", ".")
        return _git(source, "rev-parse", "HEAD") + ("+changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return f"seedbed {_version('seedbed')}"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed" if package != "seedbed" else "source tree"
