"""One run, from its plan to its folder, to be read from top to bottom.

For each stage: build stream and model, take weights over the border, train, evaluate. At the end the test part of every
held-out set is read, once. A run folder holds recipe.yaml, resolved.yaml, env.json, metrics.jsonl, log.txt, checkpoints/,
items.jsonl, final.json and report.html (and feedback.jsonl, if a mixture asked for any); whatever is in it was written whole.
"""

import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedbed import models
from seedbed.core.draws import key
from seedbed.core.durable import locked, write_json, write_whole
from seedbed.core.errors import ConfigError, DataError, InterruptedRunError, RefusedError, RunFailedError
from seedbed.core.ledger import Ledger
from seedbed.core.records import Cost, Document, Measurement, Role
from seedbed.engine.checkpoints import latest, load_checkpoint, load_weights, read_state, save_checkpoint
from seedbed.engine.held_out import likeliest, row_nats
from seedbed.engine.precision import Machine, prepare_machine
from seedbed.engine.train import Counters, Hooks, Stage, train
from seedbed.evaluate.bits_per_byte import BitsPerByte, summary
from seedbed.evaluate.frame_completion import frame_completion
from seedbed.evaluate.rule_inference import after_first_frame, rule_inference
from seedbed.experiments.assemble import BuiltStream, build_model, build_stage, build_stream, held_out_sets, initialize
from seedbed.experiments.environment import commit, environment
from seedbed.experiments.feedback import Feedback
from seedbed.experiments.recipe import RunPlan, StageSpec, read_plan
from seedbed.report.page import write_run_page
from seedbed.scorers.own_run import OwnRun
from seedbed.transfer.rules import Rules
from seedbed.writers.sample import Sample

