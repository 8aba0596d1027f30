"""One run, from its plan to its folder: laid down, then executed (stages.py), stopped and resumed until it is finished.

A run folder holds recipe.yaml, resolved.yaml, env.json, metrics.jsonl, log.txt, checkpoints/, items/, final.json and
report.html (feedback.jsonl if a mixture asked for some; branches/, givers/ if it has any). No file in it is ever half-written.
"""

import errno
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.core.durable import check_place, locked, write_json, write_whole
from seedbed.core.errors import RefusedError, RunFailedError, StoppedRunError, is_out_of_memory
from seedbed.core.run_record import RUNS, RunRecord
from seedbed.engine.precision import settled_device, settled_shards
from seedbed.engine.ranks import join_ranks, together
from seedbed.engine.saving import Saver
from seedbed.engine.train import NotFiniteError
from seedbed.experiments.plan.run_plan import RunPlan, read_plan
from seedbed.experiments.run.finish import identity
from seedbed.experiments.run.journal import Log
from seedbed.experiments.run.layout import Session
from seedbed.experiments.run.signals import Signals
from seedbed.experiments.run.stages import Running
from seedbed.experiments.run.tracking import Trackers


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run says: `final` is its final.json."""

    folder: Path
    final: dict[str, Any]


def create(plan: RunPlan, folder: Path, *, recipe_text: str) -> None:
    """Lay down a new run folder; of several ranks the first does.

    Raises RefusedError if there is one already, and before there is one ConfigError if the plan cannot be computed here.
    """
    ranks = join_ranks()
    settled_device(plan.device)
    settled_shards(plan.shard, ranks)
    if ranks.first:
        _lay_down(plan, folder, recipe_text=recipe_text)
    with together():
        ranks.wait()


def _lay_down(plan: RunPlan, folder: Path, *, recipe_text: str) -> None:
    refuse_taken(folder)
    with locked(folder):  # of several processes one begins the run, and its plan alone stands there
        refuse_taken(folder)
        write_whole(folder / "recipe.yaml", recipe_text)
        write_whole(folder / "resolved.yaml", plan.to_yaml())


def refuse_packed(folder: Path, what: str) -> None:
    """Raise RefusedError for what a packed study, or a run of it, has not: its records are there, its checkpoints are not."""
    if (folder / RUNS).is_file() or RunRecord(folder).is_packed:
        raise RefusedError(
            f"{folder} is packed: all numbers are there, checkpoints are not, so there is nothing {what}; take the folder "
            "that it was packed from, or run the study's recipe.yaml again"
        )


def refuse_taken(folder: Path) -> None:
    """Raise RefusedError if a run (or anything else) is in a folder already; what a kill left half written is nothing."""
    check_place(folder, folder=True)
    if (folder / "resolved.yaml").is_file() or (folder / "study.json").is_file():
        raise RefusedError(
            f"{folder} exists already and nothing is overwritten; continue it with `seedbed resume {folder}`, "
            "or give another --out"
        )
    if folder.is_dir() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
        raise RefusedError(f"{folder} is not empty and holds no run; nothing is overwritten: give another --out")


def execute(folder: Path, *, say: Callable[[str], None] = print, session: Session | None = None) -> RunResult:
    """Start, or go on with, the run of a folder until it is finished, and return its result.

    A finished run is returned as it is. Raises RunFailedError for a loss that is not finite (recorded in final.json first),
    StoppedRunError when nothing can be written or a worker was killed (not recorded), InterruptedRunError after a signal,
    RefusedError for what would not be the same run, and whatever its data raise.
    """
    plan = read_plan(folder)
    session = session or Session()
    ranks = join_ranks()
    with locked(folder) if ranks.first else nullcontext(), together():
        done = ranks.from_first(finished(folder) if ranks.first else None)
        if done is not None and done["status"] == "done":
            if ranks.first and not (folder / "report.html").is_file():
                _write_page(folder)
            return RunResult(folder=folder, final=done)
        with (
            Signals() as signals,
            Log(folder / "log.txt", say) if ranks.first else nullcontext(_silent) as log,
            Trackers(session.track if ranks.first else (), say=log) as trackers,
        ):
            try:
                with Saver(ranks) as saver:
                    final = ranks.from_first(
                        Running(
                            plan=plan,
                            folder=folder,
                            session=session,
                            ranks=ranks,
                            signals=signals,
                            log=log,
                            trackers=trackers,
                            saver=saver,
                            side_run=_side_run,
                        ).run()
                    )
                if ranks.first:
                    _write_page(folder)
            except StoppedRunError as e:  # nothing about the method: not recorded as a result, to be resumed
                log(f"stopped: {e}")
                raise
            except RunFailedError as e:
                log(f"failed: {e}")
                if ranks.first:
                    facts = {"run_step": e.run_step} if isinstance(e, NotFiniteError) else {}
                    write_json(folder / "final.json", {"status": "failed", "error": str(e), **facts, **identity(plan)})
                raise
            except OSError as e:
                log(f"stopped: {_no_space(e, folder)}")
                raise _no_space(e, folder) from e
            except (MemoryError, RuntimeError) as e:
                if not is_out_of_memory(e):
                    raise
                stopped = StoppedRunError(
                    f"memory is used up; go on with `seedbed resume {folder} --micro-batch-size N` on fewer rows at a time, or "
                    "on a larger machine; `seedbed run --dry-run` tells what a recipe takes"
                )
                log(f"stopped: {stopped}")
                raise stopped from e
    return RunResult(folder=folder, final=final)


def _side_run(plan: RunPlan | None, folder: Path, *, session: Session, say: Callable[[str], None]) -> dict[str, Any]:
    """Begin a branch (or go on with it, without a plan) and return its final.json."""
    if plan is not None:
        create(plan, folder, recipe_text="")
    return execute(folder, say=say, session=session).final


def _silent(line: str) -> None:
    """Say nothing: the first rank speaks."""


def finished(folder: Path) -> dict[str, Any] | None:
    """Return final.json of a run that is done or has failed."""
    return RunRecord(folder).final()


def _write_page(folder: Path) -> None:
    from seedbed.report.page import write_run_page  # which brings a drawing library: not before there is something to draw

    write_run_page(folder)


def _no_space(error: OSError, folder: Path) -> StoppedRunError:
    again = f"go on with `seedbed resume {folder}`: the last checkpoint is whole"
    if error.errno == errno.ENOSPC:
        return StoppedRunError(f"no space left while writing to {folder}; free some and {again}")
    return StoppedRunError(
        f"could not read or write {error.filename or folder}: {error.strerror or error}; mend that and {again}"
    )
