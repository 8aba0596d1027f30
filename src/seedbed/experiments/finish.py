"""The end of a run: its test parts are read once, what it has to show is written, and final.json last of all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seedbed.core.draws import key
from seedbed.core.durable import write_json, write_whole
from seedbed.engine.checkpoints import FINAL, latest, prune
from seedbed.experiments.assemble import model_kind, reads_text
from seedbed.experiments.callbacks import taken_from
from seedbed.experiments.environment import commit
from seedbed.experiments.readings import left_out, mixture_facts, packing_facts, test_numbers
from seedbed.experiments.recipe import RunPlan
from seedbed.experiments.run_state import RunState
from seedbed.experiments.streams import BuiltStream
from seedbed.writers.sample import Sample


def finish(
    plan: RunPlan,
    folder: Path,
    *,
    model: Any,
    built: dict[str, BuiltStream],
    state: RunState,
    spikes: list[dict[str, Any]],
    branches: dict[str, Any],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Read the test parts, write what the run has to show and final.json last; return that."""
    stream, ledger = built[plan.stages[-1].stream], state.ledger
    final: dict[str, Any] = {"status": "done", **identity(plan), "commit": commit()}
    if stream.tokenizer is not None and not reads_text(plan, plan.stages[-1]):
        log("note: the model sees later positions, so no held-out text is scored: what follows is never a question to it")
    elif stream.tokenizer is not None:
        if plan.evaluate.test:
            final |= test_numbers(plan, folder, stream, model, ledger=ledger, log=log)
        writer = Sample(
            model=model,
            stepper=model_kind(plan, plan.stages[-1]).stepper,
            tokenizer=stream.tokenizer,
            seq_len=stream.stream.seq_len,
        )
        prompts = plan.evaluate.samples
        texts = writer.write(prompts, new_tokens=plan.evaluate.sample_tokens, seed=plan.seed)
        final["samples"] = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    final |= {
        **({"branches": branches} if branches else {}),
        "stage0": state.floors,
        "transfer": state.transfer,
        "givers": state.givers,
        **({"lent": state.lent} if state.lent else {}),
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
    for name, b in built.items():
        for source_name, source in b.stream.sources.items():
            shown = source.exhibit(seed=key(plan.seed, name, source_name))  # the seed of the training rows
            if shown is None:
                continue
            write_whole(folder / "exhibits" / f"{name}.png", shown.picture)
            write_json(folder / "exhibits" / f"{name}.json", dict(shown.facts))
    _as_final(folder)
    write_json(folder / "final.json", final)
    prune(folder / "checkpoints", keep=taken_from(plan, state.borders), last=0, every=plan.keep_every)
    return final


def _as_final(folder: Path) -> None:
    """Name the last checkpoint "final"; a run killed in between finds it under that name."""
    last = latest(folder / "checkpoints")
    if last is not None and last.name != FINAL:
        os.replace(last, last.with_name(FINAL))


def identity(plan: RunPlan) -> dict[str, Any]:
    """Return what names a run in its final.json."""
    return {"name": plan.name, "arm": plan.arm, "seed": plan.seed, "plan": plan.fingerprint()}
