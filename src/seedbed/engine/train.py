"""The training loop of one stage, to be read from top to bottom.

A step: if the mixture asks for feedback before the next rows, measure and record it; take rows by their position in each of
the stage's streams, count what is asked, add up gradients over micro-batches (see step.py; each is divided by the count of the
whole step, so their size changes nothing but rounding; with several ranks each makes its share), clip, step. Evaluation and
checkpoints happen between steps. Counting is done in the processor's memory, so a GPU is waited for once a step, where the loss
is read.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch

from seedbed.core.errors import DataError, InterruptedRunError, RunFailedError
from seedbed.core.ledger import Ledger
from seedbed.core.protocols import Schedule
from seedbed.core.records import Cost, Progress
from seedbed.core.stream import Stream
from seedbed.engine.feed import Feed
from seedbed.engine.lent import Lent
from seedbed.engine.placement import is_split, whole
from seedbed.engine.precision import Machine
from seedbed.engine.step import Term, active, step
from seedbed.engine.system import System


def never(step: int) -> bool:
    """Say of no step that something is read after it."""
    return False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that a stage needs, built and ready."""

    name: str
    stream: Stream  # that the stage is counted in
    further: Mapping[str, Stream] = field(default_factory=dict)  # streams that objectives read beside it, a batch a step
    system: System
    terms: Sequence[Term]
    lent: Mapping[str, Lent] = field(default_factory=dict)  # models by the name that the recipe gives them
    optimizer: torch.optim.Optimizer
    learning_rate: float
    schedule: Schedule
    steps: int
    micro_batch_size: int
    clip_norm: float | None
    checkpoint_every: int
    keep_every: int | None = None  # checkpoints at these steps of the run, beside
    keep_at: frozenset[int] = frozenset()  # and at these
    evaluates_after: Callable[[int], bool] = never  # whether something is read after a step, on the way
    step_cost: Cost = field(default_factory=Cost)  # of the optimizer, where it is more than a pass over the weights
    clock: int = 0  # steps by which the schedule stands further on: those of the stages that it continues

    @property
    def model(self) -> Any:
        return self.system.model

    @property
    def streams(self) -> dict[str, Stream]:
        """All of them by name, the one that it is counted in first."""
        return {self.stream.name: self.stream, **self.further}


