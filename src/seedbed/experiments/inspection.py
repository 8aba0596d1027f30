"""What a step shows: every row of it with its documents, before a run or after it. Trains nothing.

A row is a function of its address (and of recorded feedback), so a recipe tells what a run will see, and a run what it saw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedbed.core.errors import ConfigError, DataError
from seedbed.core.records import Draw, Row
from seedbed.core.run_record import RunRecord
from seedbed.experiments.assemble import build_model, build_system, steps_of
from seedbed.experiments.plan.load import load
from seedbed.experiments.plan.run_plan import RunPlan, read_plan
from seedbed.experiments.run.artefact_facts import refuse_unmade
from seedbed.experiments.run.feedback import read_feedback
from seedbed.experiments.streams import BuiltStream, build_stream


@dataclass(frozen=True, kw_only=True)
class ShownDocument:
    """A document in a row: `tokens` of it are shown there."""

    id: str
    tokens: int
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row of a step: where it stands, where it came from, what it holds."""

    position: int
    source: str
    index: int
    epoch: int
    asked: int
    documents: list[ShownDocument]
    tokens: list[int]
    text: str
    labels: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShownStep:
    """A step of a run: its stage, its stream and its rows."""

    step: int
    stage: str
    step_of_stage: int
    stream: str
    rows: list[ShownRow]
    numbers: dict[str, Any] = field(default_factory=dict)  # its line of metrics.jsonl, if the run has made it
    failure: str = ""  # why the run failed at this step


def inspect(target: str | Path, *, step: int, arm: str | None = None, seed: int = 0, **settings: Any) -> ShownStep:
    """Return what a step (1 is the first of the run) shows; `target` is a run folder or a recipe, `settings` as for `load`.

    Raises ConfigError for a step that the run does not have, DataError if it follows feedback that is not recorded.
    """
    if is_run(target):
        shown = inspect_plan(read_plan(Path(target)), step=step, folder=Path(target))
        return replace(shown, **_recorded(Path(target), step))
    loaded = load(target, **settings)
    return inspect_plan(loaded.plan(arm=arm or loaded.arms[0], seed=seed), step=step)


def is_run(target: str | Path) -> bool:
    """Whether a target is a run's folder, or a run of a packed study."""
    return Path(target).is_dir() or RunRecord(Path(target)).is_packed


def _recorded(folder: Path, step: int) -> dict[str, Any]:
    """What a run folder says of a step: its numbers, and its failure if the run failed there."""
    run = RunRecord(folder)
    numbers = next((line for line in run.metrics() if line["run_step"] == step), {})
    final = run.final() or {}
    return {"numbers": numbers, "failure": final.get("error", "") if final.get("run_step") == step else ""}


def inspect_plan(plan: RunPlan, *, step: int, folder: Path | None = None) -> ShownStep:
    """Return what a step of a plan shows, with the feedback that its run recorded."""
    if step < 1:
        raise ConfigError(f"steps are counted from 1, got {step}")
    before = 0
    positions: dict[str, int] = dict.fromkeys(plan.streams, 0)
    for spec in plan.stages:
        refuse_unmade(plan)
        built = build_stream(spec.stream, plan.streams[spec.stream])
        with torch.device("meta"):
            model = build_model(plan, spec, vocab_size=built.stream.vocab_size)
            steps = steps_of(plan, spec, build_system(plan, spec, model))
        batch = built.stream.batch_size
        if step <= before + steps:
            built.stream.history.extend(m for of, m in (read_feedback(folder) if folder else []) if of == spec.stream)
            start = positions[spec.stream] + (step - before - 1) * batch
            due = built.stream.due(start + batch)
            if due is not None:
                raise DataError(
                    f"step {step} follows a measurement at row {due} of stream {spec.stream}, which is not "
                    "recorded: this mixture decides "
                    "while the run goes on; inspect the run folder after that step"
                )
            draws = built.stream.draws(start, count=batch, seed=plan.seed)
            rows = built.stream.rows(start, count=batch, seed=plan.seed)
            shown = [_row(built, start + i, draw, row) for i, (draw, row) in enumerate(zip(draws, rows, strict=True))]
            return ShownStep(step=step, stage=spec.name, step_of_stage=step - before, stream=spec.stream, rows=shown)
        before += steps
        positions[spec.stream] += steps * batch
    raise ConfigError(f"the run has {before} steps, there is no step {step}")


def _row(built: BuiltStream, position: int, draw: Draw, row: Row) -> ShownRow:
    store = built.stream.sources[draw.source].packed_from()
    shown_T = np.asarray(row.tokens_T)
    documents = []
    if store is not None and row.documents_T is not None:
        numbers, counts = np.unique(row.documents_T[row.documents_T >= 0], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            document = store.document("train", number)
            documents.append(ShownDocument(id=document.id, tokens=count, meta=_plain(document.meta)))
    return ShownRow(
        position=position,
        source=draw.source,
        index=draw.index,
        epoch=draw.epoch,
        asked=int((np.asarray(row.weights_T) > 0).sum()),
        documents=documents,
        tokens=shown_T.tolist(),
        text=built.tokenizer.decode(shown_T[shown_T < built.tokenizer.vocab_size]) if built.tokenizer else "",
        labels=_plain(row.labels),
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}


def as_text(shown: ShownStep, *, characters: int = 400) -> str:
    """Return a step as lines for a terminal; texts are cut at `characters`."""
    lines = [
        f"step {shown.step}: step {shown.step_of_stage} of stage {shown.stage}, {len(shown.rows)} rows of stream {shown.stream}"
    ]
    if shown.failure:
        lines.append(f"the run failed at this step: {shown.failure}")
    lines += [f"{name}: {value}" for name, value in shown.numbers.items() if name not in ("stage", "step", "run_step")]
    for row in shown.rows:
        lines.append(
            f"row {row.position}: {row.source}, row {row.index} of it, epoch {row.epoch}, {row.asked} of "
            f"{len(row.tokens)} targets count"
        )
        lines += [f"  document {d.id}: {d.tokens} tokens{f' {d.meta}' if d.meta else ''}" for d in row.documents]
        lines += [f"  {k}: {v}" for k, v in row.labels.items()]
        content = row.text if row.text else " ".join(map(str, row.tokens))
        lines.append(f"  {content[:characters]!r}{' ...' if len(content) > characters else ''}")
    return "\n".join(lines)
