"""The end of a run: what is asked then is read once, what it has to show is written, and final.json last of all."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from seedbed import writers
from seedbed.core.draws import key
from seedbed.core.durable import write_json, write_whole
from seedbed.core.protocols import Tokenizer, WriterKind
from seedbed.engine.checkpoints import FINAL, latest, prune
from seedbed.engine.precision import Machine
from seedbed.engine.system import System
from seedbed.experiments.environment import commit
from seedbed.experiments.parts import model_kind
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.run.callbacks import checkpoints_given_on
from seedbed.experiments.run.evaluations import Evaluation, evaluations_of, read_whole
from seedbed.experiments.run.of_streams import left_out, mixture_facts, packing_facts
from seedbed.experiments.run.probes import matrices
from seedbed.experiments.run.state import RunState
from seedbed.experiments.run.subject import RunSubject
from seedbed.experiments.streams import BuiltStream


def finish(
    plan: RunPlan,
    folder: Path,
    *,
    system: System,
    built: dict[str, BuiltStream],
    state: RunState,
    spikes: list[dict[str, Any]],
    branches: dict[str, Any],
    machine: Machine,
    asked: Iterable[Evaluation],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Read in whole what is `asked` at the end, write what the run has to show and final.json last; return that."""
    stream, ledger, model = built[plan.stages[-1].stream], state.ledger, system.model
    final: dict[str, Any] = {"status": "done", **identity(plan), "commit": commit()}
    last = plan.stages[-1]
    subject = RunSubject(
        seed=plan.seed,
        built=stream,
        causal=model_kind(plan, last).causal,
        model=model,
        own=system.own,
        machine=machine,
        charge=partial(ledger.charge, last.name, "evaluate"),
    )
    for one in asked:
        state.evaluations[one.name] = read_whole(one, last.name, subject, folder, charge=subject.charge, write=True, log=log)
    if stream.tokenizer is not None and subject.causal:
        final["samples"] = _samples(plan, model, tokenizer=stream.tokenizer, seq_len=stream.stream.seq_len)
    final |= {
        **({"branches": branches} if branches else {}),
        **({"probes": matrices(plan.probes, branches, state.evaluations)} if plan.probes else {}),
        "evaluations": {name: state.evaluations[name] for name in evaluations_of(plan) if name in state.evaluations}
        | {f"{name}/{asked}": told for name, side in branches.items() for asked, told in side["evaluations"].items()},
        "transfer": state.transfer,
        "givers": state.givers,
        **({"lent": state.lent} if state.lent else {}),
        **({"trained_first": state.trained_first} if state.trained_first else {}),
        **({"prepared": state.prepared} if state.prepared else {}),
        "spikes": spikes,
        "waited": state.waited,
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
    _write_exhibits(plan, folder, built)
    _as_final(folder)
    write_json(folder / "final.json", final)
    prune(folder / "checkpoints", keep=checkpoints_given_on(plan, state.borders), last=0, every=plan.keep_every)
    return final


def _samples(plan: RunPlan, model: Any, *, tokenizer: Tokenizer, seq_len: int) -> list[dict[str, str]]:
    """Return the prompts with what the trained model goes on with."""
    kind: WriterKind = writers.parts.once(plan.samples.writer, path="samples.writer")
    writer = kind.opened(
        model=model,
        stepper=model_kind(plan, plan.stages[-1]).stepper,
        tokenizer=tokenizer,
        seq_len=seq_len,
    )
    prompts = plan.samples.prompts
    texts = writer.write(prompts, new_tokens=plan.samples.tokens, seed=plan.seed)
    return [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]


def _write_exhibits(plan: RunPlan, folder: Path, built: dict[str, BuiltStream]) -> None:
    """Write what sources have to show."""
    for name, b in built.items():
        for source_name, source in b.stream.sources.items():
            shown = source.exhibit(seed=key(plan.seed, name, source_name))  # the seed of the training rows
            if shown is None:
                continue
            file = name if len(b.stream.sources) == 1 else f"{name}.{source_name}"
            write_whole(folder / "exhibits" / f"{file}.png", shown.picture)
            write_json(folder / "exhibits" / f"{file}.json", dict(shown.facts))


def _as_final(folder: Path) -> None:
    """Name the last checkpoint "final"; a run killed in between finds it under that name."""
    last = latest(folder / "checkpoints")
    if last is not None and last.name != FINAL:
        os.replace(last, last.with_name(FINAL))


def identity(plan: RunPlan) -> dict[str, Any]:
    """Return what names a run in its final.json."""
    return {"name": plan.name, "arm": plan.arm, "seed": plan.seed, "plan": plan.fingerprint()}
