"""One run, from its plan to its folder, to be read from top to bottom.

For each stage: build stream and model, take weights over the border, train, evaluate. At the end the test part of every
held-out set is read, once. A run folder holds recipe.yaml, resolved.yaml, env.json, metrics.jsonl, log.txt, checkpoints/,
items.jsonl, final.json and report.html (and feedback.jsonl, if a mixture asked for any); whatever is in it was written whole.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from seedbed.core.draws import key
from seedbed.core.durable import check_place, locked, write_json, write_whole
from seedbed.core.errors import InterruptedRunError, RefusedError, RunFailedError, StoppedRunError, is_out_of_memory
from seedbed.core.ledger import Ledger
from seedbed.core.records import Cost
from seedbed.core.run_record import RUNS, RunRecord
from seedbed.core.variables import among_ranks, left_over, number_of
from seedbed.engine.checkpoints import FINAL, latest, load_checkpoint, newest_whole, prune, read_state
from seedbed.engine.feed import Feed
from seedbed.engine.placement import place, reading
from seedbed.engine.precision import Machine, settled_device, settled_shards
from seedbed.engine.ranks import Ranks, join_ranks, together
from seedbed.engine.saving import Saver
from seedbed.engine.train import Counters, Hooks, NotFiniteError, train
from seedbed.experiments.assemble import build_model, build_stage, initialize, layout_free, machine_for
from seedbed.experiments.borders import carry_moments, cross, described, open_giver
from seedbed.experiments.callbacks import Callbacks, taken_from
from seedbed.experiments.carried import carry
from seedbed.experiments.environment import commit, environment
from seedbed.experiments.feedback import Feedback
from seedbed.experiments.journal import Log, Metrics
from seedbed.experiments.memory import check_fits
from seedbed.experiments.readings import (
    against_floors,
    check_held_out,
    floor_line,
    framed,
    left_out,
    mixture_facts,
    packing_facts,
    test_numbers,
    text_lost,
)
from seedbed.experiments.recipe import RunPlan, StageSpec, read_plan
from seedbed.experiments.streams import BuiltStream, build_stream, open_stream
from seedbed.experiments.tracking import Trackers
from seedbed.writers.sample import Sample

_ONE_SIGNAL = 5.0  # seconds in which launchers and schedulers may say the same to a rank twice
_FOUND = ("transfer", "givers", "clock", "stage0", "borders", "waited")  # what a run finds out on its way
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT = "SEEDBED_PARENT"  # process number of a study; a run whose study is gone stops as if by a signal


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


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """How this sitting computes, where it is another than the plan or the checkpoint says; it moves no row.

    Micro-batches and ranks change a run by rounding alone if all its parts are layout-free. If they are not, and for threads
    of such a run too, `inexact` must allow it.
    """

    threads: int | None = None
    micro_batch_size: int | None = None  # of every stage
    data_workers: int | None = None
    inexact: bool = False
    shard: str | None = None
    track: tuple[str, ...] = ()


def execute(folder: Path, *, say: Callable[[str], None] = print, sitting: Sitting | None = None) -> RunResult:
    """Start, or go on with, the run of a folder until it is finished, and return its result.

    A finished run is returned as it is. Raises RunFailedError for a loss that is not finite (recorded in final.json first),
    StoppedRunError when nothing can be written or a worker was killed (not recorded), InterruptedRunError after a signal,
    RefusedError for what would not be the same run, and whatever its data raise.
    """
    plan = read_plan(folder)
    sitting = sitting or Sitting()
    ranks = join_ranks()
    with locked(folder) if ranks.first else nullcontext(), together():
        done = ranks.from_first(finished(folder) if ranks.first else None)
        if done is not None and done["status"] == "done":
            if ranks.first and not (folder / "report.html").is_file():
                _write_page(folder)
            return RunResult(folder=folder, final=done)
        with (
            _Signals() as signals,
            Log(folder / "log.txt", say) if ranks.first else nullcontext(_silent) as log,
            Trackers(sitting.track if ranks.first else (), say=log) as trackers,
        ):
            try:
                with Saver(ranks) as saver:
                    final = ranks.from_first(
                        _run(
                            plan,
                            folder,
                            sitting=sitting,
                            ranks=ranks,
                            signals=signals,
                            log=log,
                            trackers=trackers,
                            saver=saver,
                        )
                    )
            except StoppedRunError as e:  # nothing about the method: not recorded as a result, to be resumed
                log(f"stopped: {e}")
                raise
            except RunFailedError as e:
                log(f"failed: {e}")
                if ranks.first:
                    facts = {"run_step": e.run_step} if isinstance(e, NotFiniteError) else {}
                    write_json(folder / "final.json", {"status": "failed", "error": str(e), **facts, **_identity(plan)})
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


def _silent(line: str) -> None:
    """Say nothing: the first rank speaks."""


def finished(folder: Path) -> dict[str, Any] | None:
    """Return final.json of a run that is done or has failed."""
    return RunRecord(folder).final()


def _run(
    plan: RunPlan,
    folder: Path,
    *,
    sitting: Sitting,
    ranks: Ranks,
    signals: "_Signals",
    log: Callable[[str], None],
    trackers: Trackers,
    saver: Saver,
) -> dict[str, Any] | None:
    """Return final.json (on the first rank)."""
    newest = newest_whole(folder / "checkpoints", say=log) if ranks.first else None
    last: Path | None = ranks.from_first(newest[0] if newest else None)
    state = read_state(last) if last else None
    layout = _layout(plan, sitting, ranks, known=state["layout"] if state else None, log=log)
    machine = machine_for(plan, threads=layout["threads"], ranks=ranks, shard=sitting.shard or plan.shard)
    layout["threads"] = machine.threads
    facts = environment(machine)
    if ranks.first:
        write_json(folder / "env.json", facts)
    kind = "bfloat16" if machine.bfloat16 else "float32"
    log(
        f"{plan.name}, arm {plan.arm}, seed {plan.seed}: {machine.device.type}, {kind}, {machine.threads} thread(s)"
        f"{_described(machine)}"
    )
    if left_over():
        log(left_over())
    if state:
        _check_same(plan, state, facts, log=log)
        log(f"going on after step {state['counters']['run_step']}: weights, moments, clock and rows as they were")

    streams = {spec.stream: plan.streams[spec.stream] for spec in plan.stages}
    built = {name: build_stream(name, spec, device=machine.device) for name, spec in streams.items()}
    data = {name: b.fingerprint() for name, b in built.items()}
    for b in built.values():
        for source, count in left_out(b).items():
            log(f"left out of {source}: {', '.join(f'{n:,} {reason}' for reason, n in count.items())}")
        for source, used in packing_facts(b).items():
            if max(used["padding_share"], used["cropped_share"]) >= 0.001:
                log(
                    f"packing {source}: {used['padding_share']:.2%} padding, {used['cropped_share']:.2%} of the tokens left out"
                )
    if state and state["data"] != data:
        changed = ", ".join(name for name in data if state["data"].get(name) != data[name])
        raise RefusedError(
            f"the data of stream {changed} changed since the checkpoint was written; put them back, "
            "or start a new run with another --out"
        )
    counters = Counters(**state["counters"]) if state else Counters(positions=dict.fromkeys(built, 0))
    ledger = Ledger.from_json(state["ledger"]) if state else Ledger()
    extras: dict[str, Any] = state["extras"] if state else {n: {} for n in _FOUND}
    extras.setdefault("waited", {})
    for b in built.values():
        check_held_out(plan, b)
    check_fits(plan, built, ranks, shard=sitting.shard)
    if lost := text_lost(plan, built[plan.stages[-1].stream]):
        log(f"note: {lost}")
    ranks.wait()  # nobody writes below while another still reads
    if ranks.first:
        carry(folder, plan, built[plan.stages[-1].stream])
    feedback = Feedback(
        folder,
        {name: b.stream for name, b in built.items()},
        until=counters.run_step,
        known=state.get("feedback", "") if state else "",
        writes=ranks.first,
    )
    if ranks.first:
        (folder / "final.json").unlink(missing_ok=True)  # of a failure; nothing refused to go on, so what comes now counts
    trackers.open(folder, plan=plan, from_step=counters.run_step)
    metrics = (
        Metrics(folder / "metrics.jsonl", keep=counters.run_step, say=log, follow=trackers.record) if ranks.first else None
    )

    model: Any = None
    while counters.stage < len(plan.stages):
        spec = plan.stages[counters.stage]
        stream = built[spec.stream]
        model = build_model(plan, vocab_size=stream.stream.vocab_size)
        going_on = state is not None and counters.step > 0
        crosses = spec.weights is not None and not going_on
        giver = open_giver(plan, spec, folder=folder, borders=extras["borders"]) if crosses else None
        actions: dict[str, str] = {}
        handed_on = any(s.weights and s.weights.from_ == spec.name and s.weights.fresh for s in plan.stages)
        initialize(model, spec, seed=plan.seed, old=giver.weights if giver else None, handed_on=handed_on)
        if giver is not None:
            if ranks.any(ranks.from_first(giver.fingerprint) != giver.fingerprint):
                raise StoppedRunError(f"{giver.name} changed while the ranks read it; resume, and they read it again")
            actions = cross(model, spec, giver, seed=plan.seed)
            put = "weights" in spec.carry
            extras["transfer"][spec.name] = actions if put else dict.fromkeys(actions, "fresh")
            extras["givers"][spec.name] = {"from": giver.name, "carry": spec.carry, "sha256": giver.fingerprint}
            extras["clock"][spec.name] = giver.clock
        place(model, machine)
        saver.prepare(model)
        micro, clock = layout["micro_batch_size"].get(spec.name), extras["clock"].get(spec.name, 0)
        stage = build_stage(plan, spec, stream, model, micro_batch_size=micro, clock=clock)
        if giver is not None:
            moments = carry_moments(model, stage.optimizer, giver, actions)
            log(described(spec, giver, actions, moments=moments, steps=stage.steps))
        if going_on and last is not None:
            load_checkpoint(last, model=model, optimizer=stage.optimizer)
        state = giver = None

        back = Callbacks(
            plan=plan,
            spec=spec,
            stage=stage,
            stream=stream,
            machine=machine,
            folder=folder,
            counters=counters,
            ledger=ledger,
            feedback=feedback,
            metrics=metrics,
            saver=saver,
            extras=extras,
            facts={"plan": plan.fingerprint(), "data": data, "layout": layout, "environment": _exactness(facts)},
        )
        hooks = Hooks(
            record=metrics or _unrecorded,
            evaluate=back.evaluate,
            save=back.save,
            should_stop=signals.stopped,
            measure=back.measure,
        )
        log(f"stage {spec.name}: {stage.steps} steps of {stream.stream.batch_size} x {stream.stream.seq_len} tokens")
        with Feed(
            stream.stream,
            seed=plan.seed,
            workers=plan.data_workers if sitting.data_workers is None else sitting.data_workers,
            opener=partial(open_stream, spec.stream, plan.streams[spec.stream]),
            ranks=ranks,
            stopping=signals.stopped,
            pinned=machine.device.type == "cuda",
        ) as feed:
            train(stage, at=counters, seed=plan.seed, machine=machine, ledger=ledger, hooks=hooks, feed=feed)
        if metrics is not None:
            extras["waited"][spec.name] = waited = metrics.waited(spec.name)
            log(f"stage {spec.name} waited for its rows in {waited:.2%} of its steps' time")
        if back.reads and framed(stream) and spec.name not in extras["stage0"]:
            started = time.perf_counter()
            with reading(model, machine):
                extras["stage0"][spec.name] = found = against_floors(plan, spec, stream, model, machine)
            cost = model.cost(rows=spec.floor_rows, seq_len=stream.stream.seq_len)
            ledger.charge(spec.name, "evaluate", cost + Cost(seconds=time.perf_counter() - started))
            log(floor_line(spec.name, found))
        ranks.wait()  # the border's checkpoint is there for all
        counters.stage += 1
        counters.step = 0
    if metrics is None:
        return None
    metrics.close()
    extras["spikes"] = metrics.spikes
    if machine.shards > 1:
        model = _whole_model(plan, folder, vocab_size=built[plan.stages[-1].stream].stream.vocab_size).to(machine.device)
    return _finish(plan, folder, model=model, built=built, ledger=ledger, extras=extras, log=log)


def _whole_model(plan: RunPlan, folder: Path, *, vocab_size: int) -> Any:
    """Return the model of a run's last checkpoint, whole, whatever that is called by now."""
    last = latest(folder / "checkpoints")
    assert last is not None, "a stage ends with one"
    model = build_model(plan, vocab_size=vocab_size)
    load_checkpoint(last, model=model)
    return model


