"""What an evaluator is lent: texts and rows that a stage can be asked about, and the trained model. Each call is charged.

Letters: B rows of a batch, R rows, T positions, n the last of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seedbed import sources
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.protocols import Corpus, Prepared, Source, Tokenizer
from seedbed.core.records import Array, Batch, Cost, Document, Row, blank
from seedbed.experiments.streams import BuiltStream

if TYPE_CHECKING:
    from seedbed.engine.precision import Machine


@dataclass(frozen=True, kw_only=True)
class StageMaterial:
    """What one stage can be asked about; corpora and documents of validation parts are read once for a stream."""

    seed: int
    built: BuiltStream
    causal: bool

    @property
    def seq_len(self) -> int:
        return self.built.stream.seq_len

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.built.tokenizer

    @property
    def source(self) -> Source | None:
        stream = self.built.stream
        in_order = len(stream.sources) == 1 and all(view.keeps_order for view in stream.views)
        return self.built.source if in_order else None

    def corpus(self, over: Any) -> Corpus:
        """Return a held-out corpus. Raises ConfigError if the stream has no such source or `over` is no corpus."""
        corpora, name = self.built.corpora, self.built.stream.name
        if over is None and len(corpora) == 1:
            return next(iter(corpora.values()))
        if over is None:
            raise ConfigError(
                f"the stream {name} has several sources; say in `over` which is read ({', '.join(corpora)}), an evaluation each"
            )
        if isinstance(over, str):
            if over not in corpora:
                raise ConfigError(f"over: the stream {name} has no source {over!r} of text; {nearest(over, corpora)}")
            return corpora[over]
        key = json.dumps(over, sort_keys=True)
        if key not in self.built.opened:
            self.built.opened[key] = self._open(over)
        found: Corpus = self.built.opened[key]
        return found

    def _open(self, over: Any) -> Corpus:
        source = sources.parts.build(over, path="over")
        if not isinstance(source, Corpus | Prepared):
            raise ConfigError("over: held-out texts are of kind text or shards; this source gives rows")
        if self.tokenizer is None:
            raise ConfigError(f"over: the stream {self.built.stream.name} has no tokenizer to read a text with")
        opened: Corpus = source.store(self.tokenizer) if isinstance(source, Prepared) else source
        return opened

    def documents(self, over: Any, split: str, *, most_bytes: int | None) -> list[Document]:
        """Return the first documents of a corpus, as `first_documents` does."""
        if split != "valid":
            return first_documents(self.corpus(over).documents(split), most_bytes)
        key = f"{json.dumps(over, sort_keys=True)} {most_bytes}"
        if key not in self.built.opened:
            self.built.opened[key] = first_documents(self.corpus(over).documents(split), most_bytes)
        found: list[Document] = self.built.opened[key]
        return found

    def rows(self, split: str, *, count: int) -> list[Row]:
        return self.built.stream.rows(0, count=count, seed=self.seed, split=split)


@dataclass(frozen=True, kw_only=True)
class RunSubject(StageMaterial):
    """A model of ours; `charge` is told what each call cost, but for its seconds."""

    model: Any
    own: Mapping[str, Any]  # modules of the stage's objectives
    machine: "Machine"
    charge: Callable[[Cost], None]

    def score(self, documents: Sequence[Document], *, stride: int | None = None) -> list[Array]:
        from seedbed.scorers.own_run import ModelReader

        assert self.tokenizer is not None
        scorer = ModelReader(model=self.model, tokenizer=self.tokenizer, seq_len=self.seq_len, stride=stride)
        losses = scorer.score([d.data.get("ids", d.text) for d in documents])
        self._charge(sum(map(len, losses)) / self.seq_len)
        return losses

    def nats(self, rows: Sequence[Row]) -> Array:
        from seedbed.engine.held_out import row_nats

        found = row_nats(self.model, list(rows), machine=self.machine)
        self._charge(len(rows))
        return found

    def likeliest(self, tokens_RT: Array, last: int, *, below: int) -> Array:
        from seedbed.engine.held_out import likeliest

        found = likeliest(self.model, machine=self.machine, below=below)(tokens_RT, last)
        self._charge(tokens_RT.size / self.seq_len)
        return found

    def outputs(self, rows: Sequence[Row], *, taps: tuple[str, ...] = ()) -> tuple[Batch, Any]:
        """Return rows as one batch, and what the model makes of it, without gradients."""
        from seedbed.engine.held_out import outputs_on

        batch, found = outputs_on(self.model, list(rows), machine=self.machine, taps=taps)
        self.charge(self.model.cost(batch))
        return batch, found

    def _charge(self, rows: float) -> None:
        self.charge(self.model.cost(blank(rows=1, seq_len=self.seq_len)).times(rows))


def first_documents(documents: Any, most_bytes: int | None) -> list[Document]:
    """Return whole documents from the first on, until the next would pass the limit; at least one."""
    kept: list[Document] = []
    size = 0
    for document in documents:
        size += document.size_bytes
        if kept and most_bytes is not None and size > most_bytes:
            break
        kept.append(document)
    return kept
