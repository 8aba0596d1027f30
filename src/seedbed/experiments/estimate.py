"""How long, how much memory, how many tokens: from the plan and a few timed steps, before anything is written."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from seedbed.core.ledger import Ledger
from seedbed.core.records import Measurement
from seedbed.engine.precision import prepare_machine
from seedbed.engine.train import Counters, Hooks, train
from seedbed.experiments.assemble import BuiltStream, build_model, build_stage, build_stream, held_out_sets, initialize
from seedbed.experiments.recipe import RunPlan

_TRIALS = 4  # timed steps a stage; the first one is left out


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage of one run."""

    stage: str
    steps: int
    tokens: int
    parameters: int
    seconds: float
    memory_mib: float  # weights, gradients, moments and activations


def estimate(plan: RunPlan) -> list[StageEstimate]:
    """Build every stage and train a few steps on a throw-away model. Evaluation is counted by its forward passes."""
    found = []
    for spec in plan.stages:
        built = build_stream(spec.stream, plan.streams[spec.stream])
        model = build_model(plan, vocab_size=built.stream.vocab_size)
        machine = prepare_machine(device=plan.device, precision=plan.precision, threads=plan.threads, width=model.config.width)
        model.to(machine.device)
        initialize(model, spec.model_copy(update={"embedding_std": None}), seed=plan.seed, old=None)
        stage = build_stage(plan, spec, built, model)
        times: list[float] = []
        hooks = Hooks(
            record=partial(_note, times),
            evaluate=dict,
            save=lambda wait: None,
            measure=_even(built),
            should_stop=lambda: False,
        )
        at = Counters(positions={built.stream.name: 0})
        trial = replace(stage, steps=min(_TRIALS, stage.steps), evaluate_every=10**9, checkpoint_every=10**9)
        started = time.perf_counter()
        train(trial, at=at, seed=plan.seed, machine=machine, ledger=Ledger(), hooks=hooks)
        step = statistics.median(times[1:] or [time.perf_counter() - started])
        tokens = stage.stream.batch_size * stage.stream.seq_len
        evaluated = 0
        for corpus in held_out_sets(plan, built).values():
            test = sum(d.size_bytes for d in corpus.documents("test"))
            test = min(test, plan.evaluate.test_bytes or test) if spec is plan.stages[-1] else 0
            evaluated += (spec.evaluations + len(spec.evaluate_at)) * plan.evaluate.valid_bytes + test
        parameters = sum(p.numel() for p in model.parameters())
        width, layers = model.config.width, len(model.blocks)
        rows = stage.micro_batch_size * stage.stream.seq_len
        activations = rows * (layers * (14 * width + 4 * (model.config.d_ff or 0)) + 3 * built.stream.vocab_size) * 4
        found.append(
            StageEstimate(
                stage=spec.name,
                steps=stage.steps,
                tokens=stage.steps * tokens,
                parameters=parameters,
                seconds=stage.steps * step + evaluated / tokens * step / 3,
                memory_mib=(16 * parameters + activations) / 2**20,
            )
        )
        del model, stage
    torch.manual_seed(0)
    return found


def _even(built: BuiltStream) -> Callable[[str, int], None]:
    """Measurements for a mixture that asks for them: all sources alike."""

    def measure(name: str, position: int) -> None:
        values = dict.fromkeys(built.stream.sources, 0.0)
        built.stream.history.append(Measurement(step=0, position=position, name=name, values=values))

    return measure


def _note(times: list[float], line: dict[str, Any]) -> None:
    times.append(line["seconds"])