_COMPLETED_ROWS = 32  # held-out rows of an automaton stage whose frames are completed
PARENT = "SEEDBED_PARENT"  # process number of a study; a run whose study is gone stops as if by a signal


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run says: `final` is its final.json."""

    folder: Path
    final: dict[str, Any]


def create(plan: RunPlan, folder: Path, *, recipe_text: str) -> None:
    """Lay down a new run folder. Raises RefusedError if there is one already."""
    if folder.exists() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
        raise RefusedError(
            f"{folder} exists already and nothing is overwritten; continue it with `seedbed resume {folder}`, "
            "or give another --out"
        )
    write_whole(folder / "resolved.yaml", plan.to_yaml())
    write_whole(folder / "recipe.yaml", recipe_text)


def execute(folder: Path, *, say: Callable[[str], None] = print) -> RunResult:
    """Start, or go on with, the run of a folder until it is finished, and return its result.

    A finished run is returned as it is. Raises RunFailedError for a loss that is not finite (recorded in final.json first) and
    when nothing can be written (not recorded), InterruptedRunError after a signal, and whatever its data raise.
    """
    plan = read_plan(folder)
    with locked(folder):
        done = finished(folder)
        if done is not None and done["status"] == "done":
            if not (folder / "report.html").is_file():
                write_run_page(folder)
            return RunResult(folder=folder, final=done)
        with _Signals() as signals, _Log(folder / "log.txt", say) as log:
            try:
                final = _run(plan, folder, signals=signals, log=log)
            except RunFailedError as e:
                log(f"failed: {e}")
                write_json(folder / "final.json", {"status": "failed", "error": str(e), **_identity(plan)})
                raise
            except OSError as e:  # nothing about the method: not recorded as a result, to be resumed
                log(f"stopped: {_no_space(e, folder)}")
                raise _no_space(e, folder) from e
    return RunResult(folder=folder, final=final)


def finished(folder: Path) -> dict[str, Any] | None:
    """Return final.json of a run that is done or has failed."""
    file = folder / "final.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as e:
        raise DataError(f"{file} is broken ({e}); remove it and resume the run") from None


def _run(plan: RunPlan, folder: Path, *, signals: "_Signals", log: Callable[[str], None]) -> dict[str, Any]:
    last = latest(folder / "checkpoints")
    state = read_state(last) if last else None
    threads = state["threads"] if state else plan.threads
    width = getattr(models.parts.build(plan.model, path="model"), "width", 0)
    machine = prepare_machine(device=plan.device, precision=plan.precision, threads=threads, width=width)
    facts = environment(machine)
    write_json(folder / "env.json", facts)
    kind = "bfloat16" if machine.bfloat16 else "float32"
    log(f"{plan.name}, arm {plan.arm}, seed {plan.seed}: {machine.device.type}, {kind}, {machine.threads} thread(s)")
    if state:
        _check_same(plan, state, facts, log=log)
        log(f"going on after step {state['counters']['run_step']}")

    streams = {spec.stream: plan.streams[spec.stream] for spec in plan.stages}
    built = {name: build_stream(name, spec, device=machine.device) for name, spec in streams.items()}
    data = {name: b.fingerprint() for name, b in built.items()}
    for b in built.values():
        for source, used in _packing_facts(b).items():
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
    extras: dict[str, Any] = state["extras"] if state else {"transfer": {}, "stage0": {}, "borders": {}}
    for b in built.values():
        check_held_out(plan, b)
    feedback = Feedback(
        folder,
        {name: b.stream for name, b in built.items()},
        until=counters.run_step,
        known=state.get("feedback", "") if state else "",
    )
    metrics = _Metrics(folder / "metrics.jsonl", keep=counters.run_step, say=log)

    model: Any = None
    while counters.stage < len(plan.stages):
        spec = plan.stages[counters.stage]
        stream = built[spec.stream]
        model = build_model(plan, vocab_size=stream.stream.vocab_size).to(machine.device)
        going_on = state is not None and counters.step > 0
        old = None if going_on or not spec.weights else _old_weights(plan, spec, extras["borders"], folder)
        handed_on = any(s.weights and s.weights.from_ == spec.name for s in plan.stages)
        initialize(model, spec, seed=plan.seed, old=old, handed_on=handed_on)
        if spec.weights and old is not None:
            rules = Rules(fresh=tuple(spec.weights.fresh), redraw=tuple(spec.weights.redraw), keep=tuple(spec.weights.keep))
            extras["transfer"][spec.name] = rules(dict(model.named_parameters()), roles=model.roles, old=old, seed=plan.seed)
        stage = build_stage(plan, spec, stream, model)
        if going_on and last is not None:
            load_checkpoint(last, model=model, optimizer=stage.optimizer)
        state = None

        sets = held_out_sets(plan, stream)
        valid = {name: _up_to(corpus.documents("valid"), plan.evaluate.valid_bytes) for name, corpus in sets.items()}

        def evaluate(
            stream: BuiltStream = stream, model: Any = model, valid: dict[str, list[Document]] = valid, spec: StageSpec = spec
        ) -> dict[str, Any]:
            if stream.tokenizer is None:
                return _on_unseen_rules(plan, spec, stream, model, machine) if _framed(stream) else {}
            found = {}
            for name, documents in valid.items():
                numbers, _, cost = _text_numbers(plan, stream, model, documents)
                ledger.charge(spec.name, "evaluate", cost)
                found[name] = {k: numbers[k] for k in ("loss_nats", "bits_per_byte")}
            main = {f"valid_{k}": value for k, value in next(iter(found.values())).items()}
            return main if len(found) == 1 else {**main, "valid": found}

        def measure(name: str, position: int, stream: BuiltStream = stream, model: Any = model, spec: StageSpec = spec) -> None:
            losses = {}
            for source, corpus in stream.corpora.items():
                documents = _up_to(corpus.documents("valid"), plan.evaluate.valid_bytes)
                numbers, _, cost = _text_numbers(plan, stream, model, documents)
                ledger.charge(spec.name, "evaluate", cost)
                losses[source] = numbers["loss_nats"]
            feedback.record(
                stream.stream.name, Measurement(step=counters.run_step, position=position, name=name, values=losses)
            )

        def save(model: Any = model, stage: Stage = stage) -> None:
            path = folder / "checkpoints" / f"step-{counters.run_step:08d}"
            if counters.step == stage.steps:
                extras["borders"][stage.name] = path.name
            save_checkpoint(
                path,
                model=model,
                optimizer=stage.optimizer,
                state={
                    "counters": asdict(counters),
                    "ledger": ledger.to_json(),
                    "extras": extras,
                    "feedback": feedback.fingerprint(),
                    "plan": plan.fingerprint(),
                    "data": data,
                    "threads": machine.threads,
                    "environment": _exactness(facts),
                },
            )
            _prune(path, keep=_taken_from(plan, extras["borders"]))

        log(f"stage {spec.name}: {stage.steps} steps of {stream.stream.batch_size} x {stream.stream.seq_len} tokens")
        hooks = Hooks(record=metrics, evaluate=evaluate, save=save, should_stop=signals.stopped, measure=measure)
        train(stage, at=counters, seed=plan.seed, machine=machine, ledger=ledger, hooks=hooks)
        if _framed(stream) and spec.name not in extras["stage0"]:
            started = time.perf_counter()
            extras["stage0"][spec.name] = found = _against_floors(plan, spec, stream, model, machine)
            cost = model.cost(rows=spec.floor_rows, seq_len=stream.stream.seq_len)
            ledger.charge(spec.name, "evaluate", cost + Cost(seconds=time.perf_counter() - started))
            log(_floor_line(spec.name, found))
        counters.stage += 1
        counters.step = 0

    return _finish(plan, folder, model=model, built=built, ledger=ledger, extras=extras, machine=machine, log=log)


def _finish(
    plan: RunPlan,
    folder: Path,
    *,
    model: Any,
    built: dict[str, BuiltStream],
    ledger: Ledger,
    extras: dict[str, Any],
    machine: Machine,
    log: Callable[[str], None],
) -> dict[str, Any]:
    stream = built[plan.stages[-1].stream]
    final: dict[str, Any] = {"status": "done", **_identity(plan), "commit": commit()}
    if stream.tokenizer is not None:
        if plan.evaluate.test:
            final |= _test(plan, folder, stream, model, ledger=ledger, log=log)
        writer = Sample(model=model, tokenizer=stream.tokenizer, seq_len=stream.stream.seq_len)
        prompts = plan.evaluate.samples
        texts = writer.write(prompts, new_tokens=plan.evaluate.sample_tokens, seed=plan.seed)
        final["samples"] = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    final |= {
        "stage0": extras["stage0"],
        "transfer": extras["transfer"],
        "ledger": ledger.to_json(),
        "data": {name: b.fingerprint() for name, b in built.items()},
        "mixture": _mixture_facts(plan, built, ledger),
        "packing": {name: _packing_facts(b) for name, b in built.items() if b.corpora},
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
    write_run_page(folder)
    return final


def _text_numbers(
    plan: RunPlan, stream: BuiltStream, model: Any, documents: list[Document]
) -> tuple[dict[str, float], list[Any], Cost]:
    """Return the numbers over whole documents, the items, and the cost of the forward passes (of disjoint windows)."""
    assert stream.tokenizer is not None
    scorer = OwnRun(model=model, tokenizer=stream.tokenizer, seq_len=stream.stream.seq_len, stride=plan.evaluate.stride)
    items = BitsPerByte()(scorer, documents)
    found, seq_len = summary(items), stream.stream.seq_len
    return found, items, model.cost(rows=1, seq_len=seq_len, counted=seq_len).times(found["tokens"] / seq_len)


def _test(
    plan: RunPlan, folder: Path, stream: BuiltStream, model: Any, *, ledger: Ledger, log: Callable[[str], None]
) -> dict[str, Any]:
    """Read the test part of every held-out set; write items.jsonl. Returns `test`, the main set's numbers, and all by name."""
    sets = held_out_sets(plan, stream)
    documents = {name: _up_to(corpus.documents("test"), plan.evaluate.test_bytes) for name, corpus in sets.items()}
    numbers, lines = {}, []
    for name, some in documents.items():
        started = time.perf_counter()
        numbers[name], items, cost = _text_numbers(plan, stream, model, some)
        ledger.charge(plan.stages[-1].name, "evaluate", cost + Cost(seconds=time.perf_counter() - started))
        group = name if len(sets) > 1 else "text"
        lines += [json.dumps({**asdict(item), "group": group}) + "\n" for item in items]
        log(
            f"test{f' of {name}' if len(sets) > 1 else ''}: {numbers[name]['bits_per_byte']:.4f} bits per "
            f"byte over {numbers[name]['bytes']} bytes"
        )
    write_whole(folder / "items.jsonl", "".join(lines))
    main = next(iter(numbers))
    return {"test": numbers[main]} if len(numbers) == 1 else {"test": numbers[main], "main": main, "held_out": numbers}


