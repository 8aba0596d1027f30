"""Recipes: YAML to one checked plan. A study's arm is the recipe with one named change; the control is another.

Order in which a recipe takes shape: `extends`, the scale, `--set`, the arm's change, the arm's tuned settings (where `--set`
names the same setting, it wins).
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from seedbed import sources, tokenizers
from seedbed.core.bounds import LARGEST_SEED, LONGEST_ROW, MOST_BYTES, MOST_ROWS, MOST_THREADS, MOST_WORKERS
from seedbed.core.config import Count, dump_yaml, merged, parse_yaml, read_yaml, set_path
from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.json_files import read_text
from seedbed.core.places import places_of, whole
from seedbed.core.registry import Registry, as_json, explain
from seedbed.core.run_record import PLAN, RunRecord

Part = str | dict[str, Any]
Steps = Annotated[Count, Field(ge=1, le=10**12)]
Tokens = Annotated[Count, Field(ge=1, le=10**18)]
Bytes = Annotated[Count, Field(ge=1, le=MOST_BYTES)]
Flops = Annotated[float, Field(gt=0, le=1e30)]
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
RowLength = Annotated[int, Field(ge=1, le=LONGEST_ROW)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Std = Annotated[float, Field(gt=0, le=1e20)]
MOST_SEEDS = 10_000
Kept = Annotated[int, Field(ge=1, le=10**6)]
TRUNK = "trunk"  # what the first stage of a branch may take its weights from
RUN, HF = "run:", "hf:"  # what `weights.from` may begin with, beside an earlier stage's name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Budget(_Strict):
    """How long a stage is, in one currency; it becomes a number of steps before the stage starts."""

    steps: Steps | None = None
    tokens: Tokens | None = None
    flops_run: Flops | None = None
    flops_ideal: Flops | None = None

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError(
                f"a budget names one currency of steps, tokens, flops_run, flops_ideal; got {sorted(given) or 'none'}"
            )
        return self

    @property
    def currency(self) -> str:
        return next(iter(self.model_dump(exclude_none=True)))


class StreamSpec(_Strict):
    """Where rows come from and how they are shown: one `source`, or several `sources` by name."""

    source: Part | None = None
    sources: dict[str, Part] = {}
    tokenizer: Part | None = None  # prepared sources bring their own
    packing: Part = "concatenate"
    mixture: Part = "epochs"
    views: list[Part] = ["next_token"]
    seq_len: RowLength
    batch_size: Rows  # a step

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


class WeightsSpec(_Strict):
    """What arrives over a stage border; patterns address roles.

    `from` is an earlier stage, run:FOLDER (another run's newest checkpoint; {seed} in it is this run's seed) or hf:FOLDER.
    """

    from_: str = Field(alias="from")
    fresh: list[str] = ["embedding", "head"]
    redraw: list[str] = []
    keep: list[str] = ["*"]


class ModelSpec(_Strict):
    """A trained model that is lent to objectives, frozen. Its training is given, not charged; every call of it is charged."""

    from_: str = Field(alias="from", pattern=r"^run:.+")  # run:FOLDER or run:FOLDER@STEP; {seed} in it is this run's seed


class StageSpec(_Strict):
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
    evaluate_at: list[Steps] = []  # further steps of the stage at which held-out text is read
    floor_rows: int = Field(default=128, ge=1, le=10**6)  # held-out rows on which an automaton stage is held against its floors


class BranchSpec(_Strict):
    """A side run from a checkpoint of this run, which it does not move: other stages, and the same evaluation.

    Its first stage takes weights, moments and clock over, unless its `weights: {from: trunk, ...}` and `carry` say otherwise.
    """

    at: Steps | str  # a step of the run, or the name of a stage: where that ends
    stages: list[StageSpec] = Field(min_length=1)


class EvaluateSpec(_Strict):
    """Held-out text. The test part is read once, after the last step."""

    sets: dict[str, Part] = {}  # name -> a corpus; empty: the sources of the stage's own stream
    main: str | None = None  # the set that the metric reads; needed where there are several
    valid_bytes: Bytes = 65_536  # of each set's validation part, for the curve; whole documents, at least one
    test: bool = True  # tuning runs never read the test part
    test_bytes: Bytes | None = None  # None: all of it
    stride: RowLength | None = None  # of overlapping windows, at most a row's length; None: disjoint
    samples: list[str] = []  # prompts for the page
    sample_tokens: int = Field(default=200, ge=1, le=10**7)


class ControlSpec(_Strict):
    """The arm that all others are held against."""

    name: str = "control"
    change: dict[str, Any] = {}


class StudySpec(_Strict):
    """What is compared, fixed before the first run."""

    control: ControlSpec
    arms: dict[str, dict[str, Any]]
    seeds: str | list[Seed] = "0-2"
    main_stage: str | None = None  # whose budget is matched; the last, if None
    metric: Literal["test_bits_per_byte", "test_loss_nats"] = "test_bits_per_byte"
    lossy_tokenizers: bool = False  # whether arms with other tokenizers are compared though one of them loses text
    contrasts: list[tuple[str, str]] = []  # further pairs (arm, reference) beside every arm against the control
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    margin: float = Field(default=0.01, gt=0, le=100)  # equivalence: differences inside count as none (unit of the metric)
    looks: list[Annotated[int, Field(ge=2, le=10**4)]] = []  # numbers of seeds at which a verdict may be read; empty: once
    tuned: dict[str, dict[str, Any]] = {}  # arm -> settings found by `seedbed tune`
    published_nats: float | None = Field(
        default=None, gt=0, le=100
    )  # the effect that the paper reports, printed beside what is detectable

    @field_validator("looks")
    @classmethod
    def _rising(cls, looks: list[int]) -> list[int]:
        if looks != sorted(set(looks)):
            raise ValueError(f"looks must be rising numbers of seeds from 2 on, got {looks}")
        return looks


class TuneSpec(_Strict):
    """A grid for every arm, run on validation data and on seeds that no study uses."""

    seeds: list[Seed] = Field(min_length=1)
    grids: dict[str, dict[str, list[Any]]]  # arm -> setting -> values
    records: list[str] = []  # where the committed records of this and earlier searches stand


class MapBlock(_Strict):
    """Settings that are fixed, and a grid of others."""

    fixed: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}


class MapSpec(_Strict):
    """Which settings of an automaton stage are held against each other, each on rows that hold enough of its frames."""

    stage: str
    seeds: list[Seed] = Field(min_length=1)
    frames: int = Field(ge=2, le=10**6)  # a row holds at least so many; its length is the next power of two
    tokens_per_step: Tokens = 2048  # rows a step follow from it
    held_out_tokens: Tokens = 32_768  # held-out rows follow from it
    blocks: dict[str, MapBlock]


_ADDED: list[tuple[str, str, Any]] = [
    ("streams", "sources", {}),
    ("stages", "evaluate_at", []),
    ("stages", "carry", ["weights"]),
    ("stages", "further", []),
    ("stages", "model", None),
    ("evaluate", "sets", {}),
    ("evaluate", "main", None),
]
# settings of a plan that say where and how it computes; they move no number beyond rounding
WHERE = ("device", "threads", "data_workers", "deterministic", "compiled", "recompute", "shard", "keep_last", "keep_every")
_NO_TUNE = TuneSpec(seeds=[0], grids={})


class Recipe(_Strict):
    """A whole recipe, checked. `streams` and `stages` hold parts by name; see `seedbed list parts`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str = ""
    paper: str = ""
    system: int | None = Field(default=None, ge=1, le=1000)  # its number in docs/systems.md, if the study judges one
    claim: str = ""  # what the paper says, in a line
    use_when: str = ""  # who should use it, by what the study found
    model: Part
    models: dict[str, ModelSpec] = {}  # lent to objectives, by name
    streams: dict[str, StreamSpec]
    stages: list[StageSpec] = Field(min_length=1)
    branches: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], BranchSpec] = {}
    evaluate: EvaluateSpec = EvaluateSpec()
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
            if stage.name in inside:
                raise ValueError(f"{path}.stages: names must differ, and none is {TRUNK}; got {stage.name} twice")
            for stream in (stage.stream, *stage.further):
                if stream not in self.streams:
                    raise ValueError(
                        f"{path}.stages.{stage.name}.stream: no stream {stream!r}; {nearest(stream, self.streams)}"
                    )
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
        if giver not in earlier and not giver.startswith((RUN, HF)):
            raise ValueError(
                f"{path}.weights.from: no earlier stage {giver!r}; {nearest(giver, earlier)} (or run:FOLDER, hf:FOLDER)"
            )
        if not stage.carry or len(set(stage.carry)) < len(stage.carry):
            raise ValueError(f"{path}.carry: names each of weights, moments, clock once at most, and one at least")
        if giver.startswith(HF) and stage.carry != ["weights"]:
            raise ValueError(f"{path}.carry: a model folder has weights only, no moments and no clock")

    def _check_stride(self, stage: "StageSpec") -> None:
        stride, seq_len = self.evaluate.stride, self.streams[stage.stream].seq_len
        if stride is not None and stride > seq_len:
            raise ValueError(
                f"evaluate.stride: a stride lies in 1..{seq_len} (the seq_len of stream {stage.stream}), got {stride}: a "
                "window further on would leave tokens out"
            )

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
            self._check_stride(stage)
            if stage.embedding_std == "trained" and stage.weights is None:
                raise ValueError(
                    f"stages.{stage.name}.embedding_std: 'trained' needs weights from an earlier stage; give a number"
                )
        for name, branch in self.branches.items():
            self._check_branch(name, branch, names)
        if self.map and self.map.stage not in names:
            raise ValueError(f"map.stage: no stage {self.map.stage!r}; {nearest(self.map.stage, names)}")
        if self.study:
            arms = {self.study.control.name, *self.study.arms}
            named = [("study.tuned", a) for a in self.study.tuned] + [("tune.grids", a) for a in (self.tune or _NO_TUNE).grids]
            for where, name in named:
                if name not in arms:
                    raise ValueError(f"{where}: no arm {name!r}; {nearest(name, arms)}")
        return self