def _described(machine: Machine) -> str:
    """Say what else was chosen for the machine, for the log."""
    said = [
        "compiled" if machine.compiled else "",
        "activations made again" if machine.recompute else "",
        f"{machine.ranks.size} ranks" if machine.ranks.size > 1 else "",
        f"weights split over {machine.shards}" if machine.shards > 1 else "",
    ]
    return "".join(f", {part}" for part in said if part)


def _unrecorded(line: dict[str, Any]) -> None:
    """Write nothing: the first rank writes."""


def _layout(
    plan: RunPlan, sitting: Sitting, ranks: Ranks, *, known: dict[str, Any] | None, log: Callable[[str], None]
) -> dict[str, Any]:
    """Return threads, micro-batches and ranks: the sitting's, else the checkpoint's, else the plan's.

    Raises RefusedError for others than the checkpoint's if a part of the run draws or measures by micro-batch or rank.
    """
    before = known or {
        "threads": plan.threads,
        "micro_batch_size": {s.name: s.micro_batch_size or _rows(plan, s) for s in plan.stages},
        "ranks": ranks.size,
    }
    wanted = {"threads": sitting.threads or before["threads"], "micro_batch_size": dict(before["micro_batch_size"])}
    if sitting.micro_batch_size is not None:
        wanted["micro_batch_size"] = {s.name: min(sitting.micro_batch_size, _rows(plan, s)) for s in plan.stages}
    wanted["ranks"] = ranks.size
    other = [f"{name} {before[name]} -> {wanted[name]}" for name in wanted if wanted[name] != before[name]]
    if other and known is not None:
        said = f"another layout than the checkpoint's ({'; '.join(other)})"
        if layout_free(plan):
            log(f"note: {said}: every part of this run is layout-free, so it goes on the same but for rounding")
        elif sitting.inexact:
            log(f"note: {said}, as --inexact allows: the result will not be that of an undisturbed run")
        else:
            raise RefusedError(
                f"{said} changes the random draws inside this run's model or objectives, so it would not be the same run; "
                "leave the layout as it was, or add --inexact to go on without exactness"
            )
    return wanted


