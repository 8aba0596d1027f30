"""The training loop of one stage, to be read from top to bottom.

A step: if the mixture asks for feedback before the next rows, measure and record it; take rows by their position in the
stream, count what is asked, add up gradients over micro-batches (each divided by the count of the whole step, so their size
changes nothing but rounding; with several ranks each makes its share), clip, step. Evaluation and checkpoints happen between
steps. Counting is done in the processor's memory, so a GPU is waited for once a step, where the loss is read.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch

from seedbed.core.draws import key
from seedbed.core.errors import DataError, InterruptedRunError, RunFailedError
from seedbed.core.ledger import Ledger
from seedbed.core.protocols import Objective, Schedule
from seedbed.core.records import Cost, Loss, Progress
from seedbed.core.stream import Stream
from seedbed.engine.batches import pieces
from seedbed.engine.feed import Feed
from seedbed.engine.placement import before_backward, is_split, whole
from seedbed.engine.precision import Machine


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that a stage needs, built and ready."""

    name: str
    stream: Stream
    model: Any  # a Model and a torch module
    objectives: Sequence[tuple[float, Objective]]  # weight, objective
    optimizer: torch.optim.Optimizer
    learning_rate: float
    schedule: Schedule
    steps: int
    micro_batch_size: int
    clip_norm: float | None
    evaluate_every: int
    checkpoint_every: int
    keep_every: int | None = None  # checkpoints at these steps of the run, beside
    evaluate_at: frozenset[int] = frozenset()  # further steps
    step_cost: Cost = field(default_factory=Cost)  # of the optimizer, where it is more than a pass over the weights
    clock: int = 0  # steps by which the schedule stands further on: those of the stages that it continues


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
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[bool], None]  # writes a checkpoint behind the next steps; True: waits until it is there
    should_stop: Callable[[], bool]
    # (name, position): records what a mixture asks for, before rows from there on are drawn
    measure: Callable[[str, int], None] = lambda name, position: _nobody_measures(name)


def _nobody_measures(name: str) -> None:
    raise AssertionError(f"the mixture asks for a measurement of {name}, and this run makes none")


def train(
    stage: Stage, *, at: Counters, seed: int, machine: Machine, ledger: Ledger, hooks: Hooks, feed: Feed | None = None
) -> None:
    """Train until the stage's last step, changing model, optimizer, counters and ledger in place.

    Raises RunFailedError before a step with a loss or gradient that is not finite, InterruptedRunError after the step in
    which a signal came (a checkpoint is saved then), DataError if a step asks for nothing.
    """
    model, stream = stage.model, stage.stream
    ranks = machine.ranks
    feed = feed or Feed(stream, seed=seed, ranks=ranks)
    end = at.positions[stream.name] + (stage.steps - at.step) * stream.batch_size
    parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
    while at.step < stage.steps:
        while stream.mixture.wants and (due := stream.due(at.positions[stream.name] + stream.batch_size)) is not None:
            started = time.perf_counter()
            hooks.measure(stream.mixture.wants[0], due)
            ledger.charge(stage.name, "evaluate", Cost(seconds=time.perf_counter() - started))
        started = time.perf_counter()
        batch, making, draws = feed.take(at.positions[stream.name], until=end)
        data_seconds = time.perf_counter() - started

        model.train()
        progress = Progress(step=stage.clock + at.step, steps=stage.clock + stage.steps, run_step=at.run_step)
        rate = stage.learning_rate * stage.schedule(progress)
        for group in stage.optimizer.param_groups:
            group["lr"] = rate
        used = [(weight, objective) for weight, objective in stage.objectives if weight != 0]
        counts = ranks.total(*(objective.count(batch) for _, objective in used))
        terms = [(weight, objective, count) for (weight, objective), count in zip(used, counts, strict=True)]
        if not any(counts):
            raise DataError(f"step {at.step + 1} of stage {stage.name!r} asks for no token at all; check views and seq_len")
        means, forward = [], Cost()
        cut = pieces(batch, rows=stage.micro_batch_size)
        for number, piece in enumerate(cut):
            size, length = piece.tokens_BT.shape
            forward += model.cost(rows=size, seq_len=length, counted=int((piece.weights_BT > 0).sum()))
            piece = machine.fetched(piece)
            torch.manual_seed(key(seed, stage.name, "dropout", at.step, number * ranks.size + ranks.rank) % 2**63)
            with machine.autocast():
                outputs = model(piece)
                mean = outputs.hidden_BTD.new_zeros((), dtype=torch.float32)
                for weight, objective, count in terms:
                    if count:
                        part: Loss = objective(outputs, batch=piece)
                        mean = mean + weight * part.sum_nats / count
            if is_split(model) and not mean.requires_grad:
                mean = mean + 0 * outputs.hidden_BTD.sum()  # all ranks go backward together
            before_backward(model, last=number == len(cut) - 1)
            if mean.requires_grad:  # else this piece asks for nothing
                mean.backward()
            means.append(mean.detach())
        if not is_split(model):
            ranks.sum_gradients(parameters)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, stage.clip_norm or math.inf)))
        loss = reduce(add, torch.stack(means).tolist())  # `sum` rounds otherwise from Python 3.12 on
        loss, run, ideal, made_run, made_ideal, made_seconds = ranks.total(
            loss, forward.flops_run, forward.flops_ideal, making.flops_run, making.flops_ideal, making.seconds
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFiniteError(
                f"the loss became {loss} (gradient norm {norm}) at step {at.step + 1} of stage {stage.name!r}, at learning "
                f"rate {rate:.3g}{_first_not_finite(model)}; likely causes: a learning rate too high, no clipping, bfloat16 "
                f"with large weights, or what the step shows (`seedbed inspect RUN --step {at.run_step + 1}`). The last "
                "checkpoint is from before this step",
                run_step=at.run_step + 1,
            )
        stage.optimizer.step()
        stage.optimizer.zero_grad(set_to_none=True)

        tokens = batch.tokens_BT.numel() * ranks.size
        at.step += 1
        at.run_step += 1
        at.positions[stream.name] += stream.batch_size
        seconds = time.perf_counter() - started
        ledger.charge(stage.name, "generate", Cost(flops_run=made_run, flops_ideal=made_ideal, seconds=made_seconds))
        trained = Cost(positions=tokens, flops_run=3 * run, flops_ideal=3 * ideal, seconds=seconds - data_seconds)
        ledger.charge(stage.name, "train", trained + stage.step_cost)
        for draw in draws:
            ledger.show(stage.name, draw.source, tokens // stream.batch_size)
        line = {
            "stage": stage.name,
            "step": at.step,
            "run_step": at.run_step,
            "tokens": at.step * tokens,
            "loss_nats": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": round(seconds, 6),
            "data_seconds": round(data_seconds, 6),
        }
        if at.step % stage.evaluate_every == 0 or at.step == stage.steps or at.step in stage.evaluate_at:
            started = time.perf_counter()
            feed.rest()
            line |= hooks.evaluate()
            ledger.charge(stage.name, "evaluate", Cost(seconds=time.perf_counter() - started))
        hooks.record(line)
        stopped = ranks.any(hooks.should_stop())
        kept = stage.keep_every is not None and at.run_step % stage.keep_every == 0
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


def _first_not_finite(model: Any) -> str:
    """Name the first parameter whose value or gradient is not finite, from the embedding on."""
    for name, parameter in model.named_parameters():
        for what, values in (("the weights", parameter), ("the gradient", parameter.grad)):
            if values is not None and not bool(whole(torch.isfinite(values).all())):
                return f", first in {what} of {name}"
    return ""
