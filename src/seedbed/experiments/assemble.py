"""A plan's parts, built and put together: streams, models, stages. The only place where parts of different rooms meet."""

from dataclasses import dataclass
from typing import Any

import torch

from seedbed import mixture, models, objectives, optimizers, packing, schedules, sources, tokenizers, views
from seedbed.core.errors import ConfigError
from seedbed.core.patterns import first_match, matches
from seedbed.core.protocols import Corpus, Source, Tokenizer
from seedbed.core.records import Role
from seedbed.core.registry import Registry
from seedbed.core.stream import Stream
from seedbed.engine.train import Stage
from seedbed.experiments.recipe import Part, RunPlan, StageSpec, StreamSpec
from seedbed.nca.rollout_torch import TorchRoller


@dataclass(frozen=True, kw_only=True)
class BuiltStream:
    """A stream with what it was made of, for evaluation, fingerprints and pages."""

    stream: Stream
    source: Source
    corpus: Corpus | None  # of text streams
    tokenizer: Tokenizer | None
    source_kind: str


def build_stream(name: str, spec: StreamSpec, *, device: torch.device | None = None) -> BuiltStream:
    """Return a stream; on a GPU, roll-outs are made there, with the same bytes.

    Raises ConfigError or DataError for parts that do not fit each other or lack data.
    """
    path = f"streams.{name}"
    shared = {"seq_len": spec.seq_len}
    source = sources.parts.build(spec.source, path=f"{path}.source", shared=shared)
    kind = spec.source if isinstance(spec.source, str) else spec.source["kind"]
    corpus, tokenizer = None, None
    if device is not None and device.type == "cuda" and hasattr(source, "rolled_by"):
        source = source.rolled_by(TorchRoller(device))
    if isinstance(source, Corpus):
        if spec.tokenizer is None:
            raise ConfigError(f"{path}.tokenizer: the source {kind!r} gives documents, so a tokenizer is needed, such as bytes")
        corpus = source
        tokenizer = tokenizers.parts.build(spec.tokenizer, path=f"{path}.tokenizer")
        packer = packing.parts.build(spec.packing, path=f"{path}.packing", shared=shared)
        source = packer.pack(corpus, tokenizer=tokenizer)
    elif spec.tokenizer is not None:
        raise ConfigError(f"{path}.tokenizer: the source {kind!r} gives tokens already; leave the tokenizer out")
    stream = Stream(
        name=name,
        sources={kind: source},
        mixture=mixture.parts.build(spec.mixture, path=f"{path}.mixture"),
        views=[views.parts.build(v, path=f"{path}.views.{i}") for i, v in enumerate(spec.views)],
        seq_len=spec.seq_len,
        batch_size=spec.batch_size,
        vocab_size=source.vocab_size,
    )
    return BuiltStream(stream=stream, source=source, corpus=corpus, tokenizer=tokenizer, source_kind=kind)


def build_model(plan: RunPlan, *, vocab_size: int) -> Any:
    """Return a model with uninitialized weights."""
    return models.parts.build(plan.model, path="model").build(vocab_size=vocab_size)


def initialize(
    model: Any, spec: StageSpec, *, seed: int, old: dict[Role, torch.Tensor] | None, handed_on: bool = False
) -> None:
    """Draw a stage's weights anew, as the plan asks; `old` gives the spread if the embedding is to be "trained".

    The body of a first stage and the outer weights of the last are paired over arms: both come from the stream "init".
    `handed_on` says that a later stage takes weights from this one.
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


def steps_of(plan: RunPlan, spec: StageSpec, model: Any) -> int:
    """Return a stage's number of steps; the budget is rounded to whole steps, at least one."""
    stream, budget = plan.streams[spec.stream], spec.budget
    tokens = stream.batch_size * stream.seq_len
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return max(1, round(budget.tokens / tokens))
    forward = model.cost(rows=stream.batch_size, seq_len=stream.seq_len)
    wanted, each = (budget.flops_run, forward.flops_run) if budget.flops_run else (budget.flops_ideal, forward.flops_ideal)
    return max(1, round((wanted or 0) / (3 * each)))


def build_stage(plan: RunPlan, spec: StageSpec, built: BuiltStream, model: Any) -> Stage:
    """Return a stage ready to train; parameters that a `frozen` pattern matches get no gradient."""
    path = f"stages.{spec.name}"
    frozen = tuple(spec.frozen)
    layers = 1 + max((r.layer for r in model.roles.values() if r.layer is not None), default=-1)
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(first_match(frozen, model.roles[name], num_layers=layers) is None)
        if parameter.requires_grad:
            trained.append((model.roles[name], parameter))
    if not trained:
        raise ConfigError(f"{path}.frozen: {list(frozen)} leaves nothing to train")
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
        micro_batch_size=spec.micro_batch_size or built.stream.batch_size,
        clip_norm=spec.clip_norm,
        evaluate_every=max(1, steps // spec.evaluations),
        checkpoint_every=plan.checkpoint_every,
    )


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
        sources.parts.build(spec.source, path=f"streams.{name}.source", shared=shared)
        packing.parts.build(spec.packing, path=f"streams.{name}.packing", shared=shared)
        mixture.parts.build(spec.mixture, path=f"streams.{name}.mixture")
        if spec.tokenizer is not None:
            tokenizers.parts.build(spec.tokenizer, path=f"streams.{name}.tokenizer")
        for i, view in enumerate(spec.views):
            views.parts.build(view, path=f"streams.{name}.views.{i}")
    with torch.device("meta"):
        roles = build_model(plan, vocab_size=8).roles
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
    from seedbed import evaluate, scorers, transfer, writers
    from seedbed.models import layers

    found = [sources, tokenizers, packing, mixture, views, models, layers, objectives, optimizers, schedules]
    return {r.parts.room: r.parts for r in [*found, transfer, scorers, writers, evaluate]}