def _rows(plan: RunPlan, spec: StageSpec) -> int:
    return plan.streams[spec.stream].batch_size


def _finish(
    plan: RunPlan,
    folder: Path,
    *,
    model: Any,
    built: dict[str, BuiltStream],
    ledger: Ledger,
    extras: dict[str, Any],
    log: Callable[[str], None],
) -> dict[str, Any]:
    stream = built[plan.stages[-1].stream]
    final: dict[str, Any] = {"status": "done", **_identity(plan), "commit": commit()}
    if stream.tokenizer is not None:
        if plan.evaluate.test:
            final |= test_numbers(plan, folder, stream, model, ledger=ledger, log=log)
        writer = Sample(model=model, tokenizer=stream.tokenizer, seq_len=stream.stream.seq_len)
        prompts = plan.evaluate.samples
        texts = writer.write(prompts, new_tokens=plan.evaluate.sample_tokens, seed=plan.seed)
        final["samples"] = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    final |= {
        "stage0": extras["stage0"],
        "transfer": extras["transfer"],
        "givers": extras["givers"],
        "spikes": extras["spikes"],
        "waited": extras["waited"],
        "ledger": ledger.to_json(),
        "data": {name: b.fingerprint() for name, b in built.items()},
        "mixture": mixture_facts(plan, built, ledger),
        "packing": {name: packing_facts(b) for name, b in built.items() if b.corpora},
        "left_out": {name: found for name, b in built.items() if (found := left_out(b))},
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_without_embeddings": sum(
            p.numel() for n, p in model.named_parameters() if model.roles[n].part not in ("embedding", "head")
        ),
    }
    for name, b in built.items():
        for source_name, source in b.stream.sources.items():
            if not hasattr(source, "exhibit"):
                continue
            shown = source.exhibit(seed=key(plan.seed, name, source_name))  # the seed of the training rows
            write_whole(folder / "exhibits" / f"{name}.png", shown.picture)
            write_json(folder / "exhibits" / f"{name}.json", dict(shown.facts))
    _as_final(folder)
    write_json(folder / "final.json", final)
    prune(folder / "checkpoints", keep=taken_from(plan, extras["borders"]), last=0, every=plan.keep_every)
    _write_page(folder)
    return final


