"""The records that travel between rooms; `Array` is numpy in data rooms and torch behind the engine.

Letters: B rows, T positions, D width, A position axes, K candidates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeAlias

import numpy as np

Array: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn row: which source, which row of it, and how often the source was gone through before."""

    source: str
    index: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue."""

    speaker: str
    text: str

    def __str__(self) -> str:
        return f"{self.speaker}: {self.text}\n"


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of a corpus. A dialogue has turns, and its text is theirs, one after the other as `str(turn)`.

    `data` holds signals (a wave, an image, ids that are known already as "ids"); `meta` what its file said beside the text:
    date, language, domain, source, label, and prepared columns.
    """

    id: str
    text: str = ""
    turns: tuple[Turn, ...] = ()
    data: Mapping[str, Array] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """UTF-8 bytes of the text as it was read; a document that was prepared remembers them."""
        return int(self.data["bytes"]) if "bytes" in self.data else len(self.text.encode())


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What something cost. Seconds are wall-clock; a cost with `given_by` is named but not charged."""

    positions: int = 0
    flops_run: float = 0.0  # what the machine did
    flops_ideal: float = 0.0  # what a machine that skips zeros and needless work would have done
    seconds: float = 0.0
    given_by: str = ""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            positions=self.positions + other.positions,
            flops_run=self.flops_run + other.flops_run,
            flops_ideal=self.flops_ideal + other.flops_ideal,
            seconds=self.seconds + other.seconds,
        )

    def times(self, share: float) -> "Cost":
        """Return this cost that many times (positions rounded)."""
        return Cost(
            positions=round(self.positions * share),
            flops_run=self.flops_run * share,
            flops_ideal=self.flops_ideal * share,
            seconds=self.seconds * share,
        )


@dataclass(frozen=True, slots=True)
class Field:
    """One line of the table below: a field of rows (name_T) and of batches (name_BT), with further axes behind."""

    name: str
    dtype: str
    padding: float  # what fills a row up that is shorter than its batch
    axes: str = ""

    @property
    def of_row(self) -> str:
        return f"{self.name}_T{self.axes}"

    @property
    def of_batch(self) -> str:
        return f"{self.name}_BT{self.axes}"


# What stands at every position. Stacking, padding, cutting and pinning of batches follow from this table; beside it a row has
# labels (by name, one a row), extra (by name, one a position), parts (by name, rows of their own) and a graph.
FIELDS = (
    Field("tokens", "int64", 0),
    Field("features", "float32", 0, "F"),
    Field("targets", "int64", 0),
    Field("weights", "float32", 0),
    Field("documents", "int32", -1),
    Field("positions", "int64", 0, "A"),
    Field("speakers", "int32", -1),
    Field("withheld", "bool", 0),
)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Edges between positions (nodes). Rows with a graph are joined, not stacked: a batch is one row of all their nodes."""

    edges_2E: Array  # from, to
    edge_features_EF: Array = None
    graph_of_T: Array = None  # of a batch: the number of the row that a node belongs to

    def map(self, change: Callable[[Array], Array]) -> Self:
        return replace(self, **{f.name: change(v) for f in fields(self) if (v := getattr(self, f.name)) is not None})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example. A source fills `tokens_T` (or `features_TF`); views say what is asked and how much it counts."""

    tokens_T: Array = None
    features_TF: Array = None  # continuous input
    targets_T: Array = None
    weights_T: Array = None  # 0 = not asked; before a view has run: how much each token itself may count
    documents_T: Array = None
    positions_TA: Array = None
    speakers_T: Array = None  # who says it: a number a speaker
    withheld_T: Array = None  # where the input is replaced by the model's own vector
    labels: Mapping[str, Array] = field(default_factory=dict)  # of the row as a whole
    extra: Mapping[str, Array] = field(default_factory=dict)  # per position
    graph: Graph | None = None
    parts: Mapping[str, "Row"] = field(default_factory=dict)  # rows that belong to it: a source, a negative, a context
    cost: Cost = Cost()  # of making the row, rejected tries included

    @property
    def length(self) -> int:
        """Positions (nodes)."""
        return len(self.features_TF if self.tokens_T is None else self.tokens_T)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a batch is: its rows, their positions (padding included), and how many of these are asked something."""

    rows: int
    positions: int
    counted: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows stacked: the same fields with a leading B; rows with a graph are joined: B is 1. The loop never looks inside."""

    tokens_BT: Array = None
    features_BTF: Array = None
    targets_BT: Array = None
    weights_BT: Array = None
    documents_BT: Array = None
    positions_BTA: Array = None
    speakers_BT: Array = None
    withheld_BT: Array = None
    lengths_B: Array = None  # of the rows, where they differ: what stands behind is padding
    labels: Mapping[str, Array] = field(default_factory=dict)
    extra: Mapping[str, Array] = field(default_factory=dict)
    graph: Graph | None = None
    graphs: int = 0  # how many were joined
    parts: Mapping[str, "Batch"] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        """What it is charged for; without weights every position counts. Read it where the batch lies in memory."""
        rows, length = (self.features_BTF if self.tokens_BT is None else self.tokens_BT).shape[:2]
        positions = rows * length
        counted = positions if self.weights_BT is None else int((self.weights_BT > 0).sum())
        return Size(rows=self.graphs or rows, positions=positions, counted=counted)

    def map(self, change: Callable[[Array], Array]) -> Self:
        """Return the batch with `change` applied to every array that is there."""
        arrays = {f.name: v for f in fields(self) if f.name not in _COMPOUND and (v := getattr(self, f.name)) is not None}
        return replace(
            self,
            **{name: change(value) for name, value in arrays.items()},
            labels={name: change(value) for name, value in self.labels.items()},
            extra={name: change(value) for name, value in self.extra.items()},
            graph=None if self.graph is None else self.graph.map(change),
            parts={name: part.map(change) for name, part in self.parts.items()},
        )


_COMPOUND = ("labels", "extra", "graph", "graphs", "parts")


def blank(*, rows: int, seq_len: int) -> Batch:
    """Return a batch of this size with nothing in it, for what asks its cost; every position counts."""
    return Batch(tokens_BT=np.broadcast_to(np.int64(0), (rows, seq_len)))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a view gets to know of a stream's ids: those of its sources, and the spare ones behind them that are its own."""

    size: int  # ids 0 to size - 1 are the sources'
    boundary_id: int | None = None  # stands in front of a document
    spare: tuple[int, ...] = ()  # as many as the view's `spare` asks for
    tokenizer: Any = None  # of text


