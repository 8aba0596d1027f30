"""How a session computes: threads, micro-batches and ranks, which move no row but may move a rounding or a draw."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from seedbed.core.errors import RefusedError
from seedbed.engine.precision import Machine
from seedbed.engine.ranks import Ranks
from seedbed.experiments.assemble import layout_free
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import StageSpec


@dataclass(frozen=True, kw_only=True)
class Session:
    """How this session computes, where it is another than the plan or the checkpoint says; it moves no row.

    Micro-batches and ranks change a run by rounding alone if all its parts are layout-free. If they are not, and for threads
    of such a run too, `inexact` must allow it.
    """

    threads: int | None = None
    micro_batch_size: int | None = None  # of every stage
    data_workers: int | None = None
    inexact: bool = False
    shard: str | None = None
    track: tuple[str, ...] = ()


class SideRun(Protocol):
    """Begins a run by its plan (goes on with it, without one), executes it and returns its final.json."""

    def __call__(
        self, plan: RunPlan | None, folder: Path, *, session: Session, say: Callable[[str], None]
    ) -> dict[str, Any]: ...


def settled_layout(
    plan: RunPlan, session: Session, ranks: Ranks, *, known: dict[str, Any] | None, log: Callable[[str], None]
) -> dict[str, Any]:
    """Return threads, micro-batches and ranks: the session's, else the checkpoint's, else the plan's.

    Raises RefusedError for others than the checkpoint's if a part of the run draws or measures by micro-batch or rank.
    """
    before = known or {
        "threads": plan.threads,
        "micro_batch_size": {s.name: s.micro_batch_size or _rows(plan, s) for s in plan.stages},
        "ranks": ranks.size,
    }
    wanted = {"threads": session.threads or before["threads"], "micro_batch_size": dict(before["micro_batch_size"])}
    if session.micro_batch_size is not None:
        wanted["micro_batch_size"] = {s.name: min(session.micro_batch_size, _rows(plan, s)) for s in plan.stages}
    wanted["ranks"] = ranks.size
    other = [f"{name} {before[name]} -> {wanted[name]}" for name in wanted if wanted[name] != before[name]]
    if other and known is not None:
        said = f"another layout than the checkpoint's ({'; '.join(other)})"
        if layout_free(plan):
            log(f"note: {said}: every part of this run is layout-free, so it goes on the same but for rounding")
        elif session.inexact:
            log(f"note: {said}, as --inexact allows: the result will not be that of an undisturbed run")
        else:
            raise RefusedError(
                f"{said} changes the random draws inside this run's model or objectives, so it would not be the same run; "
                "leave the layout as it was, or add --inexact to go on without exactness"
            )
    return wanted


def _rows(plan: RunPlan, spec: StageSpec) -> int:
    return plan.streams[spec.stream].batch_size


def described_machine(machine: Machine) -> str:
    """Say what else was chosen for the machine, for the log."""
    said = [
        "compiled" if machine.compiled else "",
        "activations made again" if machine.recompute else "",
        f"{machine.ranks.size} ranks" if machine.ranks.size > 1 else "",
        f"weights split over {machine.shards}" if machine.shards > 1 else "",
    ]
    return "".join(f", {part}" for part in said if part)