def _write_page(folder: Path) -> None:
    from seedbed.report.page import write_run_page  # which brings a drawing library: not before there is something to draw

    write_run_page(folder)


def _as_final(folder: Path) -> None:
    """Name the last checkpoint "final"; a run killed in between finds it under that name."""
    last = latest(folder / "checkpoints")
    if last is not None and last.name != FINAL:
        os.replace(last, last.with_name(FINAL))


def _identity(plan: RunPlan) -> dict[str, Any]:
    return {"name": plan.name, "arm": plan.arm, "seed": plan.seed, "plan": plan.fingerprint()}


def _exactness(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts under which a resume is exact to the bit."""
    return {
        k: facts[k] if k != "packages" else {p: facts[k][p] for p in ("torch", "numpy", "numba")}
        for k in ("packages", "cpu_capability", "products", "precision", "device", "compiled")
    }


def _check_same(plan: RunPlan, state: dict[str, Any], facts: dict[str, Any], *, log: Callable[[str], None]) -> None:
    if state["plan"] != plan.fingerprint():
        raise RefusedError(
            "the recipe in this folder (resolved.yaml) was changed since its checkpoint was written; put it back, or start a "
            "new run with another --out"
        )
    differing = [k for k, v in state["environment"].items() if _exactness(facts)[k] != v]
    if differing:
        log(f"note: {', '.join(differing)} changed since the checkpoint was written; the result will not be exact to the bit")


def _no_space(error: OSError, folder: Path) -> StoppedRunError:
    again = f"go on with `seedbed resume {folder}`: the last checkpoint is whole"
    if error.errno == errno.ENOSPC:
        return StoppedRunError(f"no space left while writing to {folder}; free some and {again}")
    return StoppedRunError(
        f"could not read or write {error.filename or folder}: {error.strerror or error}; mend that and {again}"
    )


class _Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into a wish to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self._wanted, self._since = False, 0.0
        self._parent = number_of(PARENT, default=0)
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        with suppress(ValueError):  # not in the main thread: signals stay as they are
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._old[number] = signal.signal(number, self._want)
        return self

    def _want(self, number: int, frame: object) -> None:
        again = time.monotonic() - self._since > _ONE_SIGNAL or not among_ranks()
        if self._wanted and again:
            raise InterruptedRunError("stopped at once by a second signal; the last checkpoint is whole")
        if not self._wanted:
            self._since = time.monotonic()
        self._wanted = True
        with suppress(OSError):  # a terminal that hung up
            print("stopping after this step (once more stops at once) ...", file=sys.stderr, flush=True)

    def stopped(self) -> bool:
        return self._wanted or bool(self._parent and os.getppid() != self._parent)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
