"""A plan's parts put together: models and stages. Here, in parts.py and in streams.py alone parts of different rooms meet."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from seedbed import mixture, models, objectives, optimizers, packing, schedules, sources, tokenizers, transfer, views, writers
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.patterns import first_match, matches
from seedbed.core.records import Cost, Role, blank
from seedbed.core.registry import Registry
from seedbed.engine.lent import Lent
from seedbed.engine.precision import Machine, prepare_machine
from seedbed.engine.ranks import Ranks
from seedbed.engine.step import Term
from seedbed.engine.system import System
from seedbed.engine.train import Stage
from seedbed.experiments.parts import model_kind, rules_of, stage_parts, terms_of
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import StageSpec
from seedbed.experiments.streams import BuiltStream, StreamParts, stream_parts


def machine_for(plan: RunPlan, *, threads: int | None = None, ranks: Ranks | None = None, shard: str = "none") -> Machine:
    """Set this process up as a plan asks, and return what was chosen; `threads` win over the plan's."""
    return prepare_machine(
        device=plan.device,
        precision=plan.precision,
        threads=threads or plan.threads,
        width=model_kind(plan).width,
        deterministic=plan.deterministic,
        ranks=ranks,
        compiled=plan.compiled,
        recompute=plan.recompute,
        shard=shard,
    )


def build_model(plan: RunPlan, spec: StageSpec | None = None, *, vocab_size: int) -> Any:
    """Return the model of a stage (the plan's, if None) with uninitialized weights."""
    return model_kind(plan, spec).build(vocab_size=vocab_size)


def build_system(plan: RunPlan, spec: StageSpec, model: Any) -> System:
    """Return a stage's model together with what its objectives build for themselves."""
    made = {term.name: term.objective.build(model, seed=plan.seed) for term in terms_of(spec)}
    return System(model, {name: module for name, module in made.items() if module is not None})


def initialize(
    model: Any, spec: StageSpec, *, seed: int, old: Mapping[Role, torch.Tensor] | None, feeds_later_stage: bool = False
) -> None:
    """Draw a stage's weights anew, as the plan asks; `old` gives the spread if the embedding is to be "trained".

    The body of a first stage and the outer weights of the last are paired over arms: both come from the stream "init".
    `feeds_later_stage` says that a later stage takes weights from this one and draws some anew.
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
    elif feeds_later_stage:  # embedding and head are thrown away later: they share no draw with the ones that follow
        outer = f"init-{spec.name}"
    model.initialize(seed=seed, stream=outer, body_stream=spec.body_stream or body, embedding_std=std)


def trained_of(spec: StageSpec, system: System) -> list[tuple[Role, Any]]:
    """Return the role and the parameter of all that a stage trains: what no `frozen` pattern matches."""
    frozen, roles = tuple(spec.frozen), system.roles
    layers = 1 + max((r.layer for r in roles.values() if r.layer is not None), default=-1)
    return [
        (roles[name], parameter)
        for name, parameter in system.named_parameters()
        if first_match(frozen, roles[name], num_layers=layers) is None
    ]


def step_cost_of(spec: StageSpec, system: System) -> Cost:
    """Return the cost of an optimizer's step, where it is more than a pass over the weights."""
    optimizer = optimizers.parts.once(spec.optimizer, path=f"stages.{spec.name}.optimizer")
    cost: Cost = optimizer.cost(trained_of(spec, system))
    return cost


def steps_of(plan: RunPlan, spec: StageSpec, system: System) -> int:
    """Return a stage's number of steps; the budget is rounded to whole steps, at least one."""
    stream, budget = plan.streams[spec.stream], spec.budget
    tokens = stream.batch_size * stream.seq_len
    if budget.steps is not None:
        return budget.steps
    if budget.seconds is not None:
        if budget.timed is None:
            raise ConfigError(
                f"stages.{spec.name}.budget: {budget.seconds:g} seconds become steps when a run begins, by timing one; give "
                "steps, tokens or FLOPs to know beforehand"
            )
        return budget.timed.steps
    if budget.tokens is not None:
        return max(1, round(budget.tokens / tokens))
    forward = system.model.cost(blank(rows=stream.batch_size, seq_len=stream.seq_len))
    each = forward.times(3) + step_cost_of(spec, system)
    if budget.flops_run is not None:
        return max(1, round(budget.flops_run / each.flops_run))
    return max(1, round((budget.flops_ideal or 0) / each.flops_ideal))


