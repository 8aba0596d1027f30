"""Weights & Biases. Offline unless WANDB_MODE=online: no number leaves the machine then until `wandb sync` is asked for.

Offline needs no network, though wandb looks up the address of its server. Nobody is logged in here: an account, its key and
the team (WANDB_ENTITY) are wandb's own business, and WANDB_PROJECT goes before the setting. Only numbers and the plan are
handed over: no host or user name, command line, code, git state, package list, screen output or use of the machine.

The id of the run at the service is kept in RUN/wandb/id; remove that file if the run was deleted there. When a run goes on:
- Online, the same run goes on. The service cannot take points back, so those it has after the checkpoint stay and are not
  sent again: they are the same numbers where going on is exact (seconds aside).
- Offline, wandb cannot go on with a folder that it wrote. So each session writes a new one, with all lines from the first on
  and the same id; send the newest, which replaces what was sent of an older one.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from seedbed.core.bounds import check_ranges, within
from seedbed.core.protocols import Neutral
from seedbed.trackers.lines import lasting_id, missing, numbers

_OFFLINE = ("offline", "dryrun")  # the second is wandb's old name for it
_SILENT = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "host": "",
    "username": "",
    "email": "",
    "program": "",
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


@dataclass(frozen=True, kw_only=True)
class WeightsAndBiases:
    """A run at Weights & Biases, or its folder RUN/wandb to send there later."""

    neutral: ClassVar[Neutral] = "it follows a run and changes nothing"
    project: str = "seedbed"
    wait_seconds: float = within(0, 86_400, default=60.0, above=True)  # the most that beginning and ending online may each take

    def __post_init__(self) -> None:
        check_ranges(self)

    def check(self) -> None:
        """Raise DataError if the package is missing."""
        _needed()

    def open(self, *, folder: Path, name: str, facts: Mapping[str, Any], from_step: int) -> "WandbRun":
        wandb = _needed()
        mode = os.environ.get("WANDB_MODE") or "offline"
        waits = {"init_timeout": self.wait_seconds, "finish_timeout": self.wait_seconds, "login_timeout": self.wait_seconds}
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.project,
            id=lasting_id(folder / "wandb" / "id"),
            name=name,
            dir=str(folder),
            config=dict(facts),
            mode=mode,
            resume=None if mode in _OFFLINE else "allow",
            reinit="create_new",
            settings=wandb.Settings(**_SILENT, **waits),
        )
        return WandbRun(run)


class WandbRun:
    """An open run of wandb."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.held_step = max(0, run.step - 1) if run.resumed else 0
        kept = run.settings.sync_dir
        self.where = f"offline, to {kept}; `wandb sync {kept}` sends it, WANDB_MODE=online sends while the run goes"
        if run.disabled:
            self.where = "nowhere, since WANDB_MODE=disabled"
        elif not run.offline:
            self.where = f"to {run.url}"

    def record(self, line: Mapping[str, Any]) -> None:
        self._run.log(numbers(line), step=line["run_step"])

    def close(self) -> None:
        self._run.finish()


def _needed() -> Any:
    try:
        import wandb
    except ImportError:
        raise missing("wandb") from None
    return wandb
