"""How long, how much memory, how many tokens: from the plan and a few measured passes, before anything is written.

Nothing larger than two blocks need be built, so a machine can tell what a model would need that it could never train. A cut
model, of the true width and vocabulary, runs with no block and with its first ones, on a few rows; both time and memory of a
pass are linear in blocks, and in rows. Where the whole model is small and its step quick, whole steps are timed instead.
The peak of memory is at the end of a forward pass, in a block's backward pass shortly after, or in the optimizer's step. On a
processor the copy of a checkpoint comes on top, also of one that is written when a stage is over: what a step has let go stays
with the process (measured with glibc).
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch

from seedbed.core.ledger import Ledger
from seedbed.core.records import Measurement, Row
from seedbed.core.stream import Stream
from seedbed.engine.feed import Feed
from seedbed.engine.placement import place
from seedbed.engine.precision import Machine, available_threads, settled_device, settled_shards
from seedbed.engine.ranks import Ranks
from seedbed.engine.system import System
from seedbed.engine.train import Counters, Hooks, train
from seedbed.evaluate.bits_per_byte import BitsPerByte
from seedbed.experiments.assemble import build_model, build_stage, build_system, initialize, machine_for, steps_of, trained_of
from seedbed.experiments.estimate.cut_model import LONG, SHARE, Measured, anywhere, measure
from seedbed.experiments.estimate.memory import memory_bytes, memory_limit, resident_bytes
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import StageSpec
from seedbed.experiments.run.artefact_facts import refuse_unmade
from seedbed.experiments.run.borders import open_lent
from seedbed.experiments.run.evaluations import ends, evaluations_of, material_of
from seedbed.experiments.streams import BuiltStream, build_stream
from seedbed.models.head_loss import chunk_rows

MIB = 2**20
EIGHT = 8  # ranks for which it is said what a model needs that is split over them ...
SHARED_FROM = 50_000_000  # ... of so many parameters
_QUICK = 10.0  # seconds that the timed steps of a whole model may take
_MADE = 32  # rows that are made for it


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage of one run, on one rank.

    `parts_mib` says what the peak of memory consists of, where the model computes: weights, gradients, moments, lent (the
    weights of lent models, if there are any), activations
    (what a micro-batch's forward pass leaves for its backward pass), working (logits and their gradients, or what a block needs
    while it goes backward), and on a processor also checkpoint (the copy that is being packed) and process (program and data).
    On a GPU these two are in `host_parts_mib`, and gradients that are made while activations go, as in a step of one
    micro-batch, count for what they need beyond these.
    """

    stage: str
    steps: int
    tokens: int
    parameters: int
    seconds: float  # of the stage: steps, waiting for rows, evaluation
    step_seconds: float
    data_seconds: float  # of making a step's rows; it happens beside the step before
    how: str  # "timed", or "from 2 of 24 layers"
    parts_mib: Mapping[str, float]
    host_parts_mib: Mapping[str, float]  # in the processor's memory, if the model computes elsewhere
    limit_mib: float | None  # of the memory that parts_mib is in
    host_limit_mib: float | None
    sharded_mib: float  # on each of EIGHT ranks with --shard all, where the model computes
    helps: tuple[str, ...]  # what would make it fit; empty if it does

    @property
    def memory_mib(self) -> float:
        """The peak where the model computes."""
        return sum(self.parts_mib.values())

    @property
    def host_mib(self) -> float:
        return sum(self.host_parts_mib.values())


def estimate(plan: RunPlan, *, ranks: int = 1) -> list[StageEstimate]:
    """Return what every stage needs on one of `ranks` ranks; what they tell each other takes time that is not counted.

    Raises ConfigError, as the run would, for a device that is not there or a number that does not divide the ranks.
    """
    refuse_unmade(plan)
    device = torch.device(settled_device(plan.device))
    shards = settled_shards(plan.shard, Ranks(size=ranks))
    with _nothing_changed():
        built = {name: build_stream(name, spec, device=device) for name, spec in plan.used_streams.items()}
        made = {name: _some_rows(b, seed=plan.seed) for name, b in built.items()}
        for later in ("torch._dynamo", "seedbed.report.page"):  # a run's optimizer and its page import them
            import_module(later)
        process = resident_bytes()
        return [_stage(plan, spec, built, made, process=process, ranks=ranks, shards=shards) for spec in plan.stages]


