"""A run while it runs: recovered, its data opened, then stage by stage, to be read from top to bottom.

For each stage: build the model, take weights over the border, train, evaluate. Then the branches, then the end (finish.py).
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from seedbed.core.durable import write_json
from seedbed.core.errors import RefusedError, StoppedRunError
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
from seedbed.experiments.environment import environment
from seedbed.experiments.estimate.memory import check_fits
from seedbed.experiments.parts import model_kind, rules_of
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import StageSpec
from seedbed.experiments.run.artefact_facts import charge
from seedbed.experiments.run.borders import carry_moments, check_lent, cross, described, open_giver, open_lent
from seedbed.experiments.run.branches import run_branches
from seedbed.experiments.run.callbacks import Callbacks
from seedbed.experiments.run.carried import carry
from seedbed.experiments.run.evaluations import Evaluation, ends, evaluations_of, material_of, read_whole, warnings
from seedbed.experiments.run.feedback import Feedback
from seedbed.experiments.run.finish import finish
from seedbed.experiments.run.givers import train_first
from seedbed.experiments.run.journal import Metrics
from seedbed.experiments.run.layout import Session, SideRun, described_machine, settled_layout
from seedbed.experiments.run.of_streams import check_readings, left_out, packing_facts
from seedbed.experiments.run.signals import Signals
from seedbed.experiments.run.state import RunState
from seedbed.experiments.run.tracking import Trackers
from seedbed.experiments.streams import BuiltStream, build_stream, open_stream


@dataclass(kw_only=True)
class Running:
    """What is open while a run's session lasts; `side_run` makes and executes a branch."""

    plan: RunPlan
    folder: Path
    session: Session
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
    ends: dict[str, str] = field(init=False)  # evaluation -> the stage at whose end it is read in whole
    feedback: Feedback = field(init=False)
    metrics: Metrics | None = field(init=False)  # on the first rank

    def run(self) -> dict[str, Any] | None:
        """Go on until the run is finished; return final.json (on the first rank)."""
        last, saved = self._recovered()
        self._settle(saved)
        self._open_data(saved)
        begin = {name: self.plan.positions.get(name, 0) for name in self.built}
        state = RunState.from_json(saved) if saved else RunState(counters=Counters(positions=begin))
        if not saved:
            state.prepared = charge(self.plan, state.ledger)
        self._open_records(state, known=saved.get("feedback", "") if saved else "")
        train_first(
            self.plan, self.folder, state=state, ranks=self.ranks, side_run=self.side_run, session=self.session, log=self.log
        )
        system: Any = None
        while state.counters.stage < len(self.plan.stages):
            system = self._stage(state, last=last if state.counters.step > 0 else None)
        self.saver.wait()
        branches = run_branches(
            self.plan, self.folder, state=state, ranks=self.ranks, side_run=self.side_run, session=self.session, log=self.log
        )
        if self.metrics is None:
            return None
        self.metrics.close()
        stream = self.built[self.plan.stages[-1].stream].stream
        if self.machine.shards > 1:
            system = whole_system(self.plan, self.folder, vocab_size=stream.vocab_size).to(self.machine.device)
        return finish(
            self.plan,
            self.folder,
            system=system,
            built=self.built,
            state=state,
            spikes=self.metrics.spikes,
            branches=branches,
            machine=self.machine,
            asked=self._ending(self.plan.stages[-1]),
            log=self.log,
        )

    def _recovered(self) -> tuple[Path | None, dict[str, Any] | None]:
        """Return the newest whole checkpoint, and what it says; None before the first."""
        newest = newest_whole(self.folder / "checkpoints", say=self.log) if self.ranks.first else None
        last: Path | None = self.ranks.from_first(newest[0] if newest else None)
        return last, read_state(last) if last else None

    def _settle(self, saved: dict[str, Any] | None) -> None:
        """Decide layout and machine, and say so. Raises RefusedError for what would not be the same run."""
        plan, session, log = self.plan, self.session, self.log
        self.layout = settled_layout(plan, session, self.ranks, known=saved["layout"] if saved else None, log=log)
        shard = session.shard or plan.shard
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
        check_readings(plan, self.built)
        check_fits(plan, self.built, self.ranks, shard=self.session.shard)
        self.ends = ends(plan, self.built)
        last = plan.stages[-1]
        for one in evaluations_of(plan).values():
            if one.usual and one.name not in self.ends:
                reason = one.why_not(last, material_of(plan, last, self.built[last.stream]))
                log(f"note: nothing is evaluated ({reason}); `evaluate` names what is")
        for name, said in warnings(plan, self.built).items():
            log(f"note: {name}: {said}")

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

    def _stage(self, state: RunState, *, last: Path | None) -> System:
        """Train the stage that the counters name (from the checkpoint `last`, if it had begun), and return its system."""
        spec = self.plan.stages[state.counters.stage]
        stream, asked = self.built[spec.stream], self._asked(spec)
        system, stage = self._begun(spec, state, asked, last=last)
        back = Callbacks(
            plan=self.plan,
            spec=spec,
            stage=stage,
            stream=stream,
            asked=asked,
            causal=model_kind(self.plan, spec).causal,
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
        if back.reads and spec is not self.plan.stages[-1]:
            self._read_whole(spec, back)
        self.ranks.wait()  # the border's checkpoint is there for all
        state.counters.stage += 1
        state.counters.step = 0
        return system

    def _asked(self, spec: StageSpec) -> dict[str, Evaluation]:
        """Return the evaluations that fit a stage, by name."""
        material = material_of(self.plan, spec, self.built[spec.stream])
        return {name: one for name, one in evaluations_of(self.plan).items() if not one.why_not(spec, material)}

    def _ending(self, spec: StageSpec) -> list[Evaluation]:
        """Return the evaluations that are read in whole at a stage's end; a search never reads a test part."""
        found = (one for name, one in evaluations_of(self.plan).items() if self.ends.get(name) == spec.name)
        return [one for one in found if self.plan.test or not one.part.reads_test]

    def _begun(
        self, spec: StageSpec, state: RunState, asked: Mapping[str, Evaluation], *, last: Path | None
    ) -> tuple[System, Stage]:
        """Return a stage's system where it computes, and the stage: on what arrives over its border, or as it was saved."""
        plan, ranks = self.plan, self.ranks
        vocab_size = self.built[spec.stream].stream.vocab_size
        model = build_model(plan, spec, vocab_size=vocab_size)
        system = build_system(plan, spec, model)
        crosses = spec.weights is not None and last is None
        giver = open_giver(plan, spec, folder=self.folder, borders=state.borders) if crosses else None
        actions: dict[str, str] = {}
        feeds_later_stage = any(s.weights and s.weights.from_ == spec.name and rules_of(s).draws_anew for s in plan.stages)
        initialize(model, spec, seed=plan.seed, old=giver.weights if giver else None, feeds_later_stage=feeds_later_stage)
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
        lent = open_lent(plan, spec, vocab_size=vocab_size, machine=self.machine, folder=self.folder)
        check_lent(lent, state.lent)
        micro, clock = self.layout["micro_batch_size"].get(spec.name), state.clocks.get(spec.name, 0)
        stage = build_stage(plan, spec, self.built, system, micro_batch_size=micro, clock=clock, lent=lent)
        steps = stage.steps
        stage = replace(stage, evaluates_after=lambda step: any(x.due(spec, step, steps=steps) for x in asked.values()))
        if giver is not None:
            moments = carry_moments(system, stage.optimizer, giver, actions)
            self.log(described(spec, giver, actions, moments=moments, steps=stage.steps))
        if last is not None:
            load_checkpoint(last, model=system, optimizer=stage.optimizer)
        return system, stage

    def _feed(self, stage: Stage, name: str) -> Feed:
        workers = self.session.data_workers
        return Feed(
            stage.streams[name],
            seed=self.plan.seed,
            workers=self.plan.data_workers if workers is None else workers,
            opener=partial(open_stream, name, self.plan.streams[name]),
            ranks=self.ranks,
            stopping=self.signals.stopped,
            pinned=self.machine.device.type == "cuda",
        )

    def _read_whole(self, spec: StageSpec, back: Callbacks) -> None:
        """Read in whole what ends with a stage before the last."""
        state = back.state
        with reading(back.stage.system, self.machine):
            for one in self._ending(spec):
                if one.name not in state.evaluations:
                    charge = partial(state.ledger.charge, spec.name, "evaluate")
                    state.evaluations[one.name] = read_whole(
                        one, spec.name, back.subject, self.folder, charge=charge, write=self.ranks.first, log=self.log
                    )


def whole_system(plan: RunPlan, folder: Path, *, vocab_size: int) -> System:
    """Return the system of a run's last checkpoint, whole, whatever that is called by now."""
    last, spec = latest(folder / "checkpoints"), plan.stages[-1]
    assert last is not None, "a stage ends with one"
    system = build_system(plan, spec, build_model(plan, spec, vocab_size=vocab_size))
    load_checkpoint(last, model=system)
    return system


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
