"""What services share: a line of metrics.jsonl as flat numbers, the lasting id of a run, the error for a missing package."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedbed.core.durable import write_whole
from seedbed.core.errors import DataError

_RENAMED = {"step": "step_of_stage"}  # services call their x axis "step", and that is run_step
_X_AXIS = "run_step"


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return a line's numbers by flat name, without the x axis and without text.

    {"run_step": 9, "stage": "text", "step": 3, "valid": {"prose": {"loss_nats": 2.5}}} gives
    {"step_of_stage": 3, "valid/prose/loss_nats": 2.5}.
    """
    return _flat({_RENAMED.get(name, name): value for name, value in line.items() if name != _X_AXIS}, under="")


def _flat(values: Mapping[str, Any], *, under: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, under=f"{under}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{under}{name}"] = value
    return found


def lasting_id(file: Path) -> str:
    """Return the id kept in a file of the run folder; the first time it is drawn and kept."""
    if not file.is_file():
        write_whole(file, secrets.token_hex(8) + "\n")
    return file.read_text(encoding="utf-8").strip()


def missing(service: str) -> DataError:
    return DataError(f"following a run with {service} needs a further package: pip install 'seedbed[track]'")
