"""What a recipe may say: streams, stages, evaluations, branches, artefacts, as checked settings."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from seedbed.core.errors import nearest
from seedbed.experiments.plan.numbers import Bytes, Flops, Kept, Part, RowLength, Rows, Seed, Std, Steps, Strict, Tokens
from seedbed.experiments.plan.study_specs import MapSpec, StudySpec, TuneSpec

TRUNK = "trunk"  # what the first stage of a branch may take its weights from

PREPARED = "prepared:"  # what the path of a source may begin with: an artefact of the recipe's `prepare`

RUN, HF, RECIPE = "run:", "hf:", "recipe:"  # what `weights.from` may begin with, beside an earlier stage's name


class Timing(Strict):
    """What was measured, once, for a budget in seconds; see estimate/timing.py."""

    steps: Steps
    step_seconds: float = Field(gt=0, le=1e9)
    processor: str  # that it holds for


class Budget(Strict):
    """How long a stage is, in one currency; it becomes a number of steps before the stage starts."""

    steps: Steps | None = None
    tokens: Tokens | None = None
    flops_run: Flops | None = None
    flops_ideal: Flops | None = None
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None  # of training, on the machine that begins the run
    timed: Timing | None = None

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        given = self._given()
        if len(given) != 1:
            raise ValueError(
                f"a budget names one currency of steps, tokens, flops_run, flops_ideal, seconds; got {sorted(given) or 'none'}"
            )
        if self.timed is not None and self.seconds is None:
            raise ValueError("timed belongs to a budget in seconds")
        return self

    def _given(self) -> dict[str, float]:
        return {k: v for k, v in self.model_dump(exclude_none=True).items() if k != "timed"}

    @property
    def currency(self) -> str:
        return next(iter(self._given()))


class StreamSpec(Strict):
    """Where rows come from and how they are shown: one `source`, or several `sources` by name."""

    source: Part | None = None
    sources: dict[str, Part] = {}
    tokenizer: Part | None = None  # prepared sources bring their own
    packing: Part = "concatenate"
    mixture: Part = "epochs"
    views: list[Part] = ["next_token"]
    seq_len: RowLength
    batch_size: Rows  # a step
    measured_bytes: Bytes = 65_536  # of each source's validation text, for a mixture that decides by losses

    @model_validator(mode="after")
    def _one_or_several(self) -> "StreamSpec":
        if (self.source is None) == (not self.sources):
            raise ValueError("a stream has one `source`, or several under `sources`: name -> part")
        return self

    @property
    def named_sources(self) -> dict[str, Part]:
        """The sources by name; a single one goes by its kind."""
        if self.source is None:
            return self.sources
        return {self.source if isinstance(self.source, str) else str(self.source.get("kind")): self.source}


class PartSpec(Strict):
    """A part with, beside its own settings, what the recipe says of it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    kind: str

    @property
    def part(self) -> dict[str, Any]:
        return {"kind": self.kind, **(self.model_extra or {})}


class WeightsSpec(PartSpec):
    """What arrives over a stage border, by a part of the room `transfer`: `rules`, whose patterns address roles.

    `from` is an earlier stage, run:FOLDER (another run's newest checkpoint; {seed} in it is this run's seed), hf:FOLDER or
    recipe:NAME, which is trained first.
    """

    from_: str = Field(alias="from")
    kind: str = "rules"
    charged: bool = True  # whether the training of a recipe's model stands in this run's ledger


class ModelSpec(Strict):
    """A trained model that is lent to objectives or to what prepares, frozen; every call of it is charged.

    `from` is run:FOLDER or run:FOLDER@STEP ({seed} in it is this run's seed), hf:FOLDER or recipe:NAME (trained first).
    """

    from_: str = Field(alias="from", pattern=r"^(run|hf|recipe):.+")
    charged: bool = True  # whether the training of a recipe's model stands in this run's ledger; that of the others is given


def _no_part(name: str) -> str:
    if name == "kind":
        raise ValueError("names a part here, so that `kind` would be a part's own setting; give another name")
    return name


NamedParts = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$"), AfterValidator(_no_part)], Part]


class PrepareSpec(BaseModel):
    """A prepared folder that the recipe says how to make, with its columns and orders: an artefact.

    Beside these stand the settings of `seedbed prepare` (tokenizer, duplicates, ..; prepare/preparation.py), under their names.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    paths: list[str] = Field(min_length=1)
    refine: list[Part] = []  # of the room curate: what training documents go through
    columns: NamedParts = {}
    orders: NamedParts = {}  # which may read the columns
    lent: NamedParts = {}  # of the room scorers: what those parts may call, by name
    seed: Seed = 0  # of orders, and of models that are trained first; the seed of a run that uses it moves nothing here
    charged: bool = True  # whether what it took stands in the ledger of a run that uses it
    folder: str = ""  # where it lies, from the root on: for plans, not for recipes

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the preparation."""
        return dict(self.model_extra or {})


