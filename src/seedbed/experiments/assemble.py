"""A plan's parts, built and put together: streams, models, stages. The only place where parts of different rooms meet."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch

from seedbed import mixture, models, objectives, optimizers, packing, schedules, sources, tokenizers, views
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.patterns import first_match, matches
from seedbed.core.protocols import Corpus, Prepared, Source, Tokenizer, TokenStore
from seedbed.core.records import Cost, Role
from seedbed.core.registry import Registry
from seedbed.core.stream import Stream
from seedbed.engine.precision import Machine, prepare_machine
from seedbed.engine.ranks import Ranks
from seedbed.engine.train import Stage
from seedbed.experiments.recipe import Part, RunPlan, StageSpec, StreamSpec
from seedbed.packing.store import CorpusTokens, Ordered
from seedbed.sources.shards import ShardStore


@dataclass(frozen=True, kw_only=True)
class BuiltStream:
    """A stream with what it was made of, for evaluation, fingerprints and pages."""

    stream: Stream
    corpora: Mapping[str, Corpus]  # of text streams, by source
    tokenizer: Tokenizer | None

    @property
    def source(self) -> Source:
        """The source of a stream that has one."""
        (source,) = self.stream.sources.values()
        return source

    def fingerprint(self) -> str:
        """Return a hash of all data that the stream can draw from."""
        prints = {name: source.fingerprint() for name, source in self.stream.sources.items()}
        return next(iter(prints.values())) if len(prints) == 1 else sha256(json.dumps(prints).encode()).hexdigest()[:16]


def build_stream(name: str, spec: StreamSpec, *, device: torch.device | None = None) -> BuiltStream:
    """Return a stream; on a GPU, roll-outs are made there, with the same bytes.

    Raises ConfigError or DataError for parts that do not fit each other or lack data.
    """
    path = f"streams.{name}"
    made, corpora, given = {}, {}, None
    if spec.tokenizer is not None:
        given = tokenizers.parts.build(spec.tokenizer, path=f"{path}.tokenizer")
    tokenizer = None
    for source_name, part in spec.named_sources.items():
        at = f"{path}.source" if spec.source is not None else f"{path}.sources.{source_name}"
        source = sources.parts.build(part, path=at, shared={"seq_len": spec.seq_len})
        if isinstance(source, Corpus | Prepared):
            tokenizer = _fitting(given, source, before=tokenizer, path=at)
            corpora[source_name], store = _opened(source, tokenizer)
            source = packing.parts.build(spec.packing, path=f"{path}.packing", shared={"seq_len": spec.seq_len}).pack(store)
        elif given is not None:
            raise ConfigError(f"{path}.tokenizer: the source {source_name!r} gives tokens already; leave the tokenizer out")
        elif device is not None and device.type == "cuda" and hasattr(source, "rolled_by"):
            from seedbed.nca.rollout_torch import TorchRoller

            source = source.rolled_by(TorchRoller(device))
        made[source_name] = source
    vocabularies = {source_name: source.vocab_size for source_name, source in made.items()}
    if len(set(vocabularies.values())) > 1 or (corpora and len(corpora) < len(made)):
        raise ConfigError(f"{path}.sources: rows of one stream share one vocabulary; got {vocabularies} tokens")
    mixed = mixture.parts.build(spec.mixture, path=f"{path}.mixture", shared={"seq_len": spec.seq_len})
    if hasattr(mixed, "resolved"):
        try:
            mixed = mixed.resolved({n: _amounts(s, corpora.get(n)) for n, s in made.items()})
        except ConfigError as e:
            raise ConfigError(f"{path}.mixture: {e}") from None
    elif len(made) > 1:
        raise ConfigError(f"{path}.mixture: {len(made)} sources need a mixture that weighs them, such as weighted")
    stream = Stream(
        name=name,
        sources=made,
        mixture=mixed,
        views=[views.parts.build(v, path=f"{path}.views.{i}") for i, v in enumerate(spec.views)],
        seq_len=spec.seq_len,
        batch_size=spec.batch_size,
        vocab_size=next(iter(vocabularies.values())),
    )
    return BuiltStream(stream=stream, corpora=corpora, tokenizer=tokenizer)


def _fitting(given: Tokenizer | None, source: Any, *, before: Tokenizer | None, path: str) -> Tokenizer:
    """Return the tokenizer of a text source: the recipe's, or a prepared folder's own. All sources of a stream have the
    same."""
    if given is not None:
        return given
    if not isinstance(source, Prepared):
        raise ConfigError(f"{path}: this source gives documents, so the stream needs a tokenizer, such as bytes")
    own: Tokenizer = tokenizers.parts.build(source.tokenizer_spec(), path=f"{path}.tokenizer")
    if before is not None and own.fingerprint() != before.fingerprint():
        raise ConfigError(
            f"{path}: it was prepared with another tokenizer than the stream's other sources; prepare them with one"
        )
    return own


def _opened(source: Any, tokenizer: Tokenizer) -> tuple[Corpus, TokenStore]:
    """Return a text source as a corpus to evaluate on and as ids to pack."""
    if not isinstance(source, Prepared):
        return source, CorpusTokens(corpus=source, tokenizer=tokenizer)
    store = source.store(tokenizer)
    return store, (Ordered(store=store, orders=store.orders) if store.orders else store)


def _amounts(source: Source, corpus: Corpus | None) -> dict[str, float]:
    """How much a source has to train on: rows, and of text bytes and seconds; nothing if it never ends."""
    rows = source.size("train")
    if rows is None:
        return {}
    store: Any = getattr(source, "store", None)
    known = {"rows": float(rows)}
    if store is not None:
        known["bytes"] = float(store.size_bytes("train"))
        if isinstance(corpus, ShardStore):
            known["seconds"] = corpus.seconds("train")
    return known


def open_stream(name: str, spec: StreamSpec) -> Stream:
    """Return a stream, for a data worker."""
    return build_stream(name, spec).stream


def gives_text(spec: StreamSpec) -> bool:
    """Whether a stream's rows are made of documents, so that held-out text can be read with its tokenizer."""
    parts = spec.named_sources.values()
    return all(isinstance(sources.parts.build(p, shared={"seq_len": spec.seq_len}), Corpus | Prepared) for p in parts)


def held_out_sets(plan: RunPlan, built: BuiltStream) -> dict[str, Corpus]:
    """Return the corpora on which a text stream's model is evaluated, the main one first.

    Raises ConfigError if several are there and none is named main, DataError if one cannot be read.
    """
    if built.tokenizer is None:
        return {}
    found: dict[str, Corpus] = dict(built.corpora)
    if plan.evaluate.sets:
        found = {}
        for name, part in plan.evaluate.sets.items():
            source = sources.parts.build(part, path=f"evaluate.sets.{name}")
            if not isinstance(source, Corpus | Prepared):
                raise ConfigError(f"evaluate.sets.{name}: held-out sets are text or shards, this source gives rows")
            found[name] = source.store(built.tokenizer) if isinstance(source, Prepared) else source
    main = plan.evaluate.main
    if main not in found and not plan.evaluate.sets and built.stream.name != plan.stages[-1].stream:
        main = next(iter(found))  # an earlier stage on texts of its own
    if main is None:
        if len(found) > 1:
            raise ConfigError(f"evaluate.main: name the held-out set that the metric reads, one of: {', '.join(found)}")
        main = next(iter(found))
    if main not in found:
        raise ConfigError(f"evaluate.main: no held-out set {main!r}; {nearest(main, found)}")
    return {main: found[main], **{name: corpus for name, corpus in found.items() if name != main}}


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