@dataclass(frozen=True, kw_only=True)
class Key:
    """Names every random draw of a row: the run's seed, the stream, the position in it and what was drawn there."""

    seed: int
    stream: str
    position: int
    draw: Draw


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a mixture decides by: `values` by source, written to disk before a row behind `position` of its stream is drawn."""

    step: int
    position: int
    name: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a stage stands, always in steps: `step` of `steps` in the stage, `run_step` over all stages.

    For a view it is where the stream stands: `step` of its own, `steps` 0 (a stream has no end), and what was measured so far.
    """

    step: int
    steps: int
    run_step: int = 0
    history: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class Role:
    """What a parameter is for: (part, layer, tensor), such as ("attention", 3, "value"). layer is None outside blocks."""

    part: str
    layer: int | None = None
    tensor: str = ""

    def __str__(self) -> str:
        name = f"{self.part}.{self.tensor}" if self.tensor else self.part
        return name if self.layer is None else f"{name}@{self.layer}"


@dataclass(frozen=True, kw_only=True)
class TopK:
    """A few ids of every position with their probabilities, which may sum to less than 1: the rest is not there."""

    ids_BTK: Array
    probs_BTK: Array


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Another model's Outputs at the same positions: its probabilities p ask as p^exponent / sum(p^exponent).

    An exponent under 1 flattens them. They get no gradient.
    """

    outputs: Any
    exponent: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TokenTargets:
    """What is asked of the token head: (1 - share) hard + share soft + z, where the weight is above 0.

    hard is -log p(id), with `smoothing` of the id's mass on all ids evenly; soft is -sum(q log p) over the distribution q of
    `soft`; z is z_weight log(Z)^2. Positions of weight 0 never meet the head. A number as share holds everywhere, and at 0
    the soft targets are not read at all.
    """

    ids_BT: Array
    weights_BT: Array
    soft: Any = None  # a TopK, a Teacher, or an array of whole distributions probs_BTV
    soft_share_BT: Array | float = 1.0  # 0 to 1
    smoothing: float = 0.0  # 0 to 1
    z_weight: float = 0.0
    rank: bool = False  # whether TokenLoss.rank_BT is made: a further pass over the logits
    log_z: bool = False  # whether TokenLoss.log_z_BT is made


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """`sum_nats` is weighted and differentiable; the rest is detached.

    `nll_BT` is -log p(id) in nats whatever else is asked, and 0 where nothing is; `rank_BT` how many ids are likelier than
    the asked one (0: none is; -1: nothing was asked); `log_z_BT` the log of the sum of exponentials (0 where nothing is asked).
    """

    sum_nats: Array
    nll_BT: Array
    rank_BT: Array = None
    log_z_BT: Array = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A sum over `count(batch)` things, in nats, and named parts to log (sums as well)."""

    sum_nats: Array
    parts: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an objective may use beside its batch and the model's outputs on it."""

    model: Any  # for further passes
    progress: Progress
    draws: Callable[[str], Any]  # a torch generator for a name; the same one for the same step, micro-batch and rank
    own: Any = None  # the module that its `build` returned
    models: Mapping[str, Any] = field(default_factory=dict)  # those it names: lent, frozen, and each call is charged
    batches: Mapping[str, Batch] = field(default_factory=dict)  # of the stage's streams, the batch's own among them


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """What a page shows of a source: a PNG picture and facts ready for JSON (a caption at least)."""

    picture: bytes
    # caption, and perhaps a histogram: name, caption, values, xlabel, ylabel, span (from, to, label), line (at, label)
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One scored item of an evaluation, so that pairs of runs can be compared item by item."""

    id: str
    group: str
    values: Mapping[str, float]
    text: str = ""


@dataclass(frozen=True)
class Keep:
    """A document stays as it is."""


@dataclass(frozen=True)
class Drop:
    """A document is left out; `reason` is counted, `detail` stands in dropped.jsonl."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Rewrite:
    """Another text takes a document's place, under its id; `reason` is counted."""

    document: Document
    reason: str


