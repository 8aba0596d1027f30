"""What the training loop of one stage calls: it reads held-out text on the way, measures for a mixture, and saves.

Where every rank has the whole model the first reads alone; a model that is split over ranks is read by all of them together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from seedbed.core.records import Document, Measurement
from seedbed.engine.checkpoints import prune
from seedbed.engine.placement import reading
from seedbed.engine.precision import Machine
from seedbed.engine.saving import Saver
from seedbed.engine.train import Stage
from seedbed.experiments.assemble import reads_text
from seedbed.experiments.feedback import Feedback
from seedbed.experiments.journal import Metrics
from seedbed.experiments.readings import framed, on_unseen_rules, row_loss, text_numbers, up_to
from seedbed.experiments.recipe import RunPlan, StageSpec
from seedbed.experiments.run_state import RunState
from seedbed.experiments.streams import BuiltStream, held_out_sets


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """One stage's; `facts` are those of the run that its checkpoints carry beside its state."""

    plan: RunPlan
    spec: StageSpec
    stage: Stage
    stream: BuiltStream
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
    def _valid(self) -> dict[str, list[Document]]:
        """The validation documents of every held-out set, read once a stage."""
        sets = held_out_sets(self.plan, self.stream)
        return {name: up_to(corpus.documents("valid"), self.plan.evaluate.valid_bytes) for name, corpus in sets.items()}

    def evaluate(self) -> dict[str, Any]:
        """Return validation losses for a line of metrics.jsonl: of held-out text, or of rows of unseen rules."""
        if not self.reads:
            return {}
        plan, stream, model = self.plan, self.stream, self.stage.model
        with reading(self.stage.system, self.machine):
            if stream.tokenizer is None or not reads_text(plan, self.spec):
                return on_unseen_rules(plan, self.spec, stream, model, self.machine) if framed(stream) else {}
            found = {name: self._losses(documents) for name, documents in self._valid.items()}
        main = {f"valid_{k}": value for k, value in next(iter(found.values())).items()}
        return main if len(found) == 1 else {**main, "valid": found}

    def measure(self, name: str, position: int) -> None:
        """Record every source's loss on its validation part (text, or rows), before rows behind `position` are drawn."""
        losses = {}
        if self.reads:
            with reading(self.stage.system, self.machine):
                for source in self.stream.stream.sources.keys() - self.stream.corpora.keys():
                    losses[source] = row_loss(self.plan, self.stream, source, self.stage.model, self.machine)
                for source, corpus in self.stream.corpora.items():
                    documents = up_to(corpus.documents("valid"), self.plan.evaluate.valid_bytes)
                    losses[source] = self._losses(documents)["loss_nats"]
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
        keep = taken_from(self.plan, self.state.borders)
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

    def _losses(self, documents: list[Document]) -> dict[str, float]:
        numbers, _, cost = text_numbers(self.plan, self.stream, self.stage.model, documents)
        self.state.ledger.charge(self.spec.name, "evaluate", cost)
        return {k: numbers[k] for k in ("loss_nats", "bits_per_byte")}


def taken_from(plan: RunPlan, borders: Mapping[str, str]) -> set[str]:
    """Return the checkpoints that a stage or a branch of the plan takes its weights from."""
    begun = [branch.at for branch in plan.branches.values()]
    givers = {*(s.weights.from_ for s in plan.stages if s.weights), *begun}
    at_steps = {checkpoint_name(step) for step in begun if isinstance(step, int)}
    return at_steps | {checkpoint for stage, checkpoint in borders.items() if stage in givers}


def checkpoint_name(run_step: int) -> str:
    return f"step-{run_step:08d}"
