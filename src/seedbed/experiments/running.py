"""A run while it runs: recovered, its data opened, then stage by stage, to be read from top to bottom.

For each stage: build the model, take weights over the border, train, evaluate. Then the branches, then the end (finish.py).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from seedbed.core.durable import write_json
from seedbed.core.errors import RefusedError, StoppedRunError
from seedbed.core.records import Cost, blank
from seedbed.core.variables import left_over
from seedbed.engine.checkpoints import latest, load_checkpoint, newest_whole, read_state
from seedbed.engine.feed import Feed
from seedbed.engine.placement import place, reading
from seedbed.engine.precision import Machine
from seedbed.engine.ranks import Ranks
from seedbed.engine.saving import Saver
from seedbed.engine.system import System
from seedbed.engine.train import Counters, Hooks, Stage, train
from seedbed.experiments.assemble import build_model, build_stage, build_system, initialize, machine_for
from seedbed.experiments.borders import carry_moments, check_lent, cross, described, open_giver, open_lent
from seedbed.experiments.branches import SideRun, run_branches
from seedbed.experiments.callbacks import Callbacks
from seedbed.experiments.carried import carry
from seedbed.experiments.environment import environment
from seedbed.experiments.feedback import Feedback
from seedbed.experiments.finish import finish
from seedbed.experiments.journal import Metrics
from seedbed.experiments.layout import Sitting, described_machine, settled_layout
from seedbed.experiments.memory import check_fits
from seedbed.experiments.readings import against_floors, check_held_out, floor_line, framed, left_out, packing_facts, text_lost
from seedbed.experiments.recipe import RunPlan, StageSpec
from seedbed.experiments.run_state import RunState
from seedbed.experiments.signals import Signals
from seedbed.experiments.streams import BuiltStream, build_stream, open_stream
from seedbed.experiments.tracking import Trackers


@dataclass(kw_only=True)
class Running:
    """What is open while a run's sitting lasts; `side_run` makes and executes a branch."""

    plan: RunPlan
    folder: Path
    sitting: Sitting
    ranks: Ranks
    signals: Signals
    log: Callable[[str], None]
    trackers: Trackers
    saver: Saver
    side_run: SideRun
    machine: Machine = field(init=False)
    layout: dict[str, Any] = field(init=False)
    facts: dict[str, Any] = field(init=False)  # of the environment
    built: dict[str, BuiltStream] = field(init=False)
    data: dict[str, str] = field(init=False)  # fingerprints by stream
    feedback: Feedback = field(init=False)
    metrics: Metrics | None = field(init=False)  # on the first rank

    def run(self) -> dict[str, Any] | None:
        """Go on until the run is finished; return final.json (on the first rank)."""
        last, saved = self._recovered()
        self._settle(saved)
        self._open_data(saved)
        begin = {name: self.plan.positions.get(name, 0) for name in self.built}
        state = RunState.from_json(saved) if saved else RunState(counters=Counters(positions=begin))
        self._open_records(state, known=saved.get("feedback", "") if saved else "")
        model: Any = None
        while state.counters.stage < len(self.plan.stages):
            model = self._stage(state, last=last if state.counters.step > 0 else None)
        self.saver.wait()
        branches = run_branches(
            self.plan, self.folder, state=state, ranks=self.ranks, side_run=self.side_run, sitting=self.sitting, log=self.log
        )
        if self.metrics is None:
            return None
        self.metrics.close()
        stream = self.built[self.plan.stages[-1].stream].stream
        if self.machine.shards > 1:
            model = whole_model(self.plan, self.folder, vocab_size=stream.vocab_size).to(self.machine.device)
        return finish(
            self.plan,
            self.folder,
            model=model,
            built=self.built,
            state=state,
            spikes=self.metrics.spikes,
            branches=branches,
            log=self.log,
        )

    def _recovered(self) -> tuple[Path | None, dict[str, Any] | None]:
        """Return the newest whole checkpoint, and what it says; None before the first."""
        newest = newest_whole(self.folder / "checkpoints", say=self.log) if self.ranks.first else None
        last: Path | None = self.ranks.from_first(newest[0] if newest else None)
        return last, read_state(last) if last else None

    def _settle(self, saved: dict[str, Any] | None) -> None:
        """Decide layout and machine, and say so. Raises RefusedError for what would not be the same run."""
        plan, sitting, log = self.plan, self.sitting, self.log
        self.layout = settled_layout(plan, sitting, self.ranks, known=saved["layout"] if saved else None, log=log)
        shard = sitting.shard or plan.shard
        self.machine = machine = machine_for(plan, threads=self.layout["threads"], ranks=self.ranks, shard=shard)
        self.layout["threads"] = machine.threads
        self.facts = environment(machine)
        if self.ranks.first:
            write_json(self.folder / "env.json", self.facts)
        kind = "bfloat16" if machine.bfloat16 else "float32"
        log(
            f"{plan.name}, arm {plan.arm}, seed {plan.seed}: {machine.device.type}, {kind}, {machine.threads} thread(s)"
            f"{described_machine(machine)}"
        )
        if left_over():
            log(left_over())
        if saved:
            _check_same(plan, saved, self.facts, log=log)
            log(f"going on after step {saved['counters']['run_step']}: weights, moments, clock and rows as they were")

    def _open_data(self, saved: dict[str, Any] | None) -> None:
        """Build the streams and look at all that will be read. Raises RefusedError if data changed, or what they raise."""
        plan, log = self.plan, self.log
        self.built = {name: build_stream(name, spec, device=self.machine.device) for name, spec in plan.used_streams.items()}
        self.data = {name: b.fingerprint() for name, b in self.built.items()}
        for b in self.built.values():
            for source, count in left_out(b).items():
                log(f"left out of {source}: {', '.join(f'{n:,} {reason}' for reason, n in count.items())}")
            for source, used in packing_facts(b).items():
                padding, cropped = used["padding_share"], used["cropped_share"]
                if max(padding, cropped) >= 0.001:
                    log(f"packing {source}: {padding:.2%} padding, {cropped:.2%} of the tokens left out")
        if saved and saved["data"] != self.data:
            changed = ", ".join(name for name in self.data if saved["data"].get(name) != self.data[name])
            raise RefusedError(
                f"the data of stream {changed} changed since the checkpoint was written; put them back, "
                "or start a new run with another --out"
            )
        for b in self.built.values():
            check_held_out(plan, b)
        check_fits(plan, self.built, self.ranks, shard=self.sitting.shard)
        if lost := text_lost(plan, self.built[plan.stages[-1].stream]):
            log(f"note: {lost}")

    def _open_records(self, state: RunState, *, known: str) -> None:
        """Open what is written on the way. From here on nothing is refused: what comes now counts."""
        plan, folder, first = self.plan, self.folder, self.ranks.first
        self.ranks.wait()  # nobody writes below while another still reads
        if first:
            carry(folder, plan, self.built[plan.stages[-1].stream])
        step = state.counters.run_step
        streams = {name: b.stream for name, b in self.built.items()}
        self.feedback = Feedback(folder, streams, until=step, known=known, writes=first)
        if first:
            (folder / "final.json").unlink(missing_ok=True)  # of a failure
        self.trackers.open(folder, plan=plan, from_step=step)
        follow = self.trackers.record
        self.metrics = Metrics(folder / "metrics.jsonl", keep=step, say=self.log, follow=follow) if first else None

    def _stage(self, state: RunState, *, last: Path | None) -> Any:
        """Train the stage that the counters name (from the checkpoint `last`, if it had begun), and return its model."""
        spec = self.plan.stages[state.counters.stage]
        stream = self.built[spec.stream]
        system, stage = self._begun(spec, state, last=last)
        back = Callbacks(
            plan=self.plan,
            spec=spec,
            stage=stage,
            stream=stream,
            machine=self.machine,
            folder=self.folder,
            state=state,
            feedback=self.feedback,
            metrics=self.metrics,
            saver=self.saver,
            facts={
                "plan": self.plan.fingerprint(),
                "data": self.data,
                "layout": self.layout,
                "environment": _exactness(self.facts),
            },
        )
        hooks = Hooks(
            record=self.metrics or _unrecorded,
            evaluate=back.evaluate,
            save=back.save,
            should_stop=self.signals.stopped,
            measure=back.measure,
        )
        self.log(f"stage {spec.name}: {stage.steps} steps of {stream.stream.batch_size} x {stream.stream.seq_len} tokens")
        with ExitStack() as stack:
            feeds = {name: stack.enter_context(self._feed(stage, name)) for name in stage.streams}
            train(
                stage,
                at=state.counters,
                seed=self.plan.seed,
                machine=self.machine,
                ledger=state.ledger,
                hooks=hooks,
                feeds=feeds,
            )
        if self.metrics is not None:
            state.waited[spec.name] = waited = self.metrics.waited(spec.name)
            self.log(f"stage {spec.name} waited for its rows in {waited:.2%} of its steps' time")
        if back.reads and framed(stream) and spec.name not in state.floors:
            self._hold_against_floors(spec, stream, system, state)
        self.ranks.wait()  # the border's checkpoint is there for all
        state.counters.stage += 1
        state.counters.step = 0
        return system.model

    def _begun(self, spec: StageSpec, state: RunState, *, last: Path | None) -> tuple[System, Stage]:
        """Return a stage's system where it computes, and the stage: on what arrives over its border, or as it was saved."""
        plan, ranks = self.plan, self.ranks
        vocab_size = self.built[spec.stream].stream.vocab_size
        model = build_model(plan, spec, vocab_size=vocab_size)
        system = build_system(plan, spec, model)
        crosses = spec.weights is not None and last is None
        giver = open_giver(plan, spec, folder=self.folder, borders=state.borders) if crosses else None
        actions: dict[str, str] = {}
        handed_on = any(s.weights and s.weights.from_ == spec.name and s.weights.fresh for s in plan.stages)
        initialize(model, spec, seed=plan.seed, old=giver.weights if giver else None, handed_on=handed_on)
        if giver is not None:
            if ranks.any(ranks.from_first(giver.fingerprint) != giver.fingerprint):
                raise StoppedRunError(f"{giver.name} changed while the ranks read it; resume, and they read it again")
            actions = cross(system, spec, giver, seed=plan.seed)
            put = "weights" in spec.carry
            state.transfer[spec.name] = actions if put else dict.fromkeys(actions, "fresh")
            state.givers[spec.name] = {"from": giver.name, "carry": spec.carry, "sha256": giver.fingerprint}
            state.clocks[spec.name] = giver.clock
        place(system, self.machine)
        self.saver.prepare(system)
        lent = open_lent(plan, spec, vocab_size=vocab_size, machine=self.machine)
        check_lent(lent, state.lent)
        micro, clock = self.layout["micro_batch_size"].get(spec.name), state.clocks.get(spec.name, 0)
        stage = build_stage(plan, spec, self.built, system, micro_batch_size=micro, clock=clock, lent=lent)
        if giver is not None:
            moments = carry_moments(system, stage.optimizer, giver, actions)
            self.log(described(spec, giver, actions, moments=moments, steps=stage.steps))
        if last is not None:
            load_checkpoint(last, model=system, optimizer=stage.optimizer)
        return system, stage

    def _feed(self, stage: Stage, name: str) -> Feed:
        workers = self.sitting.data_workers
        return Feed(
            stage.streams[name],
            seed=self.plan.seed,
            workers=self.plan.data_workers if workers is None else workers,
            opener=partial(open_stream, name, self.plan.streams[name]),
            ranks=self.ranks,
            stopping=self.signals.stopped,
            pinned=self.machine.device.type == "cuda",
        )

    def _hold_against_floors(self, spec: StageSpec, stream: BuiltStream, system: System, state: RunState) -> None:
        started = perf_counter()
        with reading(system, self.machine):
            state.floors[spec.name] = found = against_floors(self.plan, spec, stream, system.model, self.machine)
        cost = system.model.cost(blank(rows=spec.floor_rows, seq_len=stream.stream.seq_len))
        state.ledger.charge(spec.name, "evaluate", cost + Cost(seconds=perf_counter() - started))
        self.log(floor_line(spec.name, found))


def whole_model(plan: RunPlan, folder: Path, *, vocab_size: int) -> Any:
    """Return the model of a run's last checkpoint, whole, whatever that is called by now."""
    last = latest(folder / "checkpoints")
    assert last is not None, "a stage ends with one"
    model = build_model(plan, plan.stages[-1], vocab_size=vocab_size)
    load_checkpoint(last, model=model)
    return model


def _unrecorded(line: dict[str, Any]) -> None:
    """Write nothing: the first rank writes."""


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
