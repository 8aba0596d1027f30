"""What the training loop of one stage calls: it reads held-out text on the way, measures for a mixture, and saves.

Where every rank has the whole model the first reads alone; a model that is split over ranks is read by all of them together.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from seedbed.core.ledger import Ledger
from seedbed.core.records import Document, Measurement
from seedbed.engine.checkpoints import prune
from seedbed.engine.placement import reading
from seedbed.engine.precision import Machine
from seedbed.engine.saving import Saver
from seedbed.engine.train import Counters, Stage
from seedbed.experiments.feedback import Feedback
from seedbed.experiments.journal import Metrics
from seedbed.experiments.readings import framed, on_unseen_rules, text_numbers, up_to
from seedbed.experiments.recipe import RunPlan, StageSpec
from seedbed.experiments.streams import BuiltStream, held_out_sets


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """One stage's; `facts` are those of the run that its checkpoints carry, `extras` what it has found out so far."""

    plan: RunPlan
    spec: StageSpec
    stage: Stage
    stream: BuiltStream
    machine: Machine
    folder: Path
    counters: Counters
    ledger: Ledger
    feedback: Feedback
    metrics: Metrics | None  # on the first rank
    saver: Saver
    extras: dict[str, Any]
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
        with reading(model, self.machine):
            if stream.tokenizer is None:
                return on_unseen_rules(plan, self.spec, stream, model, self.machine) if framed(stream) else {}
            found = {name: self._losses(documents) for name, documents in self._valid.items()}
        main = {f"valid_{k}": value for k, value in next(iter(found.values())).items()}
        return main if len(found) == 1 else {**main, "valid": found}

    def measure(self, name: str, position: int) -> None:
        """Record every source's loss on its validation part, before rows behind `position` are drawn."""
        losses = {}
        if self.reads:
            with reading(self.stage.model, self.machine):
                for source, corpus in self.stream.corpora.items():
                    documents = up_to(corpus.documents("valid"), self.plan.evaluate.valid_bytes)
                    losses[source] = self._losses(documents)["loss_nats"]
        losses = self.machine.ranks.from_first(losses)
        self.feedback.record(
            self.stream.stream.name, Measurement(step=self.counters.run_step, position=position, name=name, values=losses)
        )

    def save(self, wait: bool) -> None:
        """Write a checkpoint of this step, and remove those that are not kept."""
        path = self.folder / "checkpoints" / f"step-{self.counters.run_step:08d}"
        if self.counters.step == self.stage.steps:
            self.extras["borders"][self.stage.name] = path.name
        if self.metrics is not None:
            self.metrics.sync()
        keep = taken_from(self.plan, self.extras["borders"])
        self.saver(
            path,
            model=self.stage.model,
            optimizer=self.stage.optimizer,
            state={
                "counters": asdict(self.counters),
                "ledger": self.ledger.to_json(),
                "extras": self.extras,
                "feedback": self.feedback.fingerprint(),
                **self.facts,
            },
            after=lambda: prune(path.parent, keep=keep, last=self.plan.keep_last, every=self.plan.keep_every),
        )
        if wait:
            self.saver.wait()

    def _losses(self, documents: list[Document]) -> dict[str, float]:
        numbers, _, cost = text_numbers(self.plan, self.stream, self.stage.model, documents)
        self.ledger.charge(self.spec.name, "evaluate", cost)
        return {k: numbers[k] for k in ("loss_nats", "bits_per_byte")}


def taken_from(plan: RunPlan, borders: Mapping[str, str]) -> set[str]:
    """Return the checkpoints at stage borders that a stage of the plan takes its weights from."""
    givers = {s.weights.from_ for s in plan.stages if s.weights}
    return {checkpoint for stage, checkpoint in borders.items() if stage in givers}