def _stage(
    plan: RunPlan,
    spec: StageSpec,
    streams: Mapping[str, BuiltStream],
    made: Mapping[str, tuple[list[Row], float]],
    *,
    process: float,
    ranks: int,
    shards: int,
) -> StageEstimate:
    built = streams[spec.stream]
    stream, data_seconds = built.stream, sum(made[name][1] for name in (spec.stream, *spec.further))
    rows = {name: made[name][0] for name in (spec.stream, *spec.further)}
    share = -(-stream.batch_size // ranks)  # rows of a rank's step
    micro = min(spec.micro_batch_size or share, share)
    with torch.device("meta"):
        whole = build_model(plan, spec, vocab_size=stream.vocab_size)
        system = build_system(plan, spec, whole)
    machine = machine_for(plan)
    limit, host_limit = memory_limit(machine.device), memory_bytes()
    steps = steps_of(plan, spec, system)
    trained = _trained(system, spec)
    found = measure(plan, spec, streams, machine, rows=rows, micro=micro, limit=limit, layers=len(whole.blocks))
    sizes = _Sizes.of(system, trained, found, micro=micro, seq_len=stream.seq_len, machine=machine)

    step = share * found.row_seconds(len(whole.blocks)) + found.update_seconds(len(whole.blocks))
    how = f"from {found.layers} of {len(whole.blocks)} layers"
    memory = partial(sizes.peak, process=process, several=share > micro)
    parts, host = memory(ranks=ranks, shards=shards)
    state = sum(parts[k] for k in ("weights", "gradients", "moments"))
    if 3 * step < _QUICK and (limit is None or (state < SHARE * limit and sum(parts.values()) < limit / 2)):
        trials = max(4, min(steps, round(1 / step)))
        step = _timed(plan, spec, streams, machine, trials=trials, rows=share)
        how = "timed"
    data = data_seconds * share / max(1, min(plan.data_workers, available_threads()))
    sharded, _ = memory(ranks=EIGHT, shards=EIGHT)
    read = _tokens_read(plan, spec, streams, steps=steps)
    seconds = steps * max(step, data) + read * step / (share * stream.seq_len) / 3
    if built.tokenizer is None:  # the rows that are read are made, each time
        seconds += read / stream.seq_len * data_seconds
    estimated = StageEstimate(
        stage=spec.name,
        steps=steps,
        tokens=steps * stream.batch_size * stream.seq_len,
        parameters=sum(p.numel() for p in system.parameters()),
        seconds=seconds,
        step_seconds=max(step, data),
        data_seconds=data,
        how=how,
        parts_mib={k: v / MIB for k, v in parts.items()},
        host_parts_mib={k: v / MIB for k, v in host.items()},
        limit_mib=None if limit is None else limit / MIB,
        host_limit_mib=None if host_limit is None else host_limit / MIB,
        sharded_mib=sum(sharded.values()) / MIB,
        helps=(),
    )
    return replace(estimated, helps=_helps(plan, estimated, micro=micro, shards=ranks > 1 and plan.shard != "none"))


def _trained(system: System, spec: StageSpec) -> set[str]:
    """Return the names of the parameters that a stage trains."""
    chosen = {id(p) for _, p in trained_of(spec, system)}
    return {name for name, p in system.named_parameters() if id(p) in chosen}


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Bytes of the whole model."""

    weights: float
    gradients: float
    moments: float
    outer: float  # weights outside of blocks
    block: float  # weights of one block
    kept: float  # by a micro-batch
    logits: float  # in the head's forward pass, beside what is kept of it
    beyond: float  # what a block's backward pass needs beyond what is kept
    updating: float
    lent: float
    on_device: bool  # not the processor

    @classmethod
    def of(cls, system: System, trained: set[str], found: Measured, *, micro: int, seq_len: int, machine: Machine) -> "_Sizes":
        model, roles = system.model, system.roles
        layers = len(model.blocks)
        named = dict(system.named_parameters())
        moments = sum(p.numel() * found.moments.get(anywhere(roles[n]), 8.0) for n, p in named.items() if n in trained)
        outer = sum(p.nbytes for n, p in named.items() if roles[n].layer is None)
        weights = sum(p.nbytes for p in named.values())
        width, vocabulary, positions = model.config.width, model.vocab_size, micro * seq_len
        head = width * vocabulary
        chunk = chunk_rows(positions, vocab_size=vocabulary, on_processor=machine.device.type == "cpu") * vocabulary
        casts = (2 * (chunk + 2 * head)) if machine.bfloat16 else 0  # of a chunk's gradient, the head, and a product
        again = 4 * head + (2 if machine.bfloat16 else 4) * positions * width  # the gradients of both, scaled
        return cls(
            weights=weights,
            gradients=sum(p.nbytes for n, p in named.items() if n in trained),
            moments=moments,
            outer=outer,
            block=(weights - outer) / max(1, layers),
            kept=found.kept.at(layers=layers, rows=micro),
            logits=max(4 * chunk + casts, again),
            beyond=found.beyond.at(layers=0, rows=micro),
            updating=found.updating,
            lent=found.lent,
            on_device=machine.device.type != "cpu",
        )

    def peak(self, *, process: float, several: bool, ranks: int, shards: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return the parts of the fullest moment where the model computes, and in the processor's memory beside it.

        `several` says that a step has more than one micro-batch.
        """
        weights, gradients, moments = (x / shards for x in (self.weights, self.gradients, self.moments))
        gathered = self.outer + 2 * self.block if shards > 1 else 0.0  # weights of a block, and its gradients
        summed = 2 * self.gradients if ranks > 1 and shards == 1 else 0.0  # laid end to end, to be summed over ranks
        working = max(self.logits, self.beyond, 0.0) + gathered
        # with one micro-batch gradients come while activations go; what a processor has let go stays with the process
        rest = gradients if several or not self.on_device else max(0.0, gradients - self.kept - working)
        backward = {"gradients": rest, "activations": self.kept, "working": working}
        update = {"gradients": gradients, "activations": 0.0, "working": max(self.updating, summed)}
        fullest = max((backward, update), key=lambda moment: sum(moment.values()))
        parts = {"weights": weights, "moments": moments, **fullest} | ({"lent": self.lent} if self.lent else {})
        packing = max(moments, weights - moments) if shards == 1 else 0.0  # a file is there twice while it is packed
        beside = {"checkpoint": weights + moments + packing, "process": process}
        return (parts, beside) if self.on_device else ({**parts, **beside}, {})


def _helps(plan: RunPlan, found: StageEstimate, *, micro: int, shards: bool) -> tuple[str, ...]:
    """Return what makes a stage smaller, the cheapest first, if it exceeds what the machine has."""
    over = found.limit_mib is not None and found.memory_mib > found.limit_mib
    if not over and not (found.host_limit_mib is not None and found.host_mib > found.host_limit_mib):
        return ()
    parts = found.parts_mib
    state = sum(parts[k] for k in ("weights", "gradients", "moments"))
    passing = parts["activations"] + parts["working"]
    said = []
    if passing > 0.1 * (state + passing):
        if micro > 1:
            said.append(f"--set stages.{found.stage}.micro_batch_size=N below {micro}")
        if not plan.recompute:
            said.append("--recompute")
    if state > 0.1 * (state + passing) and not shards:
        said.append(f"--shard all over several ranks ({found.sharded_mib / 1024:,.1f} GiB on each of {EIGHT})")
    return (*said, "a smaller preset")


def _some_rows(built: BuiltStream, *, seed: int) -> tuple[list[Row], float]:
    """Return some rows, and the seconds that one takes to make once everything is compiled and open."""
    rows = _rows(built, 0, count=1, seed=seed)
    started = time.perf_counter()
    while len(rows) < _MADE and time.perf_counter() - started < LONG:
        rows += _rows(built, len(rows), count=len(rows), seed=seed)
    return rows, (time.perf_counter() - started) / (len(rows) - 1)


def _rows(built: BuiltStream, start: int, *, count: int, seed: int) -> list[Row]:
    stream, measure = built.stream, _even(built)
    while stream.mixture.wants and (due := stream.due(start + count)) is not None:
        measure(stream.mixture.wants[0], due)
    return stream.rows(start, count=count, seed=seed)


def _timed(
    plan: RunPlan, spec: StageSpec, built: Mapping[str, BuiltStream], machine: Machine, *, trials: int, rows: int
) -> float:
    """Return the seconds of a step of the whole model, from a throw-away one."""
    model = build_model(plan, spec, vocab_size=built[spec.stream].stream.vocab_size)
    initialize(model, spec.model_copy(update={"embedding_std": None}), seed=plan.seed, old=None)
    system = build_system(plan, spec, model)
    place(system, machine)
    lent = open_lent(plan, spec, vocab_size=model.vocab_size, machine=machine)
    stage = build_stage(plan, spec, built, system, lent=lent)
    stream: Stream = replace(stage.stream, batch_size=rows)
    times: list[float] = []
    hooks = Hooks(
        record=partial(_note, times),
        evaluate=dict,
        save=lambda wait: None,
        measure=_even(built[spec.stream]),
        should_stop=lambda: False,
    )
    trial = replace(stage, stream=stream, steps=trials, checkpoint_every=10**9)
    trial = replace(trial, keep_every=None)
    at = Counters(positions=dict.fromkeys(trial.streams, 0))
    with ExitStack() as stack:
        feeds = {name: stack.enter_context(Feed(some, seed=plan.seed)) for name, some in trial.streams.items()}
        train(trial, at=at, seed=plan.seed, machine=machine, ledger=Ledger(), hooks=hooks, feeds=feeds)
    return statistics.median(times[1:])


def _even(built: BuiltStream) -> Callable[[str, int], None]:
    """Measurements for a mixture that asks for them: all sources alike."""

    def measure(name: str, position: int) -> None:
        values = dict.fromkeys(built.stream.sources, 0.0)
        built.stream.history.append(Measurement(step=0, position=position, name=name, values=values))

    return measure


def _note(times: list[float], line: dict[str, Any]) -> None:
    times.append(line["seconds"])


def _tokens_read(plan: RunPlan, spec: StageSpec, streams: Mapping[str, BuiltStream], *, steps: int) -> float:
    """Return the tokens that evaluations read in a stage, and a mixture's measurements."""
    built, last, read = streams[spec.stream], ends(plan, streams), 0.0
    material = material_of(plan, spec, built)
    for name, one in evaluations_of(plan).items():
        if one.why_not(spec, material):
            continue
        read += one.times(spec, steps=steps) * one.part.tokens(material, whole=False)
        if last[name] == spec.name and (plan.test or not one.part.reads_test):
            read += one.part.tokens(material, whole=True)
    if built.stream.mixture.wants is not None:
        decisions = steps * built.stream.batch_size // built.stream.mixture.wants[1]
        for source in built.corpora:
            text = BitsPerByte(over=source, valid_bytes=plan.streams[spec.stream].measured_bytes)
            read += decisions * text.tokens(material, whole=False)
    return read


@contextmanager
def _nothing_changed() -> Iterator[None]:
    """Leave random state, threads, determinism, denormals and environment as they were."""
    threads, variable = torch.get_num_threads(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    flushed = float(torch.tensor(1e-39) * 0.5) == 0  # there is no other way to ask
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=warns)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
            torch.set_flush_denormal(flushed)
            if variable is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
