"""What a run reads off its model and streams: losses of held-out text, floors of automaton stages, what was drawn and packed.

The test part of a held-out set is read by `test_numbers` alone, once, after the last step.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from seedbed.core.durable import write_whole
from seedbed.core.errors import ConfigError, DataError
from seedbed.core.ledger import Ledger
from seedbed.core.protocols import Tokenizer
from seedbed.core.records import Cost, Document, blank
from seedbed.core.run_record import loss_of_text
from seedbed.engine.held_out import likeliest, row_nats
from seedbed.engine.precision import Machine
from seedbed.evaluate.bits_per_byte import BitsPerByte, changed, summary
from seedbed.evaluate.frame_completion import frame_completion
from seedbed.evaluate.rule_inference import after_first_frame, rule_inference
from seedbed.experiments.recipe import RunPlan, StageSpec
from seedbed.experiments.streams import BuiltStream, held_out_sets
from seedbed.scorers.own_run import OwnRun

_MEASURED_ROWS = 64  # of every source that a mixture with feedback asks about
_COMPLETED_ROWS = 32  # held-out rows of an automaton stage whose frames are completed


def check_held_out(plan: RunPlan, built: BuiltStream) -> None:
    """Raise DataError or ConfigError, before anything is trained, if a held-out part that will be read is not there."""
    sets = {(name, "valid"): corpus for name, corpus in held_out_sets(plan, built).items()}
    if plan.evaluate.test and built.stream.name == plan.stages[-1].stream:
        sets |= {(name, "test"): corpus for name, corpus in held_out_sets(plan, built).items()}
    wants = built.stream.mixture.wants
    if wants is not None:
        if wants[0] != "loss_nats":
            raise ConfigError(f"the mixture of stream {built.stream.name} asks for {wants[0]!r}; what is measured is loss_nats")
        sets |= {(name, "valid"): corpus for name, corpus in built.corpora.items()}
    for (name, part), corpus in sets.items():
        if not len(corpus.documents(part)):
            raise DataError(
                f"the held-out set {name!r} has no document in its {part} part; give more documents or a "
                f"larger {part}_share, or "
                "name other sets under evaluate.sets"
            )
        if built.tokenizer is not None and not any(_gives_tokens(built.tokenizer, d) for d in corpus.documents(part)):
            raise DataError(
                f"the held-out set {name!r} gives no token in its {part} part; give more documents, or a tokenizer that knows "
                "their text"
            )


def _gives_tokens(tokenizer: Tokenizer, document: Document) -> bool:
    ids = document.data.get("ids")
    return len(tokenizer.encode(document.text) if ids is None else ids) > 0


def text_lost(plan: RunPlan, built: BuiltStream) -> str:
    """Say in words what the tokenizer loses of the validation documents of the main held-out set; "" if nothing."""
    tokenizer = built.tokenizer
    if tokenizer is None:
        return ""
    documents = up_to(next(iter(held_out_sets(plan, built).values())).documents("valid"), plan.evaluate.valid_bytes)
    return loss_of_text({"documents": len(documents), "changed_documents": sum(changed(tokenizer, d) for d in documents)})


def text_numbers(
    plan: RunPlan, stream: BuiltStream, model: Any, documents: list[Document]
) -> tuple[dict[str, float], list[Any], Cost]:
    """Return the numbers over whole documents, the items, and the cost of the forward passes (of disjoint windows)."""
    assert stream.tokenizer is not None
    scorer = OwnRun(model=model, tokenizer=stream.tokenizer, seq_len=stream.stream.seq_len, stride=plan.evaluate.stride)
    items = BitsPerByte()(scorer, documents)
    found, seq_len = summary(items), stream.stream.seq_len
    return found, items, model.cost(blank(rows=1, seq_len=seq_len)).times(found["tokens"] / seq_len)


def test_numbers(
    plan: RunPlan, folder: Path, stream: BuiltStream, model: Any, *, ledger: Ledger, log: Callable[[str], None]
) -> dict[str, Any]:
    """Read the test part of every held-out set; write items.jsonl. Returns `test`, the main set's numbers, and all by name."""
    sets = held_out_sets(plan, stream)
    documents = {name: up_to(corpus.documents("test"), plan.evaluate.test_bytes) for name, corpus in sets.items()}
    numbers, lines = {}, []
    for name, some in documents.items():
        started = time.perf_counter()
        numbers[name], items, cost = text_numbers(plan, stream, model, some)
        ledger.charge(plan.stages[-1].name, "evaluate", cost + Cost(seconds=time.perf_counter() - started))
        group = name if len(sets) > 1 else "text"
        lines += [json.dumps({**asdict(item), "group": group}) + "\n" for item in items]
        log(
            f"test{f' of {name}' if len(sets) > 1 else ''}: {numbers[name]['bits_per_byte']:.4f} bits per "
            f"byte over {numbers[name]['bytes']} bytes"
        )
        if lost := loss_of_text(numbers[name]):
            log(f"note: {lost}")
    write_whole(folder / "items.jsonl", "".join(lines))
    main = next(iter(numbers))
    return {"test": numbers[main]} if len(numbers) == 1 else {"test": numbers[main], "main": main, "held_out": numbers}


