"""A plan's parts, built and put together: models and stages. With streams.py the only place where parts of different rooms
meet.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from seedbed import mixture, models, objectives, optimizers, packing, schedules, sources, tokenizers, transfer, views, writers
from seedbed.core.config import merged
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.patterns import first_match, matches
from seedbed.core.protocols import Transfer
from seedbed.core.records import Cost, Progress, Role, blank
from seedbed.core.registry import Registry
from seedbed.engine.lent import Lent
from seedbed.engine.precision import Machine, prepare_machine
from seedbed.engine.ranks import Ranks
from seedbed.engine.step import Term
from seedbed.engine.system import System
from seedbed.engine.train import Stage
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import Part, StageSpec
from seedbed.experiments.streams import BuiltStream, gives_text


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


def model_kind(plan: RunPlan, spec: StageSpec | None = None) -> Any:
    """Return the settings of the model, with a stage's changes of it."""
    changed = spec is not None and spec.model
    return models.parts.build(model_part(plan, spec), path=f"stages.{spec.name}.model" if spec and changed else "model")


def model_part(plan: RunPlan, spec: StageSpec | None = None) -> Part:
    """Return the part that `model_kind` builds."""
    if spec is None or not spec.model:
        return plan.model
    return merged({"kind": plan.model} if isinstance(plan.model, str) else plan.model, spec.model)


def build_model(plan: RunPlan, spec: StageSpec | None = None, *, vocab_size: int) -> Any:
    """Return the model of a stage (the plan's, if None) with uninitialized weights."""
    return model_kind(plan, spec).build(vocab_size=vocab_size)


def build_system(plan: RunPlan, spec: StageSpec, model: Any) -> System:
    """Return a stage's model together with what its objectives build for themselves."""
    made = {term.name: term.objective.build(model, seed=plan.seed) for term in terms_of(spec)}
    return System(model, {name: module for name, module in made.items() if module is not None})


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
    optimizer = optimizers.parts.build(spec.optimizer, path=f"stages.{spec.name}.optimizer")
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
    path = f"stages.{spec.name}"
    trained = trained_of(spec, system)
    if not trained:
        raise ConfigError(f"{path}.frozen: {spec.frozen} leaves nothing to train")
    system.requires_grad_(False)
    for _, parameter in trained:
        parameter.requires_grad_()
    optimizer = optimizers.parts.build(spec.optimizer, path=f"{path}.optimizer")
    steps, stream = steps_of(plan, spec, system), built[spec.stream].stream
    return Stage(
        name=spec.name,
        stream=stream,
        further={name: built[name].stream for name in spec.further},
        system=system,
        terms=terms_of(spec),
        lent=lent or {},
        optimizer=optimizer.build(trained),
        learning_rate=optimizer.learning_rate,
        schedule=schedules.parts.build(spec.schedule, path=f"{path}.schedule"),
        steps=steps,
        step_cost=step_cost_of(spec, system),
        micro_batch_size=micro_batch_size or spec.micro_batch_size or stream.batch_size,
        clip_norm=spec.clip_norm,
        checkpoint_every=plan.checkpoint_every,
        keep_every=plan.keep_every,
        keep_at=frozenset(b.at for b in plan.branches.values() if isinstance(b.at, int)),
        clock=clock,
    )


def rules_of(spec: StageSpec) -> Transfer:
    """Return what says what becomes of each weight over a stage's border."""
    assert spec.weights is not None
    rules: Transfer = transfer.parts.build(spec.weights.part, path=f"stages.{spec.name}.weights")
    return rules


def layout_free(plan: RunPlan) -> bool:
    """Whether micro-batches and ranks change a run's losses by rounding alone: its models and all objectives must say so."""
    parts = [part for s in plan.stages for part in (model_kind(plan, s), *(t.objective for t in terms_of(s)))]
    return all(part.layout_free for part in parts)


