"""What the training loop of one stage calls: it reads evaluations on the way, measures for a mixture, and saves.

Where every rank has the whole model the first reads alone; a model that is split over ranks is read by all of them together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from seedbed.core.records import Cost, Measurement
from seedbed.engine.checkpoints import prune
from seedbed.engine.placement import reading
from seedbed.engine.precision import Machine
from seedbed.engine.saving import Saver
from seedbed.engine.train import Stage
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import StageSpec
from seedbed.experiments.run.evaluations import Evaluation
from seedbed.experiments.run.feedback import Feedback
from seedbed.experiments.run.journal import Metrics
from seedbed.experiments.run.of_streams import source_loss
from seedbed.experiments.run.state import RunState
from seedbed.experiments.run.subject import RunSubject
from seedbed.experiments.streams import BuiltStream


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """One stage's; `facts` are those of the run that its checkpoints carry beside its state."""

    plan: RunPlan
    spec: StageSpec
    stage: Stage
    stream: BuiltStream
    asked: Mapping[str, Evaluation]  # evaluations that fit it, by name
    causal: bool
    machine: Machine
    folder: Path
    state: RunState
    feedback: Feedback
    metrics: Metrics | None  # on the first rank
    saver: Saver
    facts: Mapping[str, Any]

    @property
    def reads(self) -> bool:
        """Whether this rank takes part in evaluation."""
        return self.machine.ranks.first or self.machine.shards > 1

    @cached_property
    def subject(self) -> RunSubject:
        """The model with the stage's material, opened once a stage."""
        return RunSubject(
            seed=self.plan.seed,
            built=self.stream,
            causal=self.causal,
            model=self.stage.model,
            own=self.stage.system.own,
            machine=self.machine,
            charge=self._charge,
        )

    def _charge(self, cost: Cost) -> None:
        self.state.ledger.charge(self.spec.name, "evaluate", cost)

    def evaluate(self) -> dict[str, Any]:
        """Return what is read at this step, for a line of metrics.jsonl: numbers by evaluation."""
        if not self.reads:
            return {}
        step, steps = self.state.counters.step, self.stage.steps
        due = {name: one for name, one in self.asked.items() if one.due(self.spec, step, steps=steps)}
        with reading(self.stage.system, self.machine):
            found = {name: dict(one.part.watched(self.subject)) for name, one in due.items()}
        found = {name: numbers for name, numbers in found.items() if numbers}
        return {"watched": found} if found else {}

    def measure(self, name: str, position: int) -> None:
        """Record every source's loss on its validation part (text, or rows), before rows behind `position` are drawn."""
        losses = {}
        if self.reads:
            with reading(self.stage.system, self.machine):
                losses = {source: source_loss(self.plan, self.subject, source) for source in self.stream.stream.sources}
        losses = self.machine.ranks.from_first(losses)
        self.feedback.record(
            self.stream.stream.name, Measurement(step=self.state.counters.run_step, position=position, name=name, values=losses)
        )

    def save(self, wait: bool) -> None:
        """Write a checkpoint of this step, and remove those that are not kept."""
        path = self.folder / "checkpoints" / checkpoint_name(self.state.counters.run_step)
        if self.state.counters.step == self.stage.steps:
            self.state.borders[self.stage.name] = path.name
        if self.metrics is not None:
            self.metrics.sync()
        keep = checkpoints_given_on(self.plan, self.state.borders)
        self.saver(
            path,
            system=self.stage.system,
            optimizer=self.stage.optimizer,
            state={
                "roles": {name: [r.part, r.layer, r.tensor] for name, r in self.stage.system.all_roles.items()},
                "vocab_size": self.stage.model.vocab_size,
                **self.state.to_json(),
                "feedback": self.feedback.fingerprint(),
                **self.facts,
            },
            after=lambda: prune(path.parent, keep=keep, last=self.plan.keep_last, every=self.plan.keep_every),
        )
        if wait:
            self.saver.wait()


def checkpoints_given_on(plan: RunPlan, borders: Mapping[str, str]) -> set[str]:
    """Return the checkpoints that a stage or a branch of the plan takes its weights from."""
    begun = [branch.at for branch in plan.branches.values()]
    givers = {*(s.weights.from_ for s in plan.stages if s.weights), *begun}
    at_steps = {checkpoint_name(step) for step in begun if isinstance(step, int)}
    return at_steps | {checkpoint for stage, checkpoint in borders.items() if stage in givers}


def checkpoint_name(run_step: int) -> str:
    return f"step-{run_step:08d}"
