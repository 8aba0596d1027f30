"""A trained model as a scorer, embedder and classifier of texts.

A text is read by itself, after a boundary token, in windows of seq_len. Scored: every token once, in nats. With `stride` =
seq_len the windows are disjoint (pessimistic: a window's first tokens see little); with a smaller stride each window but the
first scores its last `stride` tokens only, so every scored token sees at least seq_len - stride before it. Embedded: the state
at every token, in disjoint windows. Classified: what a module that an objective built (with a method `classes(outputs)`, which
returns logits) says of each disjoint window, as probabilities; of several windows their mean by length.
Letters: B windows, T positions, D width, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from seedbed.core.bounds import LONGEST_ROW, MOST_ROWS, check_ranges, within
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.protocols import Classifying, HelperKind, Neutral, Tokenizer
from seedbed.core.records import Batch, Cost, OpenModel, TokenTargets, blank


@dataclass(frozen=True, kw_only=True)
class OwnRun(HelperKind):
    """A model of the recipe's `models`, and how it reads."""

    neutral: ClassVar[Neutral] = "it reads a model and changes nothing"
    gives: ClassVar[tuple[str, ...]] = ("score", "embed", "classify")
    model: str = ""  # its name under `models`
    seq_len: int | None = within(1, LONGEST_ROW, default=None)  # of a window; None: as it was trained
    stride: int | None = within(1, LONGEST_ROW, default=None)  # None: disjoint windows
    batch_size: int = within(1, MOST_ROWS, default=16)  # windows read together
    tap: str = ""  # the inner states that embeddings are, such as block.3; empty: what the head reads
    term: str = ""  # the objective whose module classifies; empty: the only one that has one

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def models(self) -> tuple[str, ...]:
        if not self.model:
            raise ConfigError("own_run needs `model`: the name of one under the recipe's `models`")
        return (self.model,)

    def opened(self, models: Mapping[str, OpenModel]) -> "ModelReader":
        given = models[self.model]
        seq_len = self.seq_len or given.seq_len
        if seq_len is None:
            raise ConfigError(f"own_run needs `seq_len` for the model {self.model}: it says no length of its rows")
        facts = vars(given) | {"seq_len": seq_len, "stride": self.stride, "batch_size": self.batch_size}
        return ModelReader(**facts, how=self)