def framed(stream: BuiltStream) -> bool:
    """Whether rows are frames one after the other, so that floors and completion mean something."""
    return (
        len(stream.stream.sources) == 1
        and hasattr(stream.source, "frame_tokens")
        and all(v.keeps_order for v in stream.stream.views)
    )


def on_unseen_rules(plan: RunPlan, spec: StageSpec, stream: BuiltStream, model: Any, machine: Machine) -> dict[str, float]:
    """The loss on the way: the rows and tokens of the record at the stage's end."""
    source: Any = stream.source
    rows = stream.stream.rows(0, count=spec.floor_rows, seed=plan.seed, split="valid")
    nll_RT = row_nats(model, rows, machine=machine)
    return {"valid_loss_nats": after_first_frame(nll_RT, frame_tokens=source.frame_tokens)}


def against_floors(plan: RunPlan, spec: StageSpec, stream: BuiltStream, model: Any, machine: Machine) -> dict[str, Any]:
    """Hold a stage on automaton rows against the floors, on rules that no training row used, and let it complete frames."""
    source: Any = stream.source
    held_out = stream.stream.rows(0, count=spec.floor_rows, seed=plan.seed, split="valid")
    tokens_RT = np.stack([np.concatenate([row.tokens_T[:1], row.targets_T]) for row in held_out])
    training = np.stack([r.tokens_T for r in stream.stream.rows(0, count=spec.floor_rows, seed=plan.seed)])
    nll_RT = row_nats(model, held_out, machine=machine)
    cells = (source.states, source.patch**2)
    found = rule_inference(nll_RT, tokens_RT, training_SU=training, frame_tokens=source.frame_tokens, cells=cells)
    completed = frame_completion(
        likeliest(model, machine=machine, below=source.patches.start_id),
        tokens_RT[:_COMPLETED_ROWS],
        frame_tokens=source.frame_tokens,
        decode=source.patches.decode,
    )
    judged = {"best_floor_nats": found.best_floor_nats, "learned": found.learned}
    return {**asdict(found), **judged, "completion": asdict(completed)}


def floor_line(name: str, found: dict[str, Any]) -> str:
    floors = ", ".join(f"{k} {v:.3f}" for k, v in found["floors_nats"].items())
    verdict = "learned" if found["learned"] else "did not learn"
    return f"stage {name} {verdict}: {found['loss_nats']:.3f} nats on unseen rules after frame 1; floors: {floors}"


def row_loss(plan: RunPlan, stream: BuiltStream, source: str, model: Any, machine: Machine) -> float:
    """Return the mean loss in nats of what a source's first held-out rows ask."""
    rows = stream.stream.rows_of(source, count=_MEASURED_ROWS, seed=plan.seed, split="valid")
    if not rows:
        raise DataError(f"the source {source!r} has no validation row to measure; give more, or a larger valid_share")
    weights = np.concatenate([row.weights_T for row in rows])
    nll_RT = row_nats(model, rows, machine=machine)
    return float((nll_RT.reshape(-1) * weights).sum() / weights.sum())


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


def up_to(documents: Any, most_bytes: int | None) -> list[Document]:
    """Return whole documents from the first on, until the next would pass the limit; at least one."""
    kept: list[Document] = []
    size = 0
    for document in documents:
        size += document.size_bytes
        if kept and most_bytes is not None and size > most_bytes:
            break
        kept.append(document)
    return kept
