"""The plan of one run: checked settings, filled up with those of their parts, and a hash of what differs from the defaults."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from seedbed import (
    columns,
    curate,
    evaluate,
    mixture,
    models,
    objectives,
    optimizers,
    orders,
    packing,
    schedules,
    scorers,
    sources,
    tokenizers,
    transfer,
    views,
    writers,
)
from seedbed.core import format1
from seedbed.core.bounds import MOST_THREADS, MOST_WORKERS
from seedbed.core.config import dump_yaml, parse_yaml
from seedbed.core.errors import ConfigError, RefusedError
from seedbed.core.registry import Registry
from seedbed.core.run_record import PLAN, RunRecord
from seedbed.experiments.plan.checking import checked_as
from seedbed.experiments.plan.numbers import Kept, Part, Seed, Steps, Strict
from seedbed.experiments.plan.specs import (
    BranchSpec,
    Evaluations,
    EvaluationSpec,
    ModelSpec,
    PartSpec,
    PrepareSpec,
    SamplesSpec,
    StageSpec,
    StreamSpec,
)
from seedbed.experiments.prepare.preparation import settings_of_preparing

# settings of a plan that say where and how it computes; they move no number beyond rounding
WHERE = ("device", "threads", "data_workers", "deterministic", "compiled", "recompute", "shard", "keep_last", "keep_every")


class RunPlan(Strict):
    """One arm of a recipe with one seed and where it computes: what a run folder's resolved.yaml holds."""

    format: Annotated[int, Field(ge=2, le=2)] = 2  # of the record: the first had none, and core/format1.py reads it
    name: str
    title: str = ""
    paper: str = ""
    scale: str | None = None
    arm: str
    seed: Seed
    model: Part
    models: dict[str, ModelSpec] = {}
    prepare: dict[str, PrepareSpec] = {}  # the artefacts that it reads; its sources name the folders of them
    streams: dict[str, StreamSpec]
    stages: list[StageSpec]
    branches: dict[str, BranchSpec] = {}
    probes: dict[str, list[str]] = {}  # candidates, each of which has a branch
    positions: dict[str, Annotated[int, Field(ge=0, le=10**18)]] = {}  # rows of each stream that a branch finds read already
    evaluate: Evaluations | None = None
    samples: SamplesSpec = SamplesSpec()
    test: bool = True
    checkpoint_every: Steps
    keep_last: Kept = 2
    keep_every: Steps | None = None
    main_stage: str
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    data_workers: int = Field(default=0, ge=0, le=MOST_WORKERS)
    deterministic: bool = False
    compiled: bool | None = None  # None: on a GPU only
    recompute: bool = False
    shard: str = Field(default="none", pattern=r"^(none|all|[1-9][0-9]*)$")

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the numbers and differs from the defaults; where it computes is left out."""
        facts = essential(self, without=(*WHERE, "format"))
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def all_stages(self) -> list[StageSpec]:
        """The stages of the run, and those of its branches."""
        return [*self.stages, *(stage for branch in self.branches.values() for stage in branch.stages)]

    @property
    def used_streams(self) -> dict[str, StreamSpec]:
        """The streams that stages read, by name."""
        return {name: self.streams[name] for stage in self.stages for name in (stage.stream, *stage.further)}

    def tokens(self) -> int:
        """Return the tokens that all stages show, as far as their budgets say it without a model (0 for FLOPs)."""
        shown = 0
        for stage in self.stages:
            stream = self.streams[stage.stream]
            steps = stage.budget.timed.steps if stage.budget.timed else stage.budget.steps or 0
            shown += stage.budget.tokens or steps * stream.batch_size * stream.seq_len
        return shown

    def to_yaml(self) -> str:
        return dump_yaml(json.loads(self.model_dump_json(by_alias=True)))


# the rooms of parts, by the fields that name them
_ROOMS = {
    "source": sources,
    "sources": sources,
    "over": sources,
    "tokenizer": tokenizers,
    "packing": packing,
    "mixture": mixture,
    "views": views,
    "model": models,
    "objective": objectives,
    "optimizer": optimizers,
    "schedule": schedules,
    "writer": writers,
    "refine": curate,
    "columns": columns,
    "orders": orders,
    "lent": scorers,
}

_OF_THE_PARENT = ("seq_len",)  # settings that a part has from what it stands in, if it is not given them


def essential(spec: BaseModel, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return what of checked settings differs from the defaults, those of parts included, ready for JSON."""
    found = {}
    for name, field in type(spec).model_fields.items():
        if name in without:
            continue
        value = getattr(spec, name)
        if not (isinstance(spec, StageSpec) and name == "model"):  # changes of a model count as they are given
            value = _essence(name, value)
        if field.is_required() or value != _essence(name, field.get_default(call_default_factory=True)):
            found[field.alias or name] = value
    if isinstance(spec, PartSpec):
        part = _part_essence(_room_of(spec), spec.part)
        return found | ({"kind": part} if isinstance(part, str) else part)
    if isinstance(spec, PrepareSpec):
        usual = settings_of_preparing()
        found |= {name: value for name, value in spec.settings.items() if name not in usual or value != usual[name]}
    return found