class RunPlan(_Strict):
    """One arm of a recipe with one seed and where it computes: what a run folder's resolved.yaml holds."""

    name: str
    title: str = ""
    paper: str = ""
    scale: str | None = None
    arm: str
    seed: Seed
    model: Part
    models: dict[str, ModelSpec] = {}
    streams: dict[str, StreamSpec]
    stages: list[StageSpec]
    branches: dict[str, BranchSpec] = {}
    positions: dict[str, Annotated[int, Field(ge=0, le=10**18)]] = {}  # rows of each stream that a branch finds read already
    evaluate: EvaluateSpec
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
        """Return a hash of everything that decides the numbers; where it computes is left out."""
        facts = self.model_dump(by_alias=True, exclude=set(WHERE))
        for where, name, default in _ADDED:  # a plan from before a setting existed keeps its hash
            for spec in facts[where].values() if where == "streams" else facts[where] if where == "stages" else [facts[where]]:
                if spec[name] == default:
                    del spec[name]
        for name in ("models", "branches", "positions"):
            if not facts[name]:
                del facts[name]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def used_streams(self) -> dict[str, StreamSpec]:
        """The streams that stages read, by name."""
        return {name: self.streams[name] for stage in self.stages for name in (stage.stream, *stage.further)}

    def tokens(self) -> int:
        """Return the tokens that all stages show, as far as their budgets say it without a model (0 for FLOPs)."""
        shown = 0
        for stage in self.stages:
            stream = self.streams[stage.stream]
            shown += stage.budget.tokens or (stage.budget.steps or 0) * stream.batch_size * stream.seq_len
        return shown

    def to_yaml(self) -> str:
        return dump_yaml(json.loads(self.model_dump_json(by_alias=True)))