def check_held_out(plan: RunPlan, built: BuiltStream) -> None:
    """Raise DataError or ConfigError, before anything is trained, if a held-out part that will be read is not there."""
    sets = {(name, "valid"): corpus for name, corpus in held_out_sets(plan, built).items()}
    if plan.evaluate.test and built.stream.name == plan.stages[-1].stream:
        sets |= {(name, "test"): corpus for name, corpus in held_out_sets(plan, built).items()}
    wants = built.stream.mixture.wants
    if wants is not None:
        if wants[0] != "loss_nats" or not built.corpora:
            raise ConfigError(
                f"the mixture of stream {built.stream.name} asks for {wants[0]!r}, which is measured on text sources only"
            )
        sets |= {(name, "valid"): corpus for name, corpus in built.corpora.items()}
    for (name, part), corpus in sets.items():
        if not len(corpus.documents(part)):
            raise DataError(
                f"the held-out set {name!r} has no document in its {part} part; give more documents or a "
                f"larger {part}_share, or "
                "name other sets under evaluate.sets"
            )


def _packing_facts(built: BuiltStream) -> dict[str, Any]:
    """What packing left unused or left out of every source's training part: padding and cropped tokens."""
    return {name: source.report("train") for name, source in built.stream.sources.items() if hasattr(source, "report")}


