"""What parts promise each other. A part is a frozen dataclass whose fields are its settings.

The rooms see only these, so a new method is one file in its room and one line in that room's registry. Every part states
`neutral`: the settings at which it gives its control's results bit for bit, or in words why it has none. A part may derive from
its protocol, and then has what that gives as it is (no taps, no spare ids, ..); `missing` names what a part lacks.
Letters: B rows, T positions, D width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from seedbed.core.errors import ConfigError
from seedbed.core.records import (
    Array,
    Batch,
    Context,
    Cost,
    Document,
    Draw,
    Exhibit,
    Item,
    Key,
    Loss,
    Measure,
    Measurement,
    OpenModel,
    Progress,
    Reading,
    Role,
    Row,
    TokenLoss,
    TokenTargets,
    TopK,
    Verdict,
    Vocabulary,
)

Neutral: TypeAlias = Mapping[str, Any] | str


@runtime_checkable
class Corpus(Protocol):
    """Documents by address. `split` is "train", "valid" or "test"; a document belongs to exactly one."""

    @property
    def skipped(self) -> Mapping[str, int]:  # what was not read, by reason
        return {}

    def noted(self) -> Mapping[str, Any]:  # what is said of text that was prepared, its licence for example
        return {}

    def documents(self, split: str) -> Sequence[Document]: ...
    def fingerprint(self) -> str: ...


@runtime_checkable
class Source(Protocol):
    """Rows by address: each row depends on (seed, split, its index) alone."""

    @property
    def vocab_size(self) -> int: ...
    def packed_from(self) -> "TokenStore | None":  # the documents behind its rows
        return None

    def size(self, split: str) -> int | None: ...  # rows in one epoch; None: never ends
    def rows(self, indices: Sequence[int], *, seed: int, split: str) -> list[Row]: ...
    def fingerprint(self) -> str: ...
    def report(self, split: str) -> Mapping[str, Any]:  # how well packed rows are used
        return {}

    def exhibit(self, *, seed: int) -> Exhibit | None:  # what a page shows of it
        return None

    def on(self, device: Any) -> "Source":  # the same rows, made on a torch device where that is sooner
        return self


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back, without loss."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def boundary_id(self) -> int: ...  # stands in front of every document
    def encode(self, text: str) -> Array: ...  # int32
    def encode_batch(self, texts: Sequence[str]) -> list[Array]: ...  # the same, many at once
    def decode(self, ids: Array) -> str: ...
    def fingerprint(self) -> str: ...
    def files(self) -> Mapping[str, bytes]:  # by name, what it is opened with again; empty: its settings say all
        return {}

    def piece(self, id: int) -> str | None:  # the name of an id; empty: ids have none; None: not to be listed
        return ""


@runtime_checkable
class TokenStore(Protocol):
    """Documents as ids, by address; the first id of each is the boundary. A corpus with its tokenizer, or prepared shards."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def boundary_id(self) -> int: ...
    def offsets(self, split: str) -> Array: ...  # int64 (documents + 1): document d is tokens offsets[d] to offsets[d + 1]
    def tokens(self, split: str, start: int, stop: int) -> Array: ...  # int32, of all documents one after the other
    def document(self, split: str, number: int) -> Document: ...
    def size_bytes(self, split: str) -> int: ...  # UTF-8 bytes of the split's texts
    def fingerprint(self) -> str: ...


@runtime_checkable
class Prepared(Protocol):
    """Documents that were tokenized beforehand: they open as a TokenStore (and Corpus) with the tokenizer they name."""

    def tokenizer_spec(self) -> Mapping[str, Any]: ...  # as a recipe names it
    def store(self, tokenizer: Tokenizer) -> Any: ...


@runtime_checkable
class Packer(Protocol):
    """Documents as ids, in order, to a source of rows."""

    def pack(self, store: TokenStore) -> Source: ...


@runtime_checkable
class Mixture(Protocol):
    """Which row stands at which position of a stream. Pure: the same answer for the same arguments, for ever."""

    @property
    def wants(self) -> tuple[str, int] | None: ...  # the Measurement it asks for, and after how many rows each; None: none
    @property
    def weighted(self) -> bool:  # whether it has weights that a resume may change
        return False

    def resolved(self, amounts: Mapping[str, Mapping[str, float]]) -> "Mixture":  # for sources of these rows, bytes, seconds
        return self

    def wanted(
        self, rows: int, *, sizes: Mapping[str, int | None], history: Sequence[Measurement] = ()
    ) -> Mapping[str, float]:  # the share of the first rows that each source was to have; empty: nothing is said of it
        return {}

    def draws(
        self,
        start: int,
        *,
        count: int,
        sizes: Mapping[str, int | None],
        seed: int,
        history: Sequence[Measurement] = (),
    ) -> list[Draw]: ...