def _room_of(spec: PartSpec) -> Registry:
    return evaluate.parts if isinstance(spec, EvaluationSpec) else transfer.parts


def _essence(name: str, value: Any) -> Any:
    if isinstance(value, BaseModel):
        return essential(value)
    if isinstance(value, Mapping) and not (name in _ROOMS and "kind" in value):
        return {k: _essence(name, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_essence(name, v) for v in value]
    if name in _ROOMS and isinstance(value, Mapping):
        return _part_essence(_ROOMS[name].parts, value)
    return value


def _part_essence(room: Registry, part: Mapping[str, Any]) -> Any:
    """A part without the settings that are its class's defaults; of one from a file all count, as its code is not run here."""
    kind = part["kind"]
    known = {} if ".py:" in str(kind) else room.defaults(kind)
    settings = {k: _essence(k, v) for k, v in part.items() if k != "kind"}
    own = {k: v for k, v in settings.items() if k in _OF_THE_PARENT or k not in known or v != known[k]}
    return {"kind": kind, **own} if own else kind


def settled(plan: RunPlan) -> RunPlan:
    """Return a plan in which what its models name (a folder's sizes) is replaced by what stands there."""
    part = {"kind": plan.model} if isinstance(plan.model, str) else plan.model
    stages = []
    try:
        kind: Any = models.parts.resolve(str(part.get("kind")))
        model = dict(kind.settled(part))
        for spec in plan.stages:
            kind = models.parts.resolve(str((spec.model or part).get("kind", part.get("kind"))))
            stages.append(spec.model_copy(update={"model": spec.model and dict(kind.settled(spec.model))}))
    except ConfigError:
        return plan  # whoever builds it says what is wrong, with its path
    return plan.model_copy(update={"model": model, "stages": stages})


def filled(spec: BaseModel) -> dict[str, Any]:
    """Return checked settings with all settings of their parts."""
    found: dict[str, Any] = {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if isinstance(spec, StageSpec) and name == "model":
            found[name] = value
        elif name in _ROOMS:
            found[name] = _each(value, partial(_filled_part, _ROOMS[name].parts))
        else:
            found[field.alias or name] = _each(value, lambda v: v)
    if isinstance(spec, PartSpec):
        part = _filled_part(_room_of(spec), spec.part)
        return {**found, **(spec.part if isinstance(part, str) else part)}
    if isinstance(spec, PrepareSpec):
        return {**found, **settings_of_preparing(), **spec.settings}
    return found


def _each(value: Any, fill: Callable[[Any], Any]) -> Any:
    """`fill` for a part, or for each of several in a list or by name."""
    if isinstance(value, BaseModel):
        return filled(value)
    if isinstance(value, list):
        return [_each(v, fill) for v in value]
    if isinstance(value, Mapping) and "kind" not in value:
        return {k: _each(v, fill) for k, v in value.items()}
    return value if value is None else fill(value)


def _filled_part(room: Registry, part: Part) -> Part:
    settings = {"kind": part} if isinstance(part, str) else dict(part)
    try:
        known = room.defaults(str(settings.get("kind")))
    except ConfigError:
        return part  # whoever builds it says what is wrong, with its path
    return {**settings, **{k: v for k, v in known.items() if k not in settings and k not in _OF_THE_PARENT}}


def read_plan(folder: Path) -> RunPlan:
    """Return the plan of a run, in its folder or packed. Raises RefusedError for one of the first format."""
    record = RunRecord(folder)
    if record.is_first_format:
        raise RefusedError(
            f"{folder} is of the first format: `seedbed compare --check`, `report` and `diff` read it; to go on with it, or to "
            f"sample, evaluate, export or build on it, take the seedbed that wrote it (commit {record.commit()})"
        )
    return checked_as(RunPlan, parse_yaml(record.plan_text(), name=str(folder / PLAN)))


def plan_hash(folder: Path) -> str:
    """Return the fingerprint of a run's plan without its seed, of either format."""
    record = RunRecord(folder)
    if record.is_first_format:
        return format1.plan_hash(parse_yaml(record.plan_text(), name=str(folder / PLAN)) | {"seed": 0})
    return read_plan(folder).model_copy(update={"seed": 0}).fingerprint()
