"""What a recipe may say of comparing: its study, its search for settings, its map of settings."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from seedbed.experiments.plan.numbers import Seed, Strict, Tokens

_METRIC = r"^([a-z0-9_-]+/)?[a-z][a-z0-9_-]*(\.[a-z0-9_]+){0,2}$"  # BRANCH/NAME.NUMBER.FUNCTION, of which NAME is enough


class ControlSpec(Strict):
    """The arm that all others are held against."""

    name: str = "control"
    change: dict[str, Any] = {}


class StudySpec(Strict):
    """What is compared, fixed before the first run."""

    control: ControlSpec
    arms: dict[str, dict[str, Any]]
    seeds: str | list[Seed] = "0-2"
    main_stage: str | None = None  # whose budget is matched; the last, if None
    metric: Annotated[str, Field(pattern=_METRIC)] | None = (
        None  # see outcomes.py; None: the first measure of the first evaluation
    )
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


class TuneSpec(Strict):
    """A grid for every arm, run on validation data and on seeds that no study uses."""

    seeds: list[Seed] = Field(min_length=1)
    grids: dict[str, dict[str, list[Any]]]  # arm -> setting -> values
    records: list[str] = []  # where the committed records of this and earlier searches stand


class MapBlock(Strict):
    """Settings that are fixed, and a grid of others."""

    fixed: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}


class MapSpec(Strict):
    """Which settings of a stage on frames are held against each other, each on rows that hold enough of them."""

    stage: str
    evaluation: str = "rules"  # of kind rule_inference: what holds the stage against its floors
    seeds: list[Seed] = Field(min_length=1)
    frames: int = Field(ge=2, le=10**6)  # a row holds at least so many; its length is the next power of two
    tokens_per_step: Tokens = 2048  # rows a step follow from it
    held_out_tokens: Tokens = 32_768  # held-out rows follow from it
    blocks: dict[str, MapBlock]
