"""A plan's parts, built and put together: models and stages. With streams.py the only place where parts of different rooms
meet.
"""

from collections.abc import Mapping
from typing import Any

import torch

from seedbed import mixture, models, objectives, optimizers, packing, schedules, sources, tokenizers, views
from seedbed.core.errors import ConfigError
from seedbed.core.patterns import first_match, matches
from seedbed.core.records import Cost, Role
from seedbed.core.registry import Registry
from seedbed.engine.precision import Machine, prepare_machine
from seedbed.engine.ranks import Ranks
from seedbed.engine.train import Stage
from seedbed.experiments.recipe import Part, RunPlan, StageSpec
from seedbed.experiments.streams import BuiltStream, gives_text


def machine_for(plan: RunPlan, *, threads: int | None = None, ranks: Ranks | None = None, shard: str = "none") -> Machine:
    """Set this process up as a plan asks, and return what was chosen; `threads` win over the plan's."""
    return prepare_machine(
        device=plan.device,
        precision=plan.precision,
        threads=threads or plan.threads,
        width=models.parts.build(plan.model, path="model").width,
        deterministic=plan.deterministic,
        ranks=ranks,
        compiled=plan.compiled,
        recompute=plan.recompute,
        shard=shard,
    )


def build_model(plan: RunPlan, *, vocab_size: int) -> Any:
    """Return a model with uninitialized weights."""
    return models.parts.build(plan.model, path="model").build(vocab_size=vocab_size)


def initialize(
    model: Any, spec: StageSpec, *, seed: int, old: Mapping[Role, torch.Tensor] | None, handed_on: bool = False
) -> None:
    """Draw a stage's weights anew, as the plan asks; `old` gives the spread if the embedding is to be "trained".

    The body of a first stage and the outer weights of the last are paired over arms: both come from the stream "init".
    `handed_on` says that a later stage takes weights from this one and draws some anew.
    """
    std = spec.embedding_std
    if std == "trained":
        old_embedding = next((v for r, v in (old or {}).items() if r.part == "embedding"), None)
        if old_embedding is None:
            raise ConfigError(f"stages.{spec.name}.embedding_std: 'trained' needs weights from an earlier stage")
        std = float(old_embedding.std())
    outer, body = "init", "init"
    if spec.weights is not None:  # what is drawn anew behind another stage is no rewind to that stage's own start
        body = f"init-{spec.name}"
    elif handed_on:  # embedding and head are thrown away later: they share no draw with the ones that follow
        outer = f"init-{spec.name}"
    model.initialize(seed=seed, stream=outer, body_stream=spec.body_stream or body, embedding_std=std)


def trained_of(spec: StageSpec, model: Any) -> list[tuple[Role, Any]]:
    """Return the role and the parameter of all that a stage trains: what no `frozen` pattern matches."""
    frozen = tuple(spec.frozen)
    layers = 1 + max((r.layer for r in model.roles.values() if r.layer is not None), default=-1)
    return [
        (model.roles[name], parameter)
        for name, parameter in model.named_parameters()
        if first_match(frozen, model.roles[name], num_layers=layers) is None
    ]


def step_cost_of(spec: StageSpec, model: Any) -> Cost:
    """Return the cost of an optimizer's step, where it is more than a pass over the weights."""
    optimizer = optimizers.parts.build(spec.optimizer, path=f"stages.{spec.name}.optimizer")
    return optimizer.cost(trained_of(spec, model)) if hasattr(optimizer, "cost") else Cost()


def steps_of(plan: RunPlan, spec: StageSpec, model: Any) -> int:
    """Return a stage's number of steps; the budget is rounded to whole steps, at least one."""
    stream, budget = plan.streams[spec.stream], spec.budget
    tokens = stream.batch_size * stream.seq_len
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return max(1, round(budget.tokens / tokens))
    forward = model.cost(rows=stream.batch_size, seq_len=stream.seq_len)
    each = forward.times(3) + step_cost_of(spec, model)
    if budget.flops_run is not None:
        return max(1, round(budget.flops_run / each.flops_run))
    return max(1, round((budget.flops_ideal or 0) / each.flops_ideal))