def shipped() -> dict[str, Path]:
    """Return the recipes inside the package by name."""
    folder = Path(str(resources.files("seedbed.recipes")))
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def find(recipe: str) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped one."""
    known = shipped()
    if recipe in known:
        return known[recipe]
    if Path(recipe).suffix in (".yaml", ".yml"):
        if not Path(recipe).is_file():
            raise DataError(f"there is no recipe file {recipe}; give the path of a YAML file or one of: {', '.join(known)}")
        return Path(recipe)
    raise ConfigError(f"no recipe {recipe!r}; {nearest(recipe, known)} (or give the path of a .yaml file)")


def recipe_text_of(recipe: str | Path) -> str:
    return read_text(find(str(recipe)), advice="give the path of a YAML file")


def load(
    recipe: str | Path,
    *,
    scale: str | None = None,
    sets: Mapping[str, Any] | None = None,
    corpus: str | None = None,
) -> "Loaded":
    """Return a recipe, read and checked. Raises ConfigError with the path in the file for whatever does not fit."""
    tree = _extended(find(str(recipe)), seen=())
    scales = tree.get("scales") or {}
    if scale is not None:
        if scale not in scales:
            raise ConfigError(f"the recipe has no scale {scale!r}; {nearest(scale, scales)}")
        for path, value in scales[scale].items():
            set_path(tree, path, value)
    sets = dict(sets or {})
    if corpus is not None:
        texts = [name for name, stream in (tree.get("streams") or {}).items() if _kind(stream) in ("text", "shards")]
        if not texts:
            raise ConfigError(
                "--corpus needs a recipe with a text source; this one has none, or several by name (give "
                "each its path with --set)"
            )
        prepared = (Path(corpus) / "manifest.json").is_file()
        for name in texts:
            if prepared:  # with the folder's own tokenizer
                sets |= {f"streams.{name}.source": {"kind": "shards", "path": corpus}, f"streams.{name}.tokenizer": None}
            else:
                sets[f"streams.{name}.source.path"] = corpus
    for path, value in sets.items():
        set_path(tree, path, value)
    loaded = Loaded(tree=tree, recipe=_checked(Recipe, tree), sets=sets, scale=scale)
    for arm in loaded.arms:
        loaded.plan(arm=arm, seed=0)
    return loaded


def _kind(stream: Any) -> Any:
    source = stream.get("source") if isinstance(stream, dict) else None
    return source.get("kind") if isinstance(source, dict) else source


class Loaded:
    """A recipe as read, from which the plan of every arm and seed is derived."""

    def __init__(self, *, tree: dict[str, Any], recipe: Recipe, sets: Mapping[str, Any], scale: str | None) -> None:
        self.tree, self.recipe, self.sets, self.scale = tree, recipe, sets, scale

    @property
    def arms(self) -> list[str]:
        """The control first; a recipe without a study has one arm called "run"."""
        study = self.recipe.study
        return [study.control.name, *study.arms] if study else ["run"]

    @property
    def seeds(self) -> list[int]:
        return parse_seeds(self.recipe.study.seeds) if self.recipe.study else [0]

    def plan(
        self,
        *,
        arm: str,
        seed: int,
        changes: Mapping[str, Any] | None = None,
        **where: Any,
    ) -> RunPlan:
        """Return one run's plan. `changes` are further settings (of a tuning trial or an A/A study).

        `where` are settings of RunPlan that say where and how it computes: device, precision (None: the recipe's), threads,
        data_workers, deterministic, compiled, recompute, shard.
        """
        tree = copy.deepcopy(self.tree)
        study = self.recipe.study
        if arm not in self.arms:
            raise ConfigError(f"the recipe has no arm {arm!r}; {nearest(arm, self.arms)}")
        if study:
            change = study.control.change if arm == study.control.name else study.arms[arm]
            _apply(tree, change, where=f"study.arms.{arm}")
            left_out = {s["name"] for s in self.tree["stages"]} - {s["name"] for s in tree["stages"]}
            for path, value in study.tuned.get(arm, {}).items():
                if not (path.startswith("stages.") and path.split(".")[1] in left_out):
                    set_path(tree, path, self.sets.get(path, value))
        for path, value in (changes or {}).items():
            set_path(tree, path, value)
        about_many = ("study", "tune", "map", "scales", "precision", "system", "claim", "use_when")
        body = {k: v for k, v in tree.items() if k in Recipe.model_fields and k not in about_many}
        checked = _checked(Recipe, body)
        main = (study.main_stage if study else None) or checked.stages[-1].name
        plan = {
            **_with_whole_places(body),
            "scale": self.scale,
            "arm": arm,
            "seed": seed,
            "evaluate": _with_whole_places({"evaluate": checked.evaluate.model_dump(mode="json")})["evaluate"],
            **{name: getattr(checked, name) for name in ("checkpoint_every", "keep_last", "keep_every")},
            "main_stage": main,
            **where,
            "precision": where.get("precision") or self.recipe.precision,
        }
        if main not in [s.name for s in checked.stages]:
            raise ConfigError(f"arm {arm}: its main stage {main!r} is gone; name another under study.main_stage")
        return _checked(RunPlan, plan)


def _with_whole_places(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's settings with every place from the root on, so that a run folder can be used from any other."""
    tree = _with_whole_code(tree)
    for stream in tree.get("streams", {}).values():
        for name in ("source", "tokenizer"):
            if name in stream:
                stream[name] = _whole_part(stream[name], sources.parts if name == "source" else tokenizers.parts)
        stream["sources"] = {k: _whole_part(v, sources.parts) for k, v in (stream.get("sources") or {}).items()}
    evaluate = tree.get("evaluate") or {}
    if "sets" in evaluate:
        evaluate["sets"] = {k: _whole_part(v, sources.parts) for k, v in evaluate["sets"].items()}
    for stage in tree.get("stages", []):
        if stage.get("weights"):
            stage["weights"]["from"] = _whole_giver(stage["weights"]["from"])
    for lent in (tree.get("models") or {}).values():
        if isinstance(lent, dict) and isinstance(lent.get("from"), str):
            lent["from"] = _whole_giver(lent["from"])
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("size"), str):
        model["size"] = _whole_giver(model["size"])
    return tree


