"""Trackio: a database on this machine (TRACKIO_DIR says where), for `trackio show`. No account, no network.

Trackio cannot take points back, so a run that goes on is written anew from its first line, and what an earlier session wrote
is removed; its id is kept in RUN/trackio/id. Where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL send the numbers elsewhere, the
earlier session stays there as a run of the same name. Trackio writes in a thread of its own and reports what fails as
Python warnings; if you are logged in to Hugging Face it asks there for your name and keeps it with the run.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from seedbed.core.durable import write_whole
from seedbed.core.protocols import Neutral
from seedbed.trackers.lines import missing, numbers


@dataclass(frozen=True, kw_only=True)
class Trackio:
    """A run in trackio's database."""

    neutral: ClassVar[Neutral] = "it follows a run and changes nothing"
    project: str = "seedbed"

    def check(self) -> None:
        """Raise DataError if the package is missing."""
        _needed()

    def open(self, *, folder: Path, name: str, facts: Mapping[str, Any], from_step: int) -> "TrackioRun":
        trackio, kept = _needed(), folder / "trackio" / "id"
        with redirect_stdout(io.StringIO()):
            run = trackio.init(
                project=self.project, name=name, config=dict(facts), embed=False, auto_log_cpu=False, auto_log_gpu=False
            )
        if kept.is_file():
            _remove(trackio, self.project, id=kept.read_text(encoding="utf-8").strip())
        write_whole(kept, f"{run.id}\n")
        return TrackioRun(run, finish=trackio.finish, project=self.project)


class TrackioRun:
    """An open run of trackio."""

    held_step = 0

    def __init__(self, run: Any, *, finish: Any, project: str) -> None:
        self._run, self._finish = run, finish
        self.where = f"as run {run.name} of project {project}; look at it with `trackio show --project {project}`"

    def record(self, line: Mapping[str, Any]) -> None:
        self._run.log(numbers(line), step=line["run_step"])

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._finish()


def _remove(trackio: Any, project: str, *, id: str) -> None:
    """Remove an earlier session of this run from the database, if it is there."""
    try:
        runs = list(trackio.Api().runs(project))
    except ValueError:  # no such project on this machine
        return
    for run in runs:
        if run.id == id:
            run.delete()


def _needed() -> Any:
    try:
        import trackio
    except ImportError:
        raise missing("trackio") from None
    return trackio
