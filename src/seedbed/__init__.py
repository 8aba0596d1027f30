"""seedbed pre-trains language models on less data and less compute, and says honestly whether it worked.

Every command is one function: `seedbed.prepare`, `seedbed.run`, `seedbed.compare`, `seedbed.evaluate_text`, `seedbed.sample`,
`seedbed.tune`, `seedbed.learnability_map`, `seedbed.inspect`, `seedbed.diff`, `seedbed.export`, `seedbed.open_export`,
`seedbed.pack` and `seedbed.track`.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("seedbed")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+source"

_COMMANDS = {
    "run": "seedbed.experiments.commands",
    "resume": "seedbed.experiments.commands",
    "compare": "seedbed.experiments.study.study",
    "check_comparison": "seedbed.experiments.study.check",
    "tune": "seedbed.experiments.study.tune",
    "learnability_map": "seedbed.experiments.study.learnability",
    "evaluate_text": "seedbed.experiments.commands",
    "sample": "seedbed.experiments.commands",
    "prepare": "seedbed.experiments.prepare.prepare",
    "inspect": "seedbed.experiments.inspection",
    "diff": "seedbed.experiments.difference",
    "export": "seedbed.experiments.export.export",
    "open_export": "seedbed.experiments.export.export",
    "pack": "seedbed.experiments.study.pack",
    "track": "seedbed.experiments.run.tracking",
}
__all__ = ["__version__", *_COMMANDS]


def __getattr__(name: str) -> Any:
    """Import a command when it is first used, so that `import seedbed` costs nothing."""
    if name not in _COMMANDS:
        raise AttributeError(f"module 'seedbed' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_COMMANDS[name]), name)