def _with_whole_code(value: Any) -> Any:
    """Return a copy in which every part from a file, FILE.py:CLASS, names its file from the root on."""
    if isinstance(value, dict):
        return {k: _with_whole_code(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_whole_code(v) for v in value]
    file, colon, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return f"{whole(file)}:{name}" if colon and file.endswith(".py") and name.isidentifier() else value


def _whole_part(spec: Any, registry: Registry) -> Any:
    kind = spec if isinstance(spec, str) else spec.get("kind") if isinstance(spec, dict) else None
    if not isinstance(kind, str):
        return spec
    if isinstance(spec, str) or ".py:" in kind or kind not in registry:
        return spec
    named = [name for name in places_of(registry.resolve(kind)) if isinstance(spec.get(name), str)]
    return {**spec, **{name: whole(spec[name]) for name in named}}


def _whole_giver(name: str) -> str:
    """A run's folder from the root on; a model folder too, if it is one and not the name of one on the hub."""
    for kind in (RUN, HF):
        path = name.removeprefix(kind)
        if name.startswith(kind) and (kind == RUN or Path(path).exists()):
            return kind + whole(path)
    return name


def read_plan(folder: Path) -> RunPlan:
    """Return the plan of a run, in its folder or packed."""
    return _checked(RunPlan, parse_yaml(RunRecord(folder).plan_text(), name=str(folder / PLAN)))


def parse_seeds(seeds: str | Sequence[int]) -> list[int]:
    """Return [0, 1, 2] for "0-2" and [0, 3] for "0,3". Raises ConfigError for anything else, or doubles."""
    given = seeds
    if isinstance(seeds, str):
        spans = [re.fullmatch(r"\s*(\d{1,19})(?:\s*-\s*(\d{1,19}))?\s*", part) for part in seeds.split(",")]
        if not all(spans):
            raise ConfigError(f"cannot read the seeds {seeds!r}; write 0-4 or 0,2,5")
        ranges = [range(int(span[1]), int(span[2] or span[1]) + 1) for span in spans if span]
        if sum(map(len, ranges)) > MOST_SEEDS:
            raise ConfigError(f"a study has at most {MOST_SEEDS:,} seeds; got {seeds!r}")
        seeds = [n for some in ranges for n in some]
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED or len(seeds) > MOST_SEEDS:
        raise ConfigError(
            "seeds must be different numbers in 0..2^63 - 1, at least one, the first of a span not above its last; got "
            f"{given!r}"
        )
    return list(seeds)


def _extended(file: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in seen:
        raise ConfigError(f"{file} extends itself: {' -> '.join(p.name for p in (*seen, file))}")
    tree = read_yaml(file)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    beside = file.parent / str(base)
    parent = beside if beside.is_file() else find(str(base))
    extended = _extended(parent, seen=(*seen, file.resolve()))
    changes = {k: tree.pop(k) for k in [k for k in tree if "." in k]}
    out = merged(extended, tree)
    for path, value in changes.items():
        set_path(out, path, value)
    return out


def _apply(tree: dict[str, Any], change: Mapping[str, Any], *, where: str) -> None:
    """Make an arm's change: `without` (a stage), `give_budget_to` (another), `only` seeds nothing; else paths and values."""
    change = dict(change)
    without, heir = change.pop("without", None), change.pop("give_budget_to", None)
    if without is None and heir is not None:
        raise ConfigError(f"{where}.give_budget_to: only the budget of a stage named under `without` can be given")
    if without is not None:
        _remove_stage(tree, without, heir, where=where)
    for path, value in change.items():
        set_path(tree, path, value)


def _remove_stage(tree: dict[str, Any], name: str, heir: str | None, *, where: str) -> None:
    stages = tree["stages"]
    names = [s["name"] for s in stages]
    if name not in names:
        raise ConfigError(f"{where}.without: no stage {name!r}; {nearest(name, names)}")
    gone = stages.pop(names.index(name))
    for stage in stages:
        if (stage.get("weights") or {}).get("from") == name:  # leaving a stage out hands its origin on
            if gone.get("weights"):
                stage["weights"]["from"] = gone["weights"]["from"]
            else:
                del stage["weights"]
    if heir is not None:
        taker = next((s for s in stages if s["name"] == heir), None)
        if taker is None:
            raise ConfigError(f"{where}.give_budget_to: no stage {heir!r}; {nearest(heir, [s['name'] for s in stages])}")
        mine, theirs = (_checked(Budget, s["budget"]) for s in (taker, gone))
        rows = [tree["streams"].get(s["stream"], {}) for s in (taker, gone)]
        sizes = {(row.get("seq_len"), row.get("batch_size")) for row in rows}
        if mine.currency == "steps" and len(sizes) > 1:
            raise ConfigError(
                f"{where}.give_budget_to: a step of {heir} shows other tokens than one of {name}; give both budgets in tokens"
            )
        if mine.currency != theirs.currency:
            raise ConfigError(f"{where}.give_budget_to: {heir} counts {mine.currency}, {name} counted {theirs.currency}")
        currency = mine.currency
        taker["budget"] = {currency: getattr(mine, currency) + getattr(theirs, currency)}


def _checked(model: Any, tree: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate_json(as_json(tree, path=""), strict=True)
    except ValidationError as e:
        unknown = [f for f in e.errors() if f["type"] == "extra_forbidden"]
        if unknown:
            path = ".".join(map(str, unknown[0]["loc"]))
            fields = _fields_at(model, tree, unknown[0]["loc"])
            raise ConfigError(f"{path}: unknown key; {nearest(str(unknown[0]['loc'][-1]), fields)}") from None
        raise ConfigError(explain(e, path="")) from None


def _fields_at(model: Any, tree: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed beside an unknown one: walk down the schema along its path."""
    schema = model.model_json_schema(by_alias=True)
    at: Any = schema
    for step in loc[:-1]:
        at = _resolved(at, schema)
        if isinstance(step, int):
            at = at.get("items", {})
        else:
            at = at.get("properties", {}).get(step) or at.get("additionalProperties", {})
    return list(_resolved(at, schema).get("properties", {}))


def _resolved(at: Any, schema: Any) -> Any:
    for option in at.get("anyOf", []):
        if "$ref" in option:
            at = option
    return schema["$defs"][at["$ref"].rsplit("/", 1)[1]] if "$ref" in at else at