def terms_of(spec: StageSpec) -> list[Term]:
    """Return a stage's weighted objectives. Raises ConfigError for what is no term, with its path."""
    terms: list[Term] = []
    for i, given in enumerate(spec.objective):
        term = _term(given, spec, path=f"stages.{spec.name}.objective.{i}")
        same = sum(t.name.partition("_")[0] == term.name for t in terms)
        terms.append(replace(term, name=f"{term.name}_{same + 1}") if same else term)
    return terms


def _term(spec: Part, stage: StageSpec, *, path: str) -> Term:
    settings: dict[str, Any] = {"kind": spec} if isinstance(spec, str) else dict(spec)
    weight, stream = settings.pop("weight", 1.0), settings.pop("stream", stage.stream)
    known = [stage.stream, *stage.further]
    if stream not in known:
        raise ConfigError(f"{path}.stream: the stage has no stream {stream!r}; {nearest(str(stream), known)}")
    scheduled = {name: _schedule(v, path=f"{path}.{name}") for name, v in settings.items() if _is_schedule(v)}
    settings |= {name: schedule(_BEGIN) for name, schedule in scheduled.items()}
    if _is_schedule(weight):
        weight = _schedule(weight, path=f"{path}.weight")
    elif isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"{path}.weight: must be a finite number, or {{schedule: KIND, ...}}; got {weight!r}")
    objective = objectives.parts.build(settings, path=path)
    name = str(settings["kind"]).rpartition(":")[2].replace(".", "_")
    return Term(name=name, objective=objective, weight=weight, scheduled=scheduled, stream=stream)


_BEGIN = Progress(step=0, steps=1)


def _is_schedule(value: Any) -> bool:
    return isinstance(value, dict) and "schedule" in value


def _schedule(value: Mapping[str, Any], *, path: str) -> Any:
    settings = {k: v for k, v in value.items() if k != "schedule"}
    return schedules.parts.build({"kind": value["schedule"], **settings}, path=path)


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
    last = plan.stages[-1]
    for stage in [*plan.stages, *(s for b in plan.branches.values() for s in b.stages)]:
        path = f"stages.{stage.name}"
        with torch.device("meta"):
            system = build_system(plan, stage, build_model(plan, stage, vocab_size=8))
        writers.parts.build(plan.samples.writer, path="samples.writer")
        if stage is last and plan.samples.prompts and gives_text(plan.streams[stage.stream]):
            try:
                model_kind(plan, stage).stepper(system.model)
            except ConfigError as e:
                raise ConfigError(f"samples: {e} (or leave `samples` empty)") from None
        _check_patterns(stage, list(system.roles.values()))
        _check_sight(plan, stage)
        optimizers.parts.build(stage.optimizer, path=f"{path}.optimizer")
        schedules.parts.build(stage.schedule, path=f"{path}.schedule")
        _check_terms(plan, stage)
        micro = stage.micro_batch_size
        if micro is not None and micro > plan.streams[stage.stream].batch_size:
            raise ConfigError(f"{path}.micro_batch_size {micro} is more than the stream's batch_size")


def reads_text(plan: RunPlan, spec: StageSpec) -> bool:
    """Whether a stage's model can be asked what follows in a text: one that sees what follows cannot."""
    causal: bool = model_kind(plan, spec).causal
    return causal


def _check_terms(plan: RunPlan, stage: StageSpec) -> None:
    """Raise ConfigError if a term reads a stream or a model that is not there, or micro-batches cut its groups."""
    for i, term in enumerate(terms_of(stage)):
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


def _check_sight(plan: RunPlan, stage: StageSpec) -> None:
    """Raise ConfigError if the model sees, in what a view shows, the answer to what the view asks."""
    if model_kind(plan, stage).causal:
        return
    for name in (stage.stream, *stage.further):
        for i, view in enumerate(plan.streams[name].views):
            if views.parts.build(view, path=f"streams.{name}.views.{i}").asks_next:
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
    from seedbed import curate, evaluate, scorers, trackers
    from seedbed.models import layers

    found = [sources, curate, tokenizers, packing, mixture, views, models, layers, objectives, optimizers, schedules]
    return {r.parts.room: r.parts for r in [*found, transfer, scorers, writers, evaluate, trackers]}
