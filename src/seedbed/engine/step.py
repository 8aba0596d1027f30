"""One training step: what is asked is counted, then each micro-batch goes forward and backward, and gradients add up.

The training loop, the estimate of what a run takes, and objectives that train inside of a step all use it. Each stream's batch
goes through the model once, with all inner states that its objectives ask for. A term whose weight is exactly 0 is not
computed: its taps are not taken and its lent models are not called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from seedbed.core.drawing import drawing
from seedbed.core.draws import key
from seedbed.core.protocols import Objective, Schedule
from seedbed.core.records import Batch, Context, Cost, Loss, Progress
from seedbed.engine.batches import pieces
from seedbed.engine.lent import Lent
from seedbed.engine.placement import before_backward, is_split
from seedbed.engine.precision import Machine
from seedbed.engine.system import System

Number: TypeAlias = float | Schedule


@dataclass(frozen=True, kw_only=True)
class Term:
    """A weighted objective of a stage. Its weight, and any number among the objective's settings, may follow a schedule."""

    name: str  # of its module and its lines in the metrics
    objective: Objective
    weight: Number = 1.0
    scheduled: Mapping[str, Schedule] = field(default_factory=dict)  # settings of the objective by name
    stream: str  # whose batch it scores

    def at(self, progress: Progress) -> "Term":
        """Return the term as it is at this step: all numbers."""
        weight = self.weight if isinstance(self.weight, int | float) else self.weight(progress)
        objective: Any = self.objective
        if self.scheduled:
            objective = replace(objective, **{name: schedule(progress) for name, schedule in self.scheduled.items()})
        return replace(self, weight=weight, objective=objective, scheduled={})


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """The mean loss of a step and its named parts, of this rank's rows but over the counts of all; and what it cost."""

    means: list[Tensor]  # of every micro-batch, to be added up
    parts: Mapping[str, list[Tensor]]
    cost: Cost  # of the forward passes of the system
    lent: Cost  # of those of lent models


def active(terms: Sequence[Term], progress: Progress) -> list[Term]:
    """Return the terms that count at this step."""
    return [term for term in (t.at(progress) for t in terms) if term.weight != 0]


def step(
    system: System,
    terms: Sequence[Term],
    batches: Mapping[str, Batch],
    *,
    counts: Sequence[float],
    main: str,
    rows: int,
    progress: Progress,
    machine: Machine,
    lent: Mapping[str, Lent] | None = None,
    address: tuple[int, str, int] = (0, "", 0),
) -> StepLoss:
    """Add the gradients of a step to those of the system's parameters.

    `counts` are those of the whole step, over all ranks, one a term; `main` names the stream that is cut into micro-batches of
    `rows` rows (others are cut into as many); `address` (seed, stage, step) names whatever is drawn inside.
    """
    lent = lent or {}
    cut = pieces(batches[main], rows=rows)
    others = {name: pieces(batch, rows=-(-batch.size.rows // len(cut))) for name, batch in batches.items() if name != main}
    means: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {}
    cost = Cost()
    for number, piece in enumerate(cut):
        here = {main: piece} | {name: some[number] for name, some in others.items() if number < len(some)}
        for name in {t.stream for t in terms} | {main}:
            cost += system.model.cost(here[name]) if name in here else Cost()
        here = {name: machine.fetched(batch) for name, batch in here.items()}
        place = number * machine.ranks.size + machine.ranks.rank
        torch.manual_seed(key(address[0], address[1], "dropout", address[2], place) % 2**63)
        with drawing(*address, place):  # a pass that is made again draws the same
            with machine.autocast():
                mean, found = mean_loss(
                    system,
                    terms,
                    here,
                    counts=counts,
                    main=main,
                    progress=progress,
                    lent=lent,
                    draws=_draws(machine, *address, place),
                )
            before_backward(system, last=number == len(cut) - 1)
            if mean.requires_grad:  # else this piece asks for nothing
                mean.backward()
        means.append(mean.detach())
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
    return StepLoss(means=means, parts=parts, cost=cost, lent=sum((model.settled() for model in lent.values()), Cost()))


def mean_loss(
    system: System,
    terms: Sequence[Term],
    batches: Mapping[str, Batch],
    *,
    counts: Sequence[float],
    main: str,
    progress: Progress,
    lent: Mapping[str, Lent],
    draws: Callable[[str], torch.Generator],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return sum(weight x sum of a term / its count), differentiable, and the detached parts of every term."""
    asked = [main, *dict.fromkeys(t.stream for t in terms if t.stream != main and t.stream in batches)]
    forward = {name: _forward(system.model, [t for t in terms if t.stream == name], batches[name]) for name in asked}
    mean = forward[main].hidden_BTD.new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = {}
    for term, count in zip(terms, counts, strict=True):
        if not count or term.stream not in forward:
            continue
        context = Context(
            model=system.model,
            progress=progress,
            draws=partial(_named, draws, term.name),
            own=dict(system.objectives).get(term.name),
            models={name: lent[name] for name in term.objective.models},
            batches=batches,
        )
        part: Loss = term.objective(forward[term.stream], batch=batches[term.stream], context=context)
        mean = mean + term.weight * part.sum_nats / count
        if len(terms) > 1:
            parts[term.name] = part.sum_nats.detach() / count
        parts |= {f"{term.name}.{name}": value.detach() / count for name, value in part.parts.items()}
    if is_split(system) and not mean.requires_grad:
        mean = mean + 0 * forward[main].hidden_BTD.sum()  # all ranks go backward together
    return mean, parts


def _forward(model: Any, terms: Sequence[Term], batch: Batch) -> Any:
    taps = tuple(dict.fromkeys(tap for t in terms for tap in t.objective.taps))
    plain = any(t.objective.plain for t in terms)
    return model(batch, taps=taps, plain=plain) if taps or plain else model(batch)


def _draws(machine: Machine, *address: int | str) -> Callable[[str], torch.Generator]:
    def generator(name: str) -> torch.Generator:
        return torch.Generator(machine.device).manual_seed(key(int(address[0]), *address[1:], "objective", name) % 2**63)

    return generator


def _named(draws: Callable[[str], torch.Generator], term: str, name: str) -> torch.Generator:
    return draws(f"{term}.{name}")