Verdict: TypeAlias = Keep | Drop | Rewrite


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A trained model where it computes, with what its texts are read with; `own` has what its objectives have built."""

    model: Any
    own: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any
    seq_len: int | None  # of the rows that it was trained on, if it is known
    causal: bool
    fingerprint_of_weights: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that an evaluation comes to; one that counts `per_token` compares only where tokens are the same."""

    unit: str
    better: Literal["less", "more"] = "less"
    per_token: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What an evaluation has to reach, or there is nothing to build on: `number` at `level`, or better."""

    number: str
    level: float
    met: bool
    unmet: str  # what is said of a stage that does not reach it: "did not learn: nothing to transfer"
    levels: Mapping[str, float] = field(default_factory=dict)  # what simpler things reach, by their names


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an evaluator finds: items, from which its numbers are summed up, and what stands beside them, ready for JSON."""

    items: list[Item]
    bar: Bar | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    figure: Mapping[str, Any] | None = None  # caption, xlabel, ylabel, lines (name -> [x, y]), levels (name -> y)
    notes: tuple[str, ...] = ()  # what has to be said wherever its numbers are


def bar_beside(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return, of what final.json says of an evaluation with a bar, that bar and what was read beside it."""
    bar = evaluation["bar"]
    unit = evaluation["measures"].get(bar["number"], {}).get("unit", "")
    return {"stage": evaluation["stage"], "value": evaluation["numbers"][bar["number"]], "unit": unit, **bar}
