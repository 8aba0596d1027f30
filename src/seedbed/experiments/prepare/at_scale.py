"""The same preparation as a datatrove pipeline: units over tasks, then the seal, on this machine, under Slurm or on Ray.

    from seedbed.experiments.prepare.at_scale import describe
    units, sealed = describe("pile/", out="/shared/pile-shards", tokenizer="tokenizer.json")
    LocalPipelineExecutor(pipeline=units, tasks=64, workers=8).run(), then one task of `sealed`; or `run_local(...)`

Every task makes the units whose number is its rank modulo the number of tasks, into the shared folder; a task that was killed
and is started again goes on with what is not there yet. Bytes are those of `seedbed prepare`, whatever the number of tasks.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from seedbed.core.errors import DataError
from seedbed.experiments.prepare.preparation import Preparation, PreparedFolder
from seedbed.experiments.prepare.seal import seal
from seedbed.experiments.prepare.units import Work, begin, make_unit, plan, unit_folder
from seedbed.sources.shards import MANIFEST, read_manifest

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    raise DataError("preparing with datatrove needs a further package: pip install 'seedbed[scale]'") from None


class MakeUnits(PipelineStep):
    """Makes this task's share of the units."""

    name = "seedbed units"
    type = "seedbed"

    def __init__(self, work: Work, out: Path) -> None:
        super().__init__()
        self.work, self.out = work, out

    def run(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> Iterable[Any]:
        """Make units rank, rank + world_size, ... that are not there yet; documents do not travel between steps."""
        for number in range(rank, len(self.work.units), world_size):
            if not unit_folder(self.out, number).is_dir():
                make_unit(self.out, self.work, number)
            self.stat_update("units")
        return data or ()


class Seal(PipelineStep):
    """Turns all units into shards: one task, after all others."""

    name = "seedbed seal"
    type = "seedbed"

    def __init__(self, work: Work, out: Path) -> None:
        super().__init__()
        self.work, self.out = work, out

    def run(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> Iterable[Any]:
        """Write the shards and the manifest. Raises DataError if a unit is missing."""
        if rank == 0 and not (self.out / MANIFEST).is_file():
            missing = [n for n in range(len(self.work.units)) if not unit_folder(self.out, n).is_dir()]
            if missing:
                raise DataError(
                    f"{len(missing)} of {len(self.work.units)} units are missing in {self.out}; run the tasks "
                    "that make them again"
                )
            seal(self.out, self.work, say=print)
        return data or ()


def describe(
    paths: str | Path | Sequence[str | Path], *, out: str | Path, **settings: Any
) -> tuple[list[PipelineStep], list[PipelineStep]]:
    """Return two pipelines, the second to run as one task behind the first; `settings` as for `prepare`.

    Lays down `out` with a note of what is prepared; raises as `prepare` does.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    work = plan(Preparation(paths=tuple(map(str, given)), **settings))
    folder = Path(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).is_file():
        begin(folder, work)
    return [MakeUnits(work, folder)], [Seal(work, folder)]


def run_local(
    paths: str | Path | Sequence[str | Path], *, out: str | Path, tasks: int, workers: int, logs: str | Path, **settings: Any
) -> PreparedFolder:
    """Run both pipelines with datatrove's local executor and return the manifest."""
    from datatrove.executor import LocalPipelineExecutor

    units, sealed = describe(paths, out=out, **settings)
    first = LocalPipelineExecutor(pipeline=units, tasks=tasks, workers=workers, logging_dir=str(Path(logs) / "units"))
    LocalPipelineExecutor(pipeline=sealed, tasks=1, workers=1, logging_dir=str(Path(logs) / "seal"), depends=first).run()
    return PreparedFolder(folder=Path(out), manifest=read_manifest(Path(out)))