@dataclass(kw_only=True)
class Counters:
    """Where a run stands; these integers, the weights and the moments are all that a resume needs."""

    stage: int = 0
    step: int = 0  # in the stage
    run_step: int = 0  # over all stages
    positions: dict[str, int]  # of every stream


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop reports to."""

    record: Callable[[dict[str, Any]], None]  # a line of metrics
    evaluate: Callable[[], dict[str, Any]]  # what a step at which something is read adds to its line
    save: Callable[[bool], None]  # writes a checkpoint behind the next steps; True: waits until it is there
    should_stop: Callable[[], bool]
    # (name, position): records what a mixture asks for, before rows from there on are drawn
    measure: Callable[[str, int], None] = lambda name, position: _nobody_measures(name)


def _nobody_measures(name: str) -> None:
    raise AssertionError(f"the mixture asks for a measurement of {name}, and this run makes none")


def train(
    stage: Stage,
    *,
    at: Counters,
    seed: int,
    machine: Machine,
    ledger: Ledger,
    hooks: Hooks,
    feeds: Mapping[str, Feed] | None = None,
) -> None:
    """Train until the stage's last step, changing system, optimizer, counters and ledger in place; `feeds` are by stream.

    Raises RunFailedError before a step with a loss or gradient that is not finite, InterruptedRunError after the step in
    which a signal came (a checkpoint is saved then), DataError if a step asks for nothing.
    """
    stream, system, ranks = stage.stream, stage.system, machine.ranks
    feeds = feeds or {name: Feed(some, seed=seed, ranks=ranks) for name, some in stage.streams.items()}
    ends = {name: at.positions[name] + (stage.steps - at.step) * s.batch_size for name, s in stage.streams.items()}
    groups = stage.optimizer.param_groups
    peaks = [group.setdefault("peak", group["lr"]) for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    while at.step < stage.steps:
        while stream.mixture.wants and (due := stream.due(at.positions[stream.name] + stream.batch_size)) is not None:
            started = time.perf_counter()
            hooks.measure(stream.mixture.wants[0], due)
            ledger.charge(stage.name, "evaluate", Cost(seconds=time.perf_counter() - started))
        started = time.perf_counter()
        made = {name: feed.take(at.positions[name], until=ends[name]) for name, feed in feeds.items()}
        batches = {name: some.batch for name, some in made.items()}
        data_seconds = time.perf_counter() - started

        system.train()
        progress = Progress(step=stage.clock + at.step, steps=stage.clock + stage.steps, run_step=at.run_step)
        factor = stage.schedule(progress)
        rate = stage.learning_rate * factor
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * factor
        terms = active(stage.terms, progress)
        counts = ranks.total(*(term.objective.count(batches[term.stream]) for term in terms))
        if not any(counts):
            raise DataError(f"step {at.step + 1} of stage {stage.name!r} asks for no token at all; check views and seq_len")
        found = step(
            system,
            terms,
            batches,
            counts=counts,
            main=stream.name,
            rows=stage.micro_batch_size,
            progress=progress,
            machine=machine,
            lent=stage.lent,
            address=(seed, stage.name, at.step),
        )
        if not is_split(system):
            ranks.sum_gradients(parameters)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, stage.clip_norm or math.inf)))
        loss = reduce(add, torch.stack(found.means).tolist())  # `sum` rounds otherwise from Python 3.12 on
        making = sum((some.cost for some in made.values()), Cost())
        loss, run, ideal, made_run, made_ideal, made_seconds, lent_run, lent_ideal = ranks.total(
            *(loss, found.cost.flops_run, found.cost.flops_ideal, making.flops_run, making.flops_ideal, making.seconds),
            *(found.lent.flops_run, found.lent.flops_ideal),
        )
        summed = ranks.total(*(reduce(add, torch.stack(values).tolist()) for values in found.parts.values()))
        parts = dict(zip(found.parts, summed, strict=True))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFiniteError(
                f"the loss became {loss} (gradient norm {norm}) at step {at.step + 1} of stage {stage.name!r}, at learning "
                f"rate {rate:.3g}{_first_not_finite(system)}; likely causes: a learning rate too high, no clipping, bfloat16 "
                f"with large weights, or what the step shows (`seedbed inspect RUN --step {at.run_step + 1}`). The last "
                "checkpoint is from before this step",
                run_step=at.run_step + 1,
            )
        stage.optimizer.step()
        stage.optimizer.zero_grad(set_to_none=True)
        system.after_step(progress)

        tokens = {name: batch.size.positions * ranks.size for name, batch in batches.items()}
        at.step += 1
        at.run_step += 1
        for name, some in stage.streams.items():
            at.positions[name] += some.batch_size
        seconds = time.perf_counter() - started
        ledger.charge(stage.name, "generate", Cost(flops_run=made_run, flops_ideal=made_ideal, seconds=made_seconds))
        trained = Cost(positions=sum(tokens.values()), flops_run=3 * run, flops_ideal=3 * ideal, seconds=seconds - data_seconds)
        ledger.charge(stage.name, "train", trained + stage.step_cost)
        if lent_run:
            ledger.charge(stage.name, "lent", Cost(flops_run=lent_run, flops_ideal=lent_ideal))
        for name, share in made.items():
            for draw in share.draws:
                ledger.show(stage.name, draw.source, tokens[name] // len(share.draws))
        line = {
            "stage": stage.name,
            "step": at.step,
            "run_step": at.run_step,
            "tokens": ledger.costs[stage.name]["train"].positions,
            "loss_nats": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": round(seconds, 6),
            "data_seconds": round(data_seconds, 6),
        } | ({"parts": parts} if parts else {})
        if stage.evaluates_after(at.step):
            started = time.perf_counter()
            for feed in feeds.values():
                feed.rest()
            line |= hooks.evaluate()
            ledger.charge(stage.name, "evaluate", Cost(seconds=time.perf_counter() - started))
        hooks.record(line)
        stopped = ranks.any(hooks.should_stop())
        kept = at.run_step in stage.keep_at or (stage.keep_every is not None and at.run_step % stage.keep_every == 0)
        if stopped or kept or at.step % stage.checkpoint_every == 0 or at.step == stage.steps:
            hooks.save(stopped or at.step == stage.steps)
        if stopped:
            ranks.wait()  # whoever ends first has the others ended by torchrun, in the middle of saving
            raise InterruptedRunError(
                f"stopped after step {at.step} of {stage.steps} of stage {stage.name!r}; a checkpoint is saved, "
                "`seedbed resume` goes on from it"
            )


class NotFiniteError(RunFailedError):
    """A loss or gradient that is not finite; `run_step` is the step of the run that would have used it."""

    def __init__(self, message: str, *, run_step: int) -> None:
        super().__init__(message)
        self.run_step = run_step


def _first_not_finite(system: System) -> str:
    """Name the first parameter whose value or gradient is not finite, from the embedding on."""
    for name, parameter in system.named_parameters():
        for what, values in (("the weights", parameter), ("the gradient", parameter.grad)):
            if values is not None and not bool(whole(torch.isfinite(values).all())):
                return f", first in {what} of {name}"
    return ""
