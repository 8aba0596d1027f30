"""What a run reads off its streams beside its evaluations: what mixtures decide by, what was drawn, packed and left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from seedbed.core.errors import ConfigError, DataError
from seedbed.core.ledger import Ledger
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.run.evaluations import check_evaluations, of_branch
from seedbed.experiments.run.subject import RunSubject
from seedbed.experiments.streams import BuiltStream, build_stream

_MEASURED_ROWS = 64  # of every source that a mixture with feedback asks about


def check_readings(plan: RunPlan, built: Mapping[str, BuiltStream]) -> None:
    """Raise ConfigError or DataError, before anything is trained, for what will be read and cannot be."""
    check_evaluations(plan, built)
    for stream in built.values():
        _check_feedback(stream)
    for name in plan.branches:
        side = of_branch(plan, name)
        streams = {n: built.get(n) or build_stream(n, spec) for n, spec in side.used_streams.items()}
        try:
            check_evaluations(side, streams, of_trunk=plan.branches[name].evaluate is None)
        except (ConfigError, DataError) as e:
            raise type(e)(f"branches.{name}.{e}") from None


def _check_feedback(built: BuiltStream) -> None:
    """Raise DataError or ConfigError if what a mixture decides by cannot be measured."""
    wants = built.stream.mixture.wants
    if wants is None:
        return
    if wants[0] != "loss_nats":
        raise ConfigError(f"the mixture of stream {built.stream.name} asks for {wants[0]!r}; what is measured is loss_nats")
    for name, corpus in built.corpora.items():
        if not len(corpus.documents("valid")):
            raise DataError(
                f"the mixture of stream {built.stream.name} decides by the losses of its sources, and {name} has no document "
                "in its valid part; give more documents or a larger valid_share"
            )


def source_loss(plan: RunPlan, subject: RunSubject, source: str) -> float:
    """Return the mean loss in nats of a source's first held-out text, or of what its first held-out rows ask."""
    stream = subject.built.stream
    if source in subject.built.corpora:
        documents = subject.documents(source, "valid", most_bytes=plan.streams[stream.name].measured_bytes)
        losses = subject.score(documents)
        tokens = sum(map(len, losses))
        if not tokens:
            raise DataError(
                f"the first held-out text of the source {source!r} gives no token; give text that the tokenizer knows"
            )
        return sum(float(x.sum()) for x in losses) / tokens
    rows = stream.rows_of(source, count=_MEASURED_ROWS, seed=subject.seed, split="valid")
    if not rows:
        raise DataError(f"the source {source!r} has no validation row to measure; give more, or a larger valid_share")
    weights = np.concatenate([row.weights_T for row in rows])
    return float((subject.nats(rows).reshape(-1) * weights).sum() / weights.sum())


def packing_facts(built: BuiltStream) -> dict[str, Any]:
    """What packing left unused or left out of every source's training part: padding and cropped tokens."""
    reports = {name: dict(source.report("train")) for name, source in built.stream.sources.items()}
    return {name: report for name, report in reports.items() if report}


def left_out(built: BuiltStream) -> dict[str, dict[str, int]]:
    """Return how much of every text source was not read, by reason: by `on_error: skip`, or as settings among the files."""
    found = {name: dict(corpus.skipped) for name, corpus in built.corpora.items()}
    return {name: counts for name, counts in found.items() if counts}


def mixture_facts(plan: RunPlan, built: Mapping[str, BuiltStream], ledger: Ledger) -> dict[str, Any]:
    """What was drawn of every source of every stream: rows, tokens, epochs, repeated rows, the share wanted and achieved."""
    facts: dict[str, Any] = {}
    for name, b in built.items():
        shown: dict[str, int] = dict.fromkeys(b.stream.sources, 0)
        for stage in (s.name for s in plan.stages if s.stream == name):
            for source, tokens in ledger.tokens.get(stage, {}).items():
                shown[source] += tokens
        total = sum(shown.values())
        sizes = {source: part.size("train") for source, part in b.stream.sources.items()}
        mixed: Any = b.stream.mixture
        wanted = mixed.wanted(total // b.stream.seq_len, sizes=sizes, history=b.stream.history)
        facts[name] = {}
        for source, tokens in shown.items():
            rows, size = tokens // b.stream.seq_len, sizes[source]
            facts[name][source] = {
                "rows": rows,
                "tokens": tokens,
                "epochs": None if size is None else rows / size,
                "repeated_rows": 0 if size is None else max(0, rows - size),
                "wanted_share": wanted.get(source, 1.0),
                "achieved_share": tokens / total if total else 0.0,
            }
    return facts