def _mixture_facts(plan: RunPlan, built: Mapping[str, BuiltStream], ledger: Ledger) -> dict[str, Any]:
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
        wanted = (
            mixed.wanted(total // b.stream.seq_len, sizes=sizes, history=b.stream.history) if hasattr(mixed, "wanted") else {}
        )
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


def _up_to(documents: Any, most_bytes: int | None) -> list[Document]:
    """Return whole documents from the first on, until the next would pass the limit; at least one."""
    kept: list[Document] = []
    size = 0
    for document in documents:
        size += document.size_bytes
        if kept and most_bytes is not None and size > most_bytes:
            break
        kept.append(document)
    return kept


def _framed(stream: BuiltStream) -> bool:
    """Whether rows are frames one after the other, so that floors and completion mean something."""
    return (
        len(stream.stream.sources) == 1
        and hasattr(stream.source, "frame_tokens")
        and all(v.keeps_order for v in stream.stream.views)
    )


def _on_unseen_rules(plan: RunPlan, spec: StageSpec, stream: BuiltStream, model: Any, machine: Machine) -> dict[str, float]:
    """The loss on the way: the rows and tokens of the record at the stage's end."""
    source: Any = stream.source
    rows = stream.stream.rows(0, count=spec.floor_rows, seed=plan.seed, split="valid")
    nll_RT = row_nats(model, rows, machine=machine)
    return {"valid_loss_nats": after_first_frame(nll_RT, frame_tokens=source.frame_tokens)}


def _against_floors(plan: RunPlan, spec: StageSpec, stream: BuiltStream, model: Any, machine: Machine) -> dict[str, Any]:
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


def _floor_line(name: str, found: dict[str, Any]) -> str:
    floors = ", ".join(f"{k} {v:.3f}" for k, v in found["floors_nats"].items())
    verdict = "learned" if found["learned"] else "did not learn"
    return f"stage {name} {verdict}: {found['loss_nats']:.3f} nats on unseen rules after frame 1; floors: {floors}"


def _old_weights(plan: RunPlan, spec: StageSpec, borders: dict[str, str], folder: Path) -> dict[Role, torch.Tensor]:
    """Return the weights with which the stage named under `weights.from` ended, by role."""
    assert spec.weights is not None
    giver = next(s for s in plan.stages if s.name == spec.weights.from_)
    vocabulary = build_stream(giver.stream, plan.streams[giver.stream]).stream.vocab_size
    roles = build_model(plan, vocab_size=vocabulary).roles
    found = load_weights(folder / "checkpoints" / borders[giver.name])
    return {roles[name]: found[name] for name in roles}


def _taken_from(plan: RunPlan, borders: dict[str, str]) -> set[str]:
    """The checkpoints at stage borders that a stage of the plan takes its weights from."""
    givers = {s.weights.from_ for s in plan.stages if s.weights}
    return {checkpoint for stage, checkpoint in borders.items() if stage in givers}


def _prune(newest: Path, *, keep: set[str]) -> None:
    """Remove older step checkpoints, after the newest is safely on disk."""
    for old in newest.parent.glob("step-*"):
        if old.name < newest.name and old.name not in keep:
            shutil.rmtree(old, ignore_errors=True)
    for half in newest.parent.glob(".step-*"):  # of a killed run; nobody else writes here
        shutil.rmtree(half, ignore_errors=True)


def _as_final(folder: Path) -> None:
    """Name the last checkpoint "final"; a run killed in between finds it under that name."""
    last = latest(folder / "checkpoints")
    if last is not None and last.name != "final":
        os.replace(last, last.with_name("final"))


def _identity(plan: RunPlan) -> dict[str, Any]:
    return {"name": plan.name, "arm": plan.arm, "seed": plan.seed, "plan": plan.fingerprint()}


def _exactness(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts under which a resume is exact to the bit."""
    return {
        k: facts[k] if k != "packages" else {p: facts[k][p] for p in ("torch", "numpy", "numba")}
        for k in ("packages", "cpu_capability", "threads", "precision", "device")
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


def _no_space(error: OSError, folder: Path) -> RunFailedError:
    again = f"go on with `seedbed resume {folder}`: the last checkpoint is whole"
    if error.errno == errno.ENOSPC:
        return RunFailedError(f"no space left while writing to {folder}; free some and {again}")
    return RunFailedError(f"could not write to {folder}: {error}; mend that and {again}")


class _Metrics:
    """metrics.jsonl: a line a step. On resume, lines after the checkpoint are cut off; they will be written again."""

    def __init__(self, path: Path, *, keep: int, say: Callable[[str], None]) -> None:
        lines = []
        if path.is_file():
            for line in path.read_text().splitlines(keepends=True):
                with suppress(ValueError):
                    if line.endswith("\n") and json.loads(line)["run_step"] <= keep:
                        lines.append(line)
        write_whole(path, "".join(lines))
        self._file = path.open("a")
        self._say, self._last_said = say, 0.0

    def __call__(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        evaluated = "valid_loss_nats" in line
        if evaluated or time.monotonic() - self._last_said > 10:
            self._last_said = time.monotonic()
            speed = line["tokens"] / line["step"] / line["seconds"]
            valid = f", valid {line['valid_loss_nats']:.4f}" if evaluated else ""
            self._say(
                f"{line['stage']} step {line['step']}: loss {line['loss_nats']:.4f}{valid}, "
                f"rate {line['learning_rate']:.2e}, gradient {line['gradient_norm']:.2f}, {speed:,.0f} tokens/s"
            )


class _Log:
    """log.txt and the screen, line by line."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say

    def __enter__(self) -> Callable[[str], None]:
        self._file = self._path.open("a")
        return self._write

    def _write(self, line: str) -> None:
        with suppress(BrokenPipeError):  # whoever read along has gone; the run goes on
            self._say(line)
        with suppress(OSError):
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Signals:
    """Turns SIGINT and SIGTERM into a wish to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self._wanted = False
        self._parent = int(os.environ.get(PARENT, "0"))
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        with suppress(ValueError):  # not in the main thread: signals stay as they are
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._want)
        return self

    def _want(self, number: int, frame: object) -> None:
        if self._wanted:
            raise InterruptedRunError("stopped at once by a second signal; the last checkpoint is whole")
        self._wanted = True
        print("stopping after this step (once more stops at once) ...", file=sys.stderr, flush=True)

    def stopped(self) -> bool:
        return self._wanted or bool(self._parent and os.getppid() != self._parent)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