def build_stage(
    plan: RunPlan,
    spec: StageSpec,
    built: Mapping[str, BuiltStream],
    system: System,
    *,
    micro_batch_size: int | None = None,
    clock: int = 0,
    lent: Mapping[str, Lent] | None = None,
) -> Stage:
    """Return a stage ready to train; parameters that a `frozen` pattern matches get no gradient.

    `micro_batch_size` wins over the plan's; `clock` are the steps that its schedule has behind it.
    """
    parts, trained = stage_parts(plan, spec), trained_of(spec, system)
    if not trained:
        raise ConfigError(f"stages.{spec.name}.frozen: {spec.frozen} leaves nothing to train")
    system.requires_grad_(False)
    for _, parameter in trained:
        parameter.requires_grad_()
    steps, stream = steps_of(plan, spec, system), built[spec.stream].stream
    return Stage(
        name=spec.name,
        stream=stream,
        further={name: built[name].stream for name in spec.further},
        system=system,
        terms=list(parts.terms),
        lent=lent or {},
        optimizer=parts.optimizer.build(trained),
        learning_rate=parts.optimizer.learning_rate,
        schedule=parts.schedule,
        steps=steps,
        step_cost=step_cost_of(spec, system),
        micro_batch_size=micro_batch_size or spec.micro_batch_size or stream.batch_size,
        clip_norm=spec.clip_norm,
        checkpoint_every=plan.checkpoint_every,
        keep_every=plan.keep_every,
        keep_at=frozenset(b.at for b in plan.branches.values() if isinstance(b.at, int)),
        clock=clock,
    )


def layout_free(plan: RunPlan) -> bool:
    """Whether micro-batches and ranks change a run's losses by rounding alone: its models and all objectives must say so."""
    stages = [stage_parts(plan, spec) for spec in plan.stages]
    return all(parts.kind.layout_free and all(term.objective.layout_free for term in parts.terms) for parts in stages)


def check_parts(plan: RunPlan) -> None:
    """Build every part of a plan without reading data, so that a wrong setting is found before anything starts."""
    streams = {name: stream_parts(name, spec) for name, spec in plan.streams.items()}
    writers.parts.once(plan.samples.writer, path="samples.writer")
    last = plan.stages[-1]
    for stage in plan.all_stages:
        parts = stage_parts(plan, stage)
        with torch.device("meta"):
            system = build_system(plan, stage, build_model(plan, stage, vocab_size=8))
        if stage is last and plan.samples.prompts and streams[stage.stream].give_text:
            try:
                parts.kind.stepper(system.model)
            except ConfigError as e:
                raise ConfigError(f"samples: {e} (or leave `samples` empty)") from None
        _check_patterns(stage, list(system.roles.values()))
        if not parts.kind.causal:
            _check_sight(stage, streams)
        _check_terms(plan, stage, parts.terms)
        micro = stage.micro_batch_size
        if micro is not None and micro > plan.streams[stage.stream].batch_size:
            raise ConfigError(f"stages.{stage.name}.micro_batch_size {micro} is more than the stream's batch_size")


def reads_text(plan: RunPlan, spec: StageSpec) -> bool:
    """Whether a stage's model can be asked what follows in a text: one that sees what follows cannot."""
    return model_kind(plan, spec).causal


def _check_terms(plan: RunPlan, stage: StageSpec, terms: Sequence[Term]) -> None:
    """Raise ConfigError if a term reads a stream or a model that is not there, or micro-batches cut its groups."""
    for i, term in enumerate(terms):
        path = f"stages.{stage.name}.objective.{i}"
        for name in term.objective.streams:
            if name not in (stage.stream, *stage.further):
                known = [stage.stream, *stage.further]
                raise ConfigError(f"{path}: it reads the stream {name!r}, which is not under `further`; {nearest(name, known)}")
        for name in term.objective.models:
            if name not in plan.models:
                raise ConfigError(f"{path}: it needs the model {name!r} under `models`; {nearest(name, plan.models)}")
        rows = stage.micro_batch_size or plan.streams[stage.stream].batch_size
        if rows % term.objective.group:
            raise ConfigError(
                f"{path}: its rows belong together by {term.objective.group}, and micro-batches have {rows}; give a multiple"
            )


def _check_sight(stage: StageSpec, streams: Mapping[str, StreamParts]) -> None:
    """Raise ConfigError if a model that sees later positions finds, in what a view shows, the answer to what the view asks."""
    for name in (stage.stream, *stage.further):
        for i, view in enumerate(streams[name].views):
            if view.asks_next:
                raise ConfigError(
                    f"stages.{stage.name}: the model sees later positions, and the view streams.{name}.views.{i} asks at "
                    "each for the one that follows: the answer stands in its sight, so the loss would say nothing. Take `mask: "
                    "causal`, or a view that hides what it asks"
                )


def _check_patterns(stage: StageSpec, roles: list[Role]) -> None:
    """Raise ConfigError for a role pattern that cannot be read or addresses nothing."""
    layers = 1 + max((r.layer for r in roles if r.layer is not None), default=-1)
    lists: dict[str, Sequence[str]] = {"frozen": stage.frozen}
    if stage.weights is not None:
        lists |= {f"weights.{name}": patterns for name, patterns in rules_of(stage).patterns.items()}
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
    from seedbed import columns, curate, evaluate, orders, scorers, trackers
    from seedbed.models import layers

    data = [sources, curate, columns, orders, tokenizers, packing, mixture, views]
    training = [models, layers, objectives, optimizers, schedules, transfer]
    return {r.parts.room: r.parts for r in [*data, *training, scorers, writers, evaluate, trackers]}
