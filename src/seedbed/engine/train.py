"""The training loop of one stage, to be read from top to bottom.

A step: if the mixture asks for feedback before the next rows, measure and record it; take rows by their position in each of
the stage's streams, count what is asked, add up gradients over micro-batches (see step.py; each is divided by the count of the
whole step, so their size changes nothing but rounding; with several ranks each makes its share), clip, step. Evaluation and
checkpoints happen between steps. The processor counts: a GPU is waited for once a step, for the loss.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import torch

from seedbed.core.errors import DataError, InterruptedRunError, RunFailedError
from seedbed.core.ledger import Ledger
from seedbed.core.protocols import Schedule
from seedbed.core.records import Cost, Progress
from seedbed.core.stream import Stream
from seedbed.engine.feed import Feed, Made
from seedbed.engine.lent import Lent
from seedbed.engine.placement import is_split, whole
from seedbed.engine.precision import Machine
from seedbed.engine.ranks import Ranks
from seedbed.engine.step import StepLoss, Term, active, step
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

    def advance(self, streams: Mapping[str, Stream]) -> None:
        """Count a step that has read a batch of each of these streams."""
        self.step += 1
        self.run_step += 1
        for name, stream in streams.items():
            self.positions[name] += stream.batch_size


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
    system, ranks = stage.system, machine.ranks
    feeds = feeds or {name: Feed(some, seed=seed, ranks=ranks) for name, some in stage.streams.items()}
    ends = {name: at.positions[name] + (stage.steps - at.step) * s.batch_size for name, s in stage.streams.items()}
    for group in stage.optimizer.param_groups:
        group.setdefault("peak", group["lr"])
    parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
    while at.step < stage.steps:
        _measure_what_is_wanted(stage, at, ledger, hooks)
        started = time.perf_counter()
        made = {name: feed.take(at.positions[name], until=ends[name]) for name, feed in feeds.items()}
        batches = {name: some.batch for name, some in made.items()}
        data_seconds = time.perf_counter() - started

        system.train()
        progress = Progress(step=stage.clock + at.step, steps=stage.clock + stage.steps, run_step=at.run_step)
        rate = _set_rates(stage, progress)
        terms = active(stage.terms, progress)
        counts = ranks.total(*(term.objective.count(batches[term.stream]) for term in terms))
        if not any(counts):
            raise DataError(f"step {at.step + 1} of stage {stage.name!r} asks for no token at all; check views and seq_len")
        how: dict[str, Any] = {"main": stage.stream.name, "rows": stage.micro_batch_size, "machine": machine}
        how |= {"lent": stage.lent, "address": (seed, stage.name, at.step)}
        found = step(system, terms, batches, counts=counts, progress=progress, **how)
        if not is_split(system):
            ranks.sum_gradients(parameters)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, stage.clip_norm or math.inf)))
        total = _over_ranks(found, sum((some.cost for some in made.values()), Cost()), ranks)
        if not (math.isfinite(total.loss) and math.isfinite(norm)):
            raise _not_finite(stage, at, loss=total.loss, norm=norm, rate=rate)
        stage.optimizer.step()
        stage.optimizer.zero_grad(set_to_none=True)
        system.after_step(progress)

        at.advance(stage.streams)
        seconds = time.perf_counter() - started
        _charge(stage, ledger, total, made, ranks=ranks, seconds=seconds - data_seconds)
        line = {
            **{"stage": stage.name, "step": at.step, "run_step": at.run_step},
            "tokens": ledger.costs[stage.name]["train"].positions,
            **{"loss_nats": total.loss, "learning_rate": rate, "gradient_norm": norm},
            **{"seconds": round(seconds, 6), "data_seconds": round(data_seconds, 6)},
            **({"parts": total.parts} if total.parts else {}),
        }
        _report(stage, at, line, feeds, ledger, hooks, ranks=ranks)


def _measure_what_is_wanted(stage: Stage, at: Counters, ledger: Ledger, hooks: Hooks) -> None:
    """Have everything measured that the mixture asks for before the rows of the next step are drawn."""
    stream = stage.stream
    while stream.mixture.wants and (due := stream.due(at.positions[stream.name] + stream.batch_size)) is not None:
        started = time.perf_counter()
        hooks.measure(stream.mixture.wants[0], due)
        ledger.charge(stage.name, "evaluate", Cost(seconds=time.perf_counter() - started))


def _set_rates(stage: Stage, progress: Progress) -> float:
    """Let every group's rate follow the schedule from its own peak; return the stage's."""
    factor = stage.schedule(progress)
    for group in stage.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return stage.learning_rate * factor


@dataclass(frozen=True, kw_only=True)
class _Total:
    """What a step found and cost, over all ranks."""

    loss: float
    parts: Mapping[str, float]
    forward: Cost
    making: Cost  # of its rows
    lent: Cost


def _over_ranks(found: StepLoss, making: Cost, ranks: Ranks) -> _Total:
    mean = reduce(add, torch.stack(found.means).tolist())  # `sum` rounds otherwise from Python 3.12 on
    loss, run, ideal, made_run, made_ideal, made_seconds, lent_run, lent_ideal = ranks.total(
        *(mean, found.cost.flops_run, found.cost.flops_ideal, making.flops_run, making.flops_ideal, making.seconds),
        *(found.lent.flops_run, found.lent.flops_ideal),
    )
    parts = ranks.total(*(reduce(add, torch.stack(values).tolist()) for values in found.parts.values()))
    return _Total(
        loss=loss,
        parts=dict(zip(found.parts, parts, strict=True)),
        forward=Cost(flops_run=run, flops_ideal=ideal),
        making=Cost(flops_run=made_run, flops_ideal=made_ideal, seconds=made_seconds),
        lent=Cost(flops_run=lent_run, flops_ideal=lent_ideal),
    )


def _charge(stage: Stage, ledger: Ledger, total: _Total, made: Mapping[str, Made], *, ranks: Ranks, seconds: float) -> None:
    """Charge a step; `seconds` are those of training alone."""
    tokens = {name: some.batch.size.positions * ranks.size for name, some in made.items()}
    ledger.charge(stage.name, "generate", total.making)
    trained = replace(total.forward.times(3), positions=sum(tokens.values()), seconds=seconds)
    ledger.charge(stage.name, "train", trained + stage.step_cost)
    if total.lent.flops_run:
        ledger.charge(stage.name, "lent", total.lent)
    for name, share in made.items():
        for draw in share.draws:
            ledger.show(stage.name, draw.source, tokens[name] // len(share.draws))


def _report(
    stage: Stage,
    at: Counters,
    line: dict[str, Any],
    feeds: Mapping[str, Feed],
    ledger: Ledger,
    hooks: Hooks,
    *,
    ranks: Ranks,
) -> None:
    """Evaluate, record and save what is due behind a step. Raises InterruptedRunError if a signal came."""
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


def _not_finite(stage: Stage, at: Counters, *, loss: float, norm: float, rate: float) -> "NotFiniteError":
    return NotFiniteError(
        f"the loss became {loss} (gradient norm {norm}) at step {at.step + 1} of stage {stage.name!r}, at learning "
        f"rate {rate:.3g}{_first_not_finite(stage.system)}; likely causes: a learning rate too high, no clipping, bfloat16 "
        f"with large weights, or what the step shows (`seedbed inspect RUN --step {at.run_step + 1}`). The last "
        "checkpoint is from before this step",
        run_step=at.run_step + 1,
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
