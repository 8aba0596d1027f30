"""What a cut model shows of a whole one: seconds and bytes of a pass and of an optimizer's step, linear in blocks and in rows.

It has the true width and vocabulary, two blocks at most, and runs with none of them and with all, on one row and on two.
"""

import math
import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seedbed.core.drawing import drawing
from seedbed.core.patterns import first_match
from seedbed.core.records import Batch, Progress, Role, Row
from seedbed.engine.batches import collate
from seedbed.engine.placement import place
from seedbed.engine.precision import Machine
from seedbed.engine.step import active, mean_loss
from seedbed.engine.train import Stage
from seedbed.experiments.assemble import build_stage, build_system, initialize
from seedbed.experiments.parts import model_kind
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import StageSpec
from seedbed.experiments.run.borders import open_lent
from seedbed.experiments.streams import BuiltStream

CUT = 2  # blocks of the model that is measured
SHARE = 1 / 8  # of the memory, that a measured pass may keep
LONG = 1.0  # seconds of a pass from which on it is not repeated, and rows are not added


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What is linear in blocks and rows: outer + blocks x block, each with a fixed part and one a row."""

    outer: float
    outer_row: float
    block: float
    block_row: float

    def at(self, *, layers: int, rows: int) -> float:
        return self.outer + layers * self.block + rows * (self.outer_row + layers * self.block_row)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a cut model of `layers` blocks showed."""

    layers: int
    kept: _Line  # bytes that a forward pass leaves for the backward pass
    beyond: _Line  # bytes that the last block's backward pass needs beyond these (negative: it needs none)
    updating: float  # bytes that an optimizer's step needs for itself
    lent: float  # bytes of lent models
    moments: Mapping[Role, float]  # bytes a parameter, by role without layer
    row: tuple[float, float]  # seconds of a row: outer part, a block
    update: tuple[float, float]  # seconds of clipping and an optimizer's step: outer part, a block

    def row_seconds(self, layers: int) -> float:
        return self.row[0] + layers * self.row[1]

    def update_seconds(self, layers: int) -> float:
        return self.update[0] + layers * self.update[1]


def measure(
    plan: RunPlan,
    spec: StageSpec,
    built: Mapping[str, BuiltStream],
    machine: Machine,
    *,
    rows: Mapping[str, Sequence[Row]],
    micro: int,
    limit: float | None,
    layers: int,
) -> Measured:
    """Run a cut model: with no block and with its first ones, on one row and on two, then on as many as time allows."""
    stage = _cut_stage(plan, spec, built, replace(machine, compiled=False), layers=min(CUT, layers), limit=limit)
    model, most = _Cut(stage, machine), 1 if micro == 1 else 2
    cut = model.layers
    batches = {n: batches_of(rows, n, machine) for n in (1, most)}
    model.passed(cut, batches[1])  # gradients are there from now on, as in a step's later micro-batches
    once = model.passed(cut, batches[1])
    kept, beyond, seconds = {}, {}, {}
    for depth in (0, cut):
        for n, batch in batches.items():
            with Live() as live:
                seconds[depth, n] = model.passed(depth, batch, live)
            kept[depth, n], beyond[depth, n] = live.kept, live.beyond
    updates = {depth: _update(stage, model.blocks, depth) for depth in (0, cut)}
    with Live() as live:
        _update(stage, model.blocks, cut)
    updating = float(live.peak)
    moments = _held_moments(stage)
    row = {depth: seconds[depth, most] / most for depth in (0, cut)}
    if machine.compiled or once < LONG:
        fits = math.inf if limit is None else SHARE * limit / max(1.0, kept[cut, 1])
        n = int(max(1, min(micro, fits, LONG / once)))
        row = model.timed(batches_of(rows, n, machine), rows=n)
    return Measured(
        layers=cut,
        kept=_line(kept, cut, most),
        beyond=_line({(d, n): v for (d, n), v in beyond.items() if d == cut}, cut, most),
        updating=updating,
        lent=float(sum(v.nbytes for lent in stage.lent.values() for v in lent.model.state_dict().values())),
        moments=moments,
        row=(row[0], max(0.0, row[cut] - row[0]) / cut),
        update=(updates[0], max(0.0, updates[cut] - updates[0]) / cut),
    )