class StageSpec(Strict):
    """One stage."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    stream: str
    further: list[str] = []  # streams that objectives read beside it, a batch a step each
    model: dict[str, Any] | None = None  # changes of the recipe's model from this stage's border on
    budget: Budget
    objective: list[Part] = ["tokens"]
    optimizer: Part = "adamw"
    schedule: Part = "cosine"
    weights: WeightsSpec | None = None
    carry: list[Literal["weights", "moments", "clock"]] = ["weights"]  # what of the giver arrives
    embedding_std: Std | Literal["trained"] | None = None  # of a fresh embedding; "trained": the old embedding's own
    body_stream: str | None = None  # another random stream for the body's initial weights (A/A studies)
    frozen: list[str] = []
    clip_norm: float | None = Field(default=1.0, gt=0, le=1e12)
    micro_batch_size: Rows | None = None
    evaluations: int = Field(default=10, ge=1, le=10**6)  # evenly spaced over the stage, the last at its last step
    evaluate_at: list[Steps] = []  # further steps of the stage at which what is watched is read


class WatchSpec(Strict):
    """When an evaluation is read on the way: every so many steps of a stage, and at its last."""

    every: Steps


class EvaluationSpec(PartSpec):
    """One evaluation, a part of the room `evaluate`."""

    stage: str | None = None  # that it is about; None: all that it fits, and it is read in whole at the end of the last of them
    watch: bool | WatchSpec = True  # on the way: at the stage's `evaluations` and `evaluate_at`, every so many steps, or never
    bar: dict[str, Annotated[float, Field(ge=-1e30, le=1e30)]] = {}  # a number and the level that it has to reach

    @model_validator(mode="after")
    def _one_bar(self) -> "EvaluationSpec":
        if len(self.bar) > 1:
            raise ValueError(f"a bar names one number and its level, such as {{loss_nats: 2.0}}; got {self.bar}")
        return self


def with_settings(value: Any) -> Any:
    """A part by its bare name."""
    return {name: {"kind": v} if isinstance(v, str) else v for name, v in value.items()} if isinstance(value, dict) else value


EvaluationName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]

Evaluations = Annotated[dict[EvaluationName, EvaluationSpec], BeforeValidator(with_settings)]


class SamplesSpec(Strict):
    """Texts that the trained model goes on with, for the page."""

    prompts: list[str] = []
    writer: Part = "sample"
    tokens: int = Field(default=200, ge=1, le=10**7)


class BranchSpec(Strict):
    """A side run from a checkpoint of this run, which it does not move: other stages, and what they are asked.

    Its first stage takes weights, moments and clock over, unless its `weights: {from: trunk, ...}` and `carry` say otherwise.
    """

    at: Steps | str  # a step of the run, or the name of a stage: where that ends
    stages: list[StageSpec] = Field(min_length=1)
    evaluate: Evaluations | None = None  # None: those of the run that are about no stage of it and fit one of the branch


class ProbeSpec(Strict):
    """Candidates tried by short branches from one point, one stage each, and asked the same: see run/probes.py."""

    at: Steps | str
    stage: StageSpec
    candidates: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], dict[str, Any]] = Field(
        min_length=1
    )  # changes of the stage
    evaluate: Evaluations | None = None


_NO_TUNE = TuneSpec(seeds=[0], grids={})


class Recipe(Strict):
    """A whole recipe, checked. `streams` and `stages` hold parts by name; see `seedbed list parts`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str = ""
    paper: str = ""
    system: int | None = Field(default=None, ge=1, le=1000)  # its number in docs/systems.md, if the study judges one
    claim: str = ""  # what the paper says, in a line
    use_when: str = ""  # who should use it, by what the study found
    model: Part
    models: dict[str, ModelSpec] = {}  # lent to objectives, and to what prepares, by name
    prepare: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], PrepareSpec] = {}
    streams: dict[str, StreamSpec]
    stages: list[StageSpec] = Field(min_length=1)
    branches: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], BranchSpec] = {}
    probes: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], ProbeSpec] = {}  # a branch for each candidate of each
    evaluate: Evaluations | None = None  # None: bits_per_byte as `text`, if the last stage is of text
    samples: SamplesSpec = SamplesSpec()
    test: bool = True  # searches never read a test part
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every: Steps = 1000
    keep_last: Kept = 2  # checkpoints; the older one is there in case the newest is harmed
    keep_every: Steps | None = None  # steps of the run whose checkpoints are made and kept
    scales: dict[str, dict[str, Any]] = {}
    study: StudySpec | None = None
    tune: TuneSpec | None = None
    map: MapSpec | None = None

    def _check_branch(self, name: str, branch: BranchSpec, stages: list[str]) -> None:
        path = f"branches.{name}"
        if isinstance(branch.at, str) and branch.at not in stages:
            raise ValueError(f"{path}.at: no stage {branch.at!r}; {nearest(branch.at, stages)} (or give a step of the run)")
        inside = [TRUNK]
        for stage in branch.stages:
            if stage.budget.seconds is not None:
                raise ValueError(f"{path}.stages.{stage.name}.budget: that of a branch is in steps, tokens or FLOPs")
            if stage.name in inside:
                raise ValueError(f"{path}.stages: names must differ, and none is {TRUNK}; got {stage.name} twice")
            for stream in (stage.stream, *stage.further):
                if stream not in self.streams:
                    raise ValueError(
                        f"{path}.stages.{stage.name}.stream: no stream {stream!r}; {nearest(stream, self.streams)}"
                    )
            first = len(inside) == 1
            if first and stage.weights is not None and stage.weights.from_ != TRUNK:
                raise ValueError(
                    f"{path}.stages.{stage.name}.weights.from: the first stage of a branch goes on from {TRUNK}, got "
                    f"{stage.weights.from_!r}; a later stage may take from elsewhere"
                )
            if first and stage.weights is None and stage.carry != ["weights"]:
                raise ValueError(f"{path}.stages.{stage.name}.carry: say `weights: {{from: {TRUNK}, fresh: []}}` beside it")
            if len(inside) > 1 or stage.weights:
                self._check_border(stage, inside[-1:] if len(inside) == 1 else inside[1:])
            inside.append(stage.name)

    @staticmethod
    def _check_border(stage: "StageSpec", earlier: list[str]) -> None:
        path = f"stages.{stage.name}"
        if stage.weights is None:
            if stage.carry != ["weights"]:
                raise ValueError(f"{path}.carry: nothing arrives without `weights: {{from: ...}}`")
            return
        giver = stage.weights.from_
        if giver not in earlier and not giver.startswith((RUN, HF, RECIPE)):
            raise ValueError(
                f"{path}.weights.from: no earlier stage {giver!r}; {nearest(giver, earlier)} (or run:FOLDER, hf:FOLDER, "
                "recipe:NAME)"
            )
        if not stage.carry or len(set(stage.carry)) < len(stage.carry):
            raise ValueError(f"{path}.carry: names each of weights, moments, clock once at most, and one at least")
        if giver.startswith(HF) and stage.carry != ["weights"]:
            raise ValueError(f"{path}.carry: a model folder has weights only, no moments and no clock")

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ, got {names}")
        for i, stage in enumerate(self.stages):
            for name in (stage.stream, *stage.further):
                if name not in self.streams:
                    raise ValueError(f"stages.{stage.name}.stream: no stream {name!r}; {nearest(name, self.streams)}")
            if len({stage.stream, *stage.further}) <= len(stage.further):
                raise ValueError(f"stages.{stage.name}.further: names each stream once, and not the stage's own")
            self._check_border(stage, names[:i])
            if stage.embedding_std == "trained" and stage.weights is None:
                raise ValueError(
                    f"stages.{stage.name}.embedding_std: 'trained' needs weights from an earlier stage; give a number"
                )
        for name, branch in self.branches.items():
            self._check_branch(name, branch, names)
        for name, asked in (self.evaluate or {}).items():
            if asked.stage is not None and asked.stage not in names:
                raise ValueError(f"evaluate.{name}.stage: no stage {asked.stage!r}; {nearest(asked.stage, names)}")
        if self.map and self.map.stage not in names:
            raise ValueError(f"map.stage: no stage {self.map.stage!r}; {nearest(self.map.stage, names)}")
        if self.map and self.map.evaluation not in (self.evaluate or {}):
            raise ValueError(
                f"map.evaluation: no evaluation {self.map.evaluation!r}; {nearest(self.map.evaluation, self.evaluate or ())}"
            )
        if self.study:
            arms = {self.study.control.name, *self.study.arms}
            named = [("study.tuned", a) for a in self.study.tuned] + [("tune.grids", a) for a in (self.tune or _NO_TUNE).grids]
            for where, name in named:
                if name not in arms:
                    raise ValueError(f"{where}: no arm {name!r}; {nearest(name, arms)}")
        return self