@runtime_checkable
class View(Protocol):
    """Turns a row into what is shown, what is asked and what it counts; a function of its arguments alone."""

    @property
    def keeps_order(self) -> bool: ...  # whether tokens stand where they stood, so that frames are still frames
    @property
    def asks_next(self) -> bool:  # whether a target stands, shown, at a later position: a model that looks ahead reads it off
        return False

    @property
    def spare(self) -> int:  # ids that it needs behind those of the sources, such as one for a mask
        return 0

    def __call__(self, row: Row, *, key: Key, vocabulary: Vocabulary, progress: Progress) -> Row: ...


@runtime_checkable
class Outputs(Protocol):
    """What a forward returns, with the head to use on it. Full logits exist only when asked for."""

    hidden_BTD: Array
    taps: Mapping[str, Array]  # the inner states that were asked for

    def token_loss(self, targets: TokenTargets, *, plain: bool = False) -> TokenLoss: ...  # plain: twice differentiable
    def logprobs(self, ids_BTK: Array, *, counted_BT: Array, plain: bool = False) -> Array: ...  # each differentiable
    def top(self, k: int, *, counted_BT: Array = None) -> TopK: ...  # the likeliest first, detached, as are logits
    def logits(self, rows: Any = ..., positions: Any = ...) -> Array: ...
    def logits_at(self, places: Any) -> Array: ...  # of positions of all rows laid end to end: a chunk, for a Teacher


@runtime_checkable
class Model(Protocol):
    """A torch module whose every parameter has a role.

    `blocks` are its repeated parts, each called with tensors: they are compiled, recomputed and split over ranks one by one.
    `taps` name inner states ("block.3", counted from 0; "block.-1"); `plain`: twice differentiable.
    """

    @property
    def roles(self) -> Mapping[str, Role]: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def blocks(self) -> Any: ...  # a ModuleList
    def __call__(self, batch: Batch, *, taps: tuple[str, ...] = (), plain: bool = False) -> Outputs: ...
    def cost(self, batch: Batch) -> Cost: ...  # of one forward
    def initialize(
        self, *, seed: int, stream: str = "init", body_stream: str | None = None, embedding_std: float | None = None
    ) -> None: ...