class _Cut:
    """A stage whose model is run with no block, or with its first ones."""

    def __init__(self, stage: Stage, machine: Machine) -> None:
        self._stage, self._machine = stage, machine
        self.blocks, self.layers = stage.model.blocks, len(stage.model.blocks)

    def passed(self, depth: int, batch: Mapping[str, Batch], live: "Live | None" = None) -> float:
        """Go forward and backward with so many blocks; return the seconds."""
        self._stage.model.blocks = self.blocks[:depth]
        started = time.perf_counter()
        one_pass(self._stage, batch, self._machine, live)
        return time.perf_counter() - started

    def timed(self, batch: Mapping[str, Batch], *, rows: int) -> dict[int, float]:
        """Return the seconds of a row without blocks and with all, as the machine computes: medians of some passes."""
        if self._machine.compiled:
            self._stage.model.blocks = self.blocks
            place(self._stage.system, replace(self._machine, recompute=False))
        self.passed(self.layers, batch)
        times: dict[int, list[float]] = {0: [], self.layers: []}
        begun = time.perf_counter()
        while len(times[self.layers]) < 3 or (len(times[self.layers]) < 9 and time.perf_counter() - begun < 2 * LONG):
            for depth, known in times.items():
                known.append(self.passed(depth, batch) / rows)
        return {depth: statistics.median(values) for depth, values in times.items()}


def _held_moments(stage: Stage) -> dict[Role, float]:
    """Return the bytes that the optimizer holds a parameter, by role without layer."""
    totals: dict[Role, list[float]] = defaultdict(lambda: [0.0, 0.0])
    roles = stage.system.roles
    for name, parameter in stage.system.named_parameters():
        held = [v for v in stage.optimizer.state.get(parameter, {}).values() if isinstance(v, Tensor)]
        if held:
            total = totals[anywhere(roles[name])]
            total[0] += sum(v.nbytes for v in held)
            total[1] += parameter.numel()
    return {role: held / count for role, (held, count) in totals.items()}


def _line(values: Mapping[tuple[int, int], float], cut: int, most: int) -> _Line:
    """Fit what was measured at (blocks, rows); without values at no block, it is one number for any number of blocks."""

    def along(depth: int) -> tuple[float, float]:
        slope = values[depth, most] / most if most == 1 else values[depth, 2] - values[depth, 1]
        return values[depth, 1] - slope, slope

    fixed, slope = along(cut)
    if (0, 1) not in values:
        return _Line(outer=fixed, outer_row=slope, block=0.0, block_row=0.0)
    outer, outer_row = along(0)
    return _Line(outer=outer, outer_row=outer_row, block=(fixed - outer) / cut, block_row=(slope - outer_row) / cut)


def _cut_stage(
    plan: RunPlan, spec: StageSpec, built: Mapping[str, BuiltStream], machine: Machine, *, layers: int, limit: float | None
) -> Stage:
    """Return a stage with a model of a few blocks; of one, if two would not fit. A model that cannot be cut stays whole."""
    vocab_size, kind = built[spec.stream].stream.vocab_size, model_kind(plan, spec)
    cut = kind.cut_to(layers)
    with torch.device("meta"):
        whole: Any = cut.build(vocab_size=vocab_size)
    if limit is not None and 16 * sum(p.numel() for p in whole.parameters()) >= limit / 2:
        cut = kind.cut_to(1)
    model: Any = cut.build(vocab_size=vocab_size)
    initialize(model, spec.model_copy(update={"embedding_std": None}), seed=plan.seed, old=None)
    system = build_system(plan, spec, model)
    place(system, machine)
    roles = list(system.roles.values())
    frozen = [p for p in spec.frozen if any(first_match((p,), r, num_layers=len(model.blocks)) for r in roles)]
    if all(first_match(tuple(frozen), r, num_layers=len(model.blocks)) for r in roles):
        frozen = []  # what is trained lies in blocks that were cut away
    lent = open_lent(plan, spec, vocab_size=model.vocab_size, machine=machine)
    return build_stage(plan, spec.model_copy(update={"frozen": frozen}), built, system, lent=lent)


