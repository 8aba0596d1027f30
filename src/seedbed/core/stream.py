"""A stream: rows by position. Its cursor is its own, so no other stage, stream or batch size can move a row of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from seedbed.core.draws import key as derive
from seedbed.core.protocols import Mixture, Source, View
from seedbed.core.records import Draw, Key, Measurement, Progress, Row, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Sources, the mixture that draws from them and the views that a drawn row passes, in order.

    `vocab_size` counts the sources' ids and behind them the spare ones of the views, view by view.
    The row at a position is a function of (seed, stream name, split, position) alone, and of what was recorded before it, if
    the mixture asks for feedback or its weights were changed: `history`, on disk before a row behind it is drawn.
    """

    name: str
    sources: Mapping[str, Source]
    mixture: Mixture
    views: Sequence[View]
    seq_len: int
    batch_size: int
    vocab_size: int
    boundary_id: int | None = None
    tokenizer: Any = None  # of text, for views that write some
    history: list[Measurement] = field(default_factory=list)

    @cached_property
    def vocabularies(self) -> list[Vocabulary]:
        """What each view gets to know of the ids."""
        own = self.vocab_size - sum(view.spare for view in self.views)
        found, first = [], own
        for view in self.views:
            spare = tuple(range(first, first := first + view.spare))
            found.append(Vocabulary(size=own, boundary_id=self.boundary_id, spare=spare, tokenizer=self.tokenizer))
        return found

    def due(self, position: int) -> int | None:
        """Return the first decision point below `position` (rows before it are decided) not recorded yet."""
        if self.mixture.wants is None:
            return None
        name, every = self.mixture.wants
        last = next((m.position for m in reversed(self.history) if m.name == name), 0)  # they are recorded in order
        return last + every if last + every < position else None

    def draws(self, start: int, *, count: int, seed: int, split: str = "train") -> list[Draw]:
        sizes = {name: source.size(split) for name, source in self.sources.items()}
        key = derive(seed, self.name, "mixture", split)
        return self.mixture.draws(start, count=count, sizes=sizes, seed=key, history=self.history)

    def rows(self, start: int, *, count: int, seed: int, split: str = "train") -> list[Row]:
        """Return `count` rows from position `start` on, each of `seq_len` shown tokens."""
        return self._made(start, self.draws(start, count=count, seed=seed, split=split), seed=seed, split=split)

    def rows_of(self, source: str, *, count: int, seed: int, split: str) -> list[Row]:
        """Return the first rows of one source, whatever the mixture: up to `count`, to be measured."""
        size = self.sources[source].size(split)
        draws = [Draw(source, i, 0) for i in range(count if size is None else min(count, size))]
        return self._made(0, draws, seed=seed, split=split)

    def _made(self, start: int, draws: Sequence[Draw], *, seed: int, split: str) -> list[Row]:
        rows: list[Row | None] = [None] * len(draws)
        history = tuple(self.history)
        for name, source in self.sources.items():
            mine = [i for i, draw in enumerate(draws) if draw.source == name]
            made = source.rows([draws[i].index for i in mine], seed=derive(seed, self.name, name), split=split)
            for i, row in zip(mine, made, strict=True):
                row_key = Key(seed=seed, stream=self.name, position=start + i, draw=draws[i])
                progress = Progress(step=(start + i) // self.batch_size, steps=0, history=history)
                for view, vocabulary in zip(self.views, self.vocabularies, strict=True):
                    row = view(row, key=row_key, vocabulary=vocabulary, progress=progress)
                rows[i] = row
        return [row for row in rows if row is not None]