@runtime_checkable
class ModelKind(Protocol):
    """Settings of a model; `vocab_size` comes from the stream it is built for; for `layout_free` see Objective.

    `width` is that of its states: on a processor the number type hangs on it.
    """

    @classmethod
    def settled(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:  # what names a file becomes what stands in it
        return settings

    @property
    def layout_free(self) -> bool: ...
    @property
    def causal(self) -> bool: ...  # whether no position sees a later one, so that what follows may be asked
    @property
    def width(self) -> int: ...
    def build(self, *, vocab_size: int) -> Model: ...
    def cut_to(self, layers: int) -> "ModelKind":  # the same with so few blocks, by which a larger one is estimated
        return self  # it is not to be cut: it is measured whole

    def stepper(self, model: Any) -> Any:  # continues rows token by token, for writers: see `Stepper` in seedbed.models.cache
        raise ConfigError(f"{type(self).__name__} has no way to continue a text; leave `samples` empty")


@runtime_checkable
class Objective(Protocol):
    """A loss that says before the forward how many items it counts, then returns a sum over them.

    `layout_free`: whether micro-batches and ranks change it by rounding alone (no statistics over a batch, no draws inside).
    """

    @property
    def layout_free(self) -> bool: ...
    @property
    def taps(self) -> tuple[str, ...]:  # inner states of the model that it reads: Outputs.taps has them
        return ()

    @property
    def models(self) -> tuple[str, ...]:  # of the recipe's `models` that it calls: Context.models has them
        return ()

    @property
    def streams(self) -> tuple[str, ...]:  # of the stage's `further` streams that it reads: Context.batches has them
        return ()

    @property
    def group(self) -> int:  # rows that must share a micro-batch
        return 1

    @property
    def plain(self) -> bool:  # whether it differentiates its gradients: the forward is made so that it can
        return False

    def build(self, model: Model, *, seed: int) -> Any:  # a torch module of its own (None: none): trained, saved, with roles
        return None

    def count(self, batch: Batch) -> float: ...
    def __call__(self, outputs: Outputs, *, batch: Batch, context: Context) -> Loss: ...


@runtime_checkable
class Schedule(Protocol):
    """Progress to a number: of the learning rate a multiplier of its peak, 0 to 1; of a term's weight or setting the value."""

    def __call__(self, progress: Progress) -> float: ...


@runtime_checkable
class OptimizerKind(Protocol):
    """Settings of an optimizer; `groups` are (role, parameter) pairs of everything that is trained.

    The rates of its torch groups, as built, are their peaks: each follows the schedule from its own.
    """

    learning_rate: float

    def cost(self, groups: Sequence[tuple[Role, Array]]) -> Cost:  # of a step, where it is more than a pass over the weights
        return Cost()

    def build(self, groups: Sequence[tuple[Role, Array]]) -> Any: ...


@runtime_checkable
class Transfer(Protocol):
    """Old weights into a new model, key by key: each is kept, drawn fresh, or re-drawn; see `seedbed.transfer.rules`."""

    @property
    def patterns(
        self,
    ) -> Mapping[str, Sequence[str]]:  # of roles, by the setting that names them: each has to hit something
        return {}

    @property
    def draws_anew(self) -> bool: ...  # whether some of it is drawn fresh, so that the giver's own draws are thrown away
    def actions(self, roles: Mapping[str, Role]) -> Mapping[str, str]: ...  # parameter -> keep, fresh or redraw
    def __call__(
        self, new: Mapping[str, Array], *, roles: Mapping[str, Role], old: Mapping[Role, Array], seed: int
    ) -> Mapping[str, str]: ...  # fills `new`; returns its actions


@runtime_checkable
class Refiner(Protocol):
    """Keeps a document, drops it with a reason, or puts another text in its place; a function of the document alone.

    `calls` names what it is lent (score, embed or classify, by the name in the recipe's `lent`), which arrives as `lent`.
    """

    @property
    def calls(self) -> Mapping[str, str]:
        return {}

    def opened(self, read: Callable[[str], Iterable[tuple[str, str]]]) -> "Refiner":  # once, before any document
        return self  # `read` gives (name, text) of all that a path holds; what is returned goes to every worker

    def __call__(self, document: Document, *, lent: Mapping[str, Any]) -> Verdict: ...


@runtime_checkable
class Pass(Protocol):
    """Reads the documents of a prepared folder some at a time; what it returns of them is kept, so that a kill costs little."""

    @property
    def calls(self) -> Mapping[str, str]:  # what it is lent, as of a Refiner
        return {}

    @property
    def columns(self) -> tuple[str, ...]:  # of the folder, which documents then have as meta
        return ()

    def read(self, documents: Sequence[Document], *, lent: Mapping[str, Any]) -> Array: ...  # one entry a document


@runtime_checkable
class ColumnKind(Pass, Protocol):
    """A value for every document of a prepared folder: a number, or a label."""

    def values(self, found_N: Array, *, ids: Sequence[str]) -> Sequence[float | str]:  # from what `read` returned of all
        return list(found_N.tolist())


@runtime_checkable
class OrderKind(Pass, Protocol):
    """An order of the training documents of a prepared folder."""

    def arrange(self, found_N: Array, *, seed: int) -> Array: ...  # the numbers of all documents, the first to be read first


@runtime_checkable
class Scorer(Protocol):
    """Texts, or their ids, to losses in nats: one array of per-token losses each."""

    def score(self, texts: Sequence[str | Array]) -> list[Array]: ...
    @property
    def tokenizer(self) -> Tokenizer: ...  # that makes ids of texts; what it loses is not scored


@runtime_checkable
class Embedder(Protocol):
    """Texts, or their ids, to states of a model: one array (tokens, D) each."""

    def embed(self, texts: Sequence[str | Array]) -> list[Array]: ...


@runtime_checkable
class Classifier(Protocol):
    """Texts, or their ids, to the probabilities of C classes: an array (texts, C)."""

    def classify(self, texts: Sequence[str | Array]) -> Array: ...


@runtime_checkable
class Classifying(Protocol):
    """A module that an objective has built and that tells classes apart: their logits (B, C) from a model's outputs."""

    def classes(self, outputs: Outputs) -> Array: ...


@runtime_checkable
class Helper(Protocol):
    """What is lent to parts that prepare: a Scorer, Embedder or Classifier, or all of them; its calls are metered."""

    def fingerprint(self) -> str: ...  # of all that decides what it answers
    def spent(self) -> Cost: ...  # by calls since the last time that it was asked, but for seconds


@runtime_checkable
class HelperKind(Protocol):
    """Settings of a helper; `gives` says which of score, embed and classify the opened one can."""

    @property
    def models(self) -> tuple[str, ...]:  # of the recipe's `models` that it reads
        return ()

    @property
    def gives(self) -> tuple[str, ...]: ...
    def opened(self, models: Mapping[str, OpenModel]) -> Helper: ...


@runtime_checkable
class Writer(Protocol):
    """Prompts to continuations: `samples` of each, one prompt after the other."""

    def write(self, prompts: Sequence[str], *, new_tokens: int, seed: int, samples: int = 1) -> list[str]: ...


@runtime_checkable
class WriterKind(Protocol):
    """Settings of a writer, which it is opened with on a model; `stepper` continues the model's rows token by token."""

    def opened(self, *, model: Any, stepper: Any, tokenizer: Tokenizer, seq_len: int) -> Writer: ...


@runtime_checkable
class Frames(Protocol):
    """Rows of frames one after the other, each a start token, patches and an end token; ids under `patch_ids` are patches."""

    @property
    def frame_tokens(self) -> int: ...
    @property
    def patch_ids(self) -> int: ...
    @property
    def cells(self) -> tuple[int, int]: ...  # (states of a cell, cells of a patch)
    @property
    def described(self) -> Mapping[str, str]: ...  # its settings as a table of several sources shows them
    def decode(self, patches_RP: Array) -> Array: ...  # to cells (R, G, G)


@runtime_checkable
class Material(Protocol):
    """What a stage can be asked about, before it is trained: texts that were held out of it, and rows of its stream."""

    @property
    def seed(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...  # None: its rows are not of text
    @property
    def source(self) -> Source | None: ...  # of its rows, if it is one and the views leave tokens in their order
    @property
    def causal(self) -> bool: ...  # whether the model sees no later position
    def corpus(self, over: Any) -> Corpus: ...  # a source of its stream by name, or another as a part; None: the only one
    def documents(self, over: Any, split: str, *, most_bytes: int | None) -> list[Document]: ...  # whole ones, at least one
    def rows(self, split: str, *, count: int) -> list[Row]: ...


@runtime_checkable
class Subject(Material, Protocol):
    """A trained model with the material of its stage, lent to an evaluator. Every call is charged.

    Letters: R rows, n of their positions.
    """

    @property
    def own(self) -> Mapping[str, Any]: ...  # the modules that the stage's objectives have built, by the names of their terms
    def score(self, documents: Sequence[Document], *, stride: int | None = None) -> list[Array]: ...  # nats of every token
    def nats(self, rows: Sequence[Row]) -> Array: ...  # (R, T): of every target, whatever it weighs
    def likeliest(self, tokens_RT: Array, last: int, *, below: int) -> Array: ...  # (R, n): ids that follow the last n
    def outputs(self, rows: Sequence[Row], *, taps: tuple[str, ...] = ()) -> tuple[Batch, Outputs]: ...  # without gradients


@runtime_checkable
class Evaluator(Protocol):
    """Questions to a trained model, and the numbers that its answers come to.

    It is read on the way (`watched`), and once in whole (`read`): at the end of the last stage that it fits, or of the one that
    the recipe names. A study is judged by one of its measures; the first is the one that is meant if none is named.
    """

    @property
    def measures(self) -> Mapping[str, Measure]: ...
    @property
    def needs(self) -> tuple[str, ...]:  # "causal": a model that sees no later position
        return ()

    @property
    def reads_test(self) -> bool:  # whether the whole reading is of a test part, which searches never see
        return False

    def unfit(self, material: Material) -> str: ...  # why a stage cannot be asked this; empty: it can
    def check(self, material: Material, *, whole: bool) -> None:  # raises ConfigError or DataError for what lacks beforehand
        return None

    def warning(self, material: Material) -> str:  # what makes its numbers compare with no others, as far as data tell it
        return ""

    def watched(self, subject: Subject) -> Mapping[str, float]:  # empty: it is not read on the way
        return {}

    def read(self, subject: Subject) -> Reading: ...
    def summary(self, items: Sequence[Item]) -> Mapping[str, float]: ...  # of items alone; raises DataError if there are none
    def tokens(self, material: Material, *, whole: bool) -> float:  # that a reading on the way takes, or a whole one
        return 0.0


@runtime_checkable
class Tracker(Protocol):
    """A sink that follows a run's metrics.jsonl, open for one session."""

    where: str  # where the numbers go and how to look at them, in a line
    held_step: int  # lines up to this run_step are there already, from an earlier session; they are not recorded again

    def record(self, line: Mapping[str, Any]) -> None: ...  # a line of metrics.jsonl; its run_step is the x axis
    def close(self) -> None: ...


@runtime_checkable
class TrackerKind(Protocol):
    """Settings of a service that shows numbers. A run that goes on opens it with the step of its checkpoint as from_step."""

    def check(self) -> None: ...  # raises DataError if its package is missing
    def open(self, *, folder: Any, name: str, facts: Mapping[str, Any], from_step: int) -> Tracker: ...  # folder: RUN, a Path


Log = Callable[[str], None]