@dataclass(frozen=True, kw_only=True)
class ModelReader:
    """A model with its tokenizer; `stride` None means disjoint windows. `fingerprint` counts its weights and how it reads."""

    model: Any
    tokenizer: Tokenizer
    seq_len: int = within(1, LONGEST_ROW)
    stride: int | None = within(1, LONGEST_ROW, default=None)
    batch_size: int = within(1, MOST_ROWS, default=16)
    own: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = True
    how: OwnRun = OwnRun()
    fingerprint_of_weights: str = ""
    _spent: list[Cost] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.stride is not None and self.stride > self.seq_len:
            raise ConfigError(
                f"stride must lie in 1..{self.seq_len} (a row's length), got {self.stride}: a window further on would leave "
                "tokens out"
            )

    def fingerprint(self) -> str:
        how = [self.seq_len, self.stride, self.how.tap, self.how.term]
        return f"{self.fingerprint_of_weights}/{self.tokenizer.fingerprint()}/{'/'.join(map(str, how))}"

    def spent(self) -> Cost:
        found = sum(self._spent, Cost())
        self._spent.clear()
        return found

    def score(self, texts: Sequence[str | np.ndarray]) -> list[Float[np.ndarray, "tokens"]]:
        """Return the loss of every token of every text (or of its ids), in nats (fp32, evaluation mode).

        Raises ConfigError for a model that sees later positions, among which the answers stand.
        """
        if not self.causal:
            raise ConfigError(f"the model {self.how.model} sees later positions, so it cannot score a text; lend a causal one")
        ids = self._ids(texts)
        losses = [np.full(len(x), np.nan) for x in ids]
        stride = self.stride or self.seq_len
        windows = [
            (number, max(0, end - self.seq_len), start, end)
            for number, x in enumerate(ids)
            for start, end in _spans(len(x), self.seq_len, stride)
        ]
        self.model.eval()
        for first in range(0, len(windows), self.batch_size):
            some = windows[first : first + self.batch_size]
            nll_BT = self._losses([ids[number] for number, *_ in some], some)
            for row_T, (number, begin, start, end) in zip(nll_BT, some, strict=True):
                losses[number][start:end] = row_T[start - begin : end - begin]
        assert all(not np.isnan(x).any() for x in losses), "every token is scored exactly once"
        return losses

    def embed(self, texts: Sequence[str | np.ndarray]) -> list[Float[np.ndarray, "tokens D"]]:
        """Return the state at every token of every text (or of its ids), float32."""
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for numbers, outputs in self._windows(texts):
            states_BTD = outputs.taps[self.how.tap] if self.how.tap else outputs.hidden_BTD
            for number, states_TD in zip(numbers, states_BTD.float().cpu().numpy(), strict=True):
                found[number].append(states_TD[0 if found[number] else 1 :])  # the boundary is no token of the text
        return [np.concatenate(states) for states in found]

    def classify(self, texts: Sequence[str | np.ndarray]) -> Float[np.ndarray, "texts C"]:
        """Return the probability of every class for every text. Raises ConfigError if the model has no such module."""
        found: list[list[tuple[int, np.ndarray]]] = [[] for _ in texts]
        for numbers, outputs in self._windows(texts):
            probabilities_BC = self._classifier.classes(outputs).float().softmax(-1).cpu().numpy()
            for number, one_C in zip(numbers, probabilities_BC, strict=True):
                found[number].append((outputs.hidden_BTD.shape[1], one_C))
        weighted = [[length * one_C for length, one_C in some] for some in found]
        return np.stack([np.sum(w, axis=0) / sum(n for n, _ in f) for w, f in zip(weighted, found, strict=True)])

    @cached_property
    def _classifier(self) -> Any:
        able = {name: module for name, module in self.own.items() if isinstance(module, Classifying)}
        name = self.how.term or (next(iter(able)) if len(able) == 1 else "")
        if name not in able:
            raise ConfigError(
                f"the model {self.how.model} has no module {name!r} that classifies; {nearest(name, able)}: it is one that an "
                "objective of its last stage has built, with a method classes(outputs)"
            )
        return able[name]

    def _ids(self, texts: Sequence[str | np.ndarray]) -> list[np.ndarray]:
        return [self.tokenizer.encode(text) if isinstance(text, str) else text for text in texts]

    def _windows(self, texts: Sequence[str | np.ndarray]) -> Iterator[tuple[list[int], Any]]:
        """Give, of disjoint windows of one length at a time, the numbers of their texts and the model's outputs on them."""
        boundary = np.array([self.tokenizer.boundary_id], dtype=np.int64)
        shown = [np.concatenate([boundary, x]) for x in self._ids(texts)]
        pieces = [(n, x[i : i + self.seq_len]) for n, x in enumerate(shown) for i in range(0, len(x), self.seq_len)]
        pieces.sort(key=lambda piece: -len(piece[1]))  # stable: the windows of a text stay in turn
        self.model.eval()
        taps = (self.how.tap,) if self.how.tap else ()
        while pieces:
            length = len(pieces[0][1])
            some = [p for p in pieces[: self.batch_size] if len(p[1]) == length]
            pieces = pieces[len(some) :]
            yield [n for n, _ in some], self._outputs(np.stack([x for _, x in some]), taps=taps)

    @torch.no_grad()
    def _outputs(self, shown_BT: np.ndarray, *, taps: tuple[str, ...] = ()) -> Any:
        device = next(self.model.parameters()).device
        self._spent.append(self.model.cost(blank(rows=len(shown_BT), seq_len=shown_BT.shape[1])))
        return self.model(Batch(tokens_BT=torch.from_numpy(shown_BT).to(device)), taps=taps)

    def _losses(self, ids: list[np.ndarray], windows: list[tuple[int, int, int, int]]) -> Float[np.ndarray, "B T"]:
        shape = (len(windows), max(end - begin for _, begin, _, end in windows))
        shown_BT = np.full(shape, self.tokenizer.boundary_id, dtype=np.int64)
        asked_BT, weights_BT = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        for row, (x, (_, begin, start, end)) in enumerate(zip(ids, windows, strict=True)):
            with_boundary = np.concatenate([[self.tokenizer.boundary_id], x])
            shown_BT[row, : end - begin] = with_boundary[begin:end]
            asked_BT[row, : end - begin] = x[begin:end]
            weights_BT[row, start - begin : end - begin] = 1
        outputs = self._outputs(shown_BT)
        device = outputs.hidden_BTD.device
        targets = TokenTargets(ids_BT=torch.from_numpy(asked_BT).to(device), weights_BT=torch.from_numpy(weights_BT).to(device))
        return outputs.token_loss(targets).nll_BT.cpu().numpy()


def _spans(length: int, seq_len: int, stride: int) -> list[tuple[int, int]]:
    """Return the half-open spans that each window scores; together they cover 0..length once."""
    spans, done = [], 0
    while done < length:
        end = min(length, done + (seq_len if done == 0 else stride))
        spans.append((done, end))
        done = end
    return spans