def build_stage(
    plan: RunPlan, spec: StageSpec, built: BuiltStream, model: Any, *, micro_batch_size: int | None = None, clock: int = 0
) -> Stage:
    """Return a stage ready to train; parameters that a `frozen` pattern matches get no gradient.

    `micro_batch_size` wins over the plan's; `clock` are the steps that its schedule has behind it.
    """
    path = f"stages.{spec.name}"
    trained = trained_of(spec, model)
    if not trained:
        raise ConfigError(f"{path}.frozen: {spec.frozen} leaves nothing to train")
    model.requires_grad_(False)
    for _, parameter in trained:
        parameter.requires_grad_()
    optimizer = optimizers.parts.build(spec.optimizer, path=f"{path}.optimizer")
    steps = steps_of(plan, spec, model)
    return Stage(
        name=spec.name,
        stream=built.stream,
        model=model,
        objectives=[_objective(o, path=f"{path}.objective.{i}") for i, o in enumerate(spec.objective)],
        optimizer=optimizer.build(trained),
        learning_rate=optimizer.learning_rate,
        schedule=schedules.parts.build(spec.schedule, path=f"{path}.schedule"),
        steps=steps,
        step_cost=step_cost_of(spec, model),
        micro_batch_size=micro_batch_size or spec.micro_batch_size or built.stream.batch_size,
        clip_norm=spec.clip_norm,
        evaluate_every=max(1, steps // spec.evaluations),
        evaluate_at=frozenset(spec.evaluate_at),
        checkpoint_every=plan.checkpoint_every,
        keep_every=plan.keep_every,
        clock=clock,
    )


def layout_free(plan: RunPlan) -> bool:
    """Whether micro-batches and ranks change a run's losses by rounding alone: its model and all objectives must say so."""
    named = [o for spec in plan.stages for o in spec.objective]
    parts = [models.parts.build(plan.model, path="model"), *(_objective(o, path="objective")[1] for o in named)]
    return all(part.layout_free for part in parts)


def _objective(spec: Part, *, path: str) -> tuple[float, Any]:
    if isinstance(spec, str):
        return 1.0, objectives.parts.build(spec, path=path)
    settings = dict(spec)
    weight = settings.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"{path}.weight: must be a number, got {weight!r}")
    return float(weight), objectives.parts.build(settings, path=path)


def check_parts(plan: RunPlan) -> None:
    """Build every part of a plan without reading data, so that a wrong setting is found before anything starts."""
    for name, spec in plan.streams.items():
        shared = {"seq_len": spec.seq_len}
        for source, part in spec.named_sources.items():
            at = "source" if spec.source is not None else f"sources.{source}"
            sources.parts.build(part, path=f"streams.{name}.{at}", shared=shared)
        packing.parts.build(spec.packing, path=f"streams.{name}.packing", shared=shared)
        mixture.parts.build(spec.mixture, path=f"streams.{name}.mixture", shared=shared)
        if spec.tokenizer is not None:
            tokenizers.parts.build(spec.tokenizer, path=f"streams.{name}.tokenizer")
        for i, view in enumerate(spec.views):
            views.parts.build(view, path=f"streams.{name}.views.{i}")
    with torch.device("meta"):
        model = build_model(plan, vocab_size=8)
        if plan.evaluate.samples and gives_text(plan.streams[plan.stages[-1].stream]):
            try:
                model.stepper()
            except ConfigError as e:
                raise ConfigError(f"evaluate.samples: {e} (or leave `samples` empty)") from None
    roles = model.roles
    for stage in plan.stages:
        path = f"stages.{stage.name}"
        _check_patterns(stage, list(roles.values()))
        optimizers.parts.build(stage.optimizer, path=f"{path}.optimizer")
        schedules.parts.build(stage.schedule, path=f"{path}.schedule")
        for i, term in enumerate(stage.objective):
            _objective(term, path=f"{path}.objective.{i}")
        micro = stage.micro_batch_size
        if micro is not None and micro > plan.streams[stage.stream].batch_size:
            raise ConfigError(f"{path}.micro_batch_size {micro} is more than the stream's batch_size")


def _check_patterns(stage: StageSpec, roles: list[Role]) -> None:
    """Raise ConfigError for a role pattern that cannot be read or addresses nothing."""
    layers = 1 + max((r.layer for r in roles if r.layer is not None), default=-1)
    weights = stage.weights
    lists = {"frozen": stage.frozen}
    if weights is not None:
        lists |= {"weights.fresh": weights.fresh, "weights.redraw": weights.redraw, "weights.keep": weights.keep}
    for where, patterns in lists.items():
        for pattern in patterns:
            try:
                hit = any(matches(pattern, role, num_layers=layers) for role in roles)
            except ConfigError as e:
                raise ConfigError(f"stages.{stage.name}.{where}: {e}") from None
            if not hit:
                raise ConfigError(
                    f"stages.{stage.name}.{where}: {pattern!r} addresses no parameter of this model; "
                    f"roles: {', '.join(sorted({r.part for r in roles}))}, layers 0 to {layers - 1}"
                )


def rooms() -> dict[str, Registry]:
    """Return the registries of all rooms by name."""
    from seedbed import curate, evaluate, scorers, trackers, transfer, writers
    from seedbed.models import layers

    found = [sources, curate, tokenizers, packing, mixture, views, models, layers, objectives, optimizers, schedules]
    return {r.parts.room: r.parts for r in [*found, transfer, scorers, writers, evaluate, trackers]}