def batches_of(rows: Mapping[str, Sequence[Row]], count: int, machine: Machine) -> dict[str, Batch]:
    """Return `count` rows of every stream as a batch on the device; a few rows are repeated."""
    return {name: machine.fetched(collate([some[i % len(some)] for i in range(count)])) for name, some in rows.items()}


def one_pass(stage: Stage, batches: Mapping[str, Batch], machine: Machine, live: "Live | None" = None) -> None:
    """Go forward and backward once, as the training loop does with a micro-batch; gradients add up."""
    stage.system.train()
    progress = Progress(step=0, steps=stage.steps)
    terms = active(stage.terms, progress)
    counts = [term.objective.count(batches[term.stream]) for term in terms]
    hooks: list[Any] = []
    if live is not None and len(stage.model.blocks):
        last = stage.model.blocks[-1]
        hooks = [last.register_full_backward_pre_hook(live.enter), last.register_full_backward_hook(live.leave)]
    with drawing(0, stage.name, 0):
        with machine.autocast():
            mean, _ = mean_loss(
                stage.system,
                terms,
                batches,
                counts=counts,
                main=stage.stream.name,
                progress=progress,
                lent=stage.lent,
                draws=lambda name: torch.Generator(machine.device).manual_seed(0),
            )
        if live is not None:
            live.keep()
        if mean.requires_grad:
            mean.backward()
    _finish_on(machine.device)
    for hook in hooks:
        hook.remove()


def _update(stage: Stage, blocks: Any, depth: int) -> float:
    """Return the seconds of clipping and stepping a model of `depth` blocks; a first step, which makes moments, not counted."""
    everything = [p for group in stage.optimizer.param_groups for p in group["params"]]
    stage.model.blocks = blocks[:depth]
    inside = {id(p) for p in stage.model.parameters()}
    stage.model.blocks = blocks
    outside = {p: p.grad for p in everything if id(p) not in inside}
    parameters = [p for p in everything if id(p) in inside]
    times: list[float] = []
    for parameter in outside:
        parameter.grad = None  # which an optimizer passes over
    while len(times) < 2 or (len(times) < 5 and sum(times) < LONG / 2):
        started = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        stage.optimizer.step()
        _finish_on(next(stage.model.parameters()).device)
        times.append(time.perf_counter() - started)
    for parameter, gradient in outside.items():
        parameter.grad = gradient
    return statistics.median(times[1:])


def _finish_on(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def anywhere(role: Role) -> Role:
    return Role(role.part, None, role.tensor)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that were made while it is on and are alive: `now`, and the most there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.kept, self.beyond = 0.0, 0.0
        self._entered = False
        self._most_inside = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self._meet(x, made=False)
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._meet(x, made=True)
        self.peak = max(self.peak, self.now)
        if self._entered:
            self._most_inside = max(self._most_inside, self.now)
        return out

    def _meet(self, tensor: Tensor, *, made: bool) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        self._known.add(address)
        size = storage.nbytes() if made else 0  # what was there before is not counted
        self.now += size
        weakref.finalize(storage, self._lose, address, size)

    def _lose(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size

    def keep(self) -> None:
        """Note what is alive after the forward pass."""
        self.kept = float(self.now)

    def enter(self, *_: Any) -> None:
        """The last block goes backward from here ..."""
        self._entered, self._most_inside = True, self.now

    def leave(self, *_: Any) -> None:
        """... to here."""
        self._entered = False
        self.beyond = self._most_inside - self.kept
