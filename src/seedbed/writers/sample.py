"""Text sampled from a model, token by token, many samples at a time.

A sample is a function of the seed, the prompt's text and the sample's number alone: a stream of its own gives one uniform draw
for each token. So batch size, threads, order and company of prompts change no text, except where a draw falls on the border
between two tokens so closely that the rounding of a product of another shape decides (tested in float64).
Letters: P prompts, S samples of each, N rows (N = P * S), T tokens, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from seedbed.core.bounds import LONGEST_ROW, MOST_ROWS, Range, check_range, check_ranges, within
from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError, RunFailedError
from seedbed.core.protocols import Neutral, Tokenizer, WriterKind

NEW_TOKENS, SAMPLES = Range(0, 10**7), Range(1, 10**6)


@dataclass(frozen=True, kw_only=True)
class Sample(WriterKind):
    """How texts are sampled (see `picked`).

    A text ends before the boundary, before the first `stop` text, or after `new_tokens`. What a row that grows beyond seq_len
    is shown is for the model's stepper to say (the default one goes on from the last seq_len // 2 ids).
    """

    neutral: ClassVar[Neutral] = "it reads a model and changes nothing"
    temperature: float = within(0, 1000, default=0.8)  # 0 takes the likeliest token
    top_k: int | None = within(1, 2**31, default=None)  # None: all
    top_p: float | None = within(0, 1, default=None, above=True)  # None: 1
    stop: Sequence[str] = ()
    end_at_boundary: bool = True  # False: the boundary is never picked, so that only a stop text ends a text early
    batch_size: int = within(1, MOST_ROWS, default=128)  # rows that a thread continues together

    def __post_init__(self) -> None:
        check_ranges(self)
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError(f"stop must be a list of texts, none of them empty; got {self.stop!r}")

    def opened(self, *, model: Any, stepper: Any, tokenizer: Tokenizer, seq_len: int) -> "Sampler":
        """Return what samples from a model; `stepper` is its kind's: a function of the model (`ModelKind.stepper`)."""
        settings = {f.name: getattr(self, f.name) for f in fields(Sample)}
        return Sampler(**settings, model=model, stepper=stepper, tokenizer=tokenizer, seq_len=seq_len)


@dataclass(frozen=True, kw_only=True)
class Sampler(Sample):
    """A model with its tokenizer, and how texts are sampled from it."""

    model: Any
    stepper: Any
    tokenizer: Tokenizer
    seq_len: int = within(1, LONGEST_ROW)

    def write(self, prompts: Sequence[str], *, new_tokens: int, seed: int, samples: int = 1) -> list[str]:
        """Return `samples` continuations (without the prompt) of each prompt, one prompt after the other.

        A prompt given again gets further samples: ["a", "a"] is as ["a"] with twice as many.
        Raises ConfigError if the model cannot continue a text, RunFailedError if its logits are not finite.
        """
        check_range("new_tokens", new_tokens, NEW_TOKENS)
        check_range("samples", samples, SAMPLES)
        if not prompts or not new_tokens:
            return [""] * (len(prompts) * samples)
        self.model.eval()
        with torch.inference_mode():
            stepper = self.stepper(self.model)
        texts: dict[str, list[str]] = {prompt: [] for prompt in prompts}
        waves = list(self._waves({prompt: times * samples for prompt, times in Counter(prompts).items()}))

        def continued(wave: _Wave) -> list[str]:
            # a thread begins without the caller's autocast; without it everywhere, threads change no text
            with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
                return self._continued(wave, stepper=stepper, new_tokens=new_tokens, seed=seed)

        for wave, found in zip(waves, _in_threads(continued, waves, device=self._device), strict=True):
            for row, text in enumerate(found):
                texts[wave.prompts[row // len(wave.numbers)]].append(text)
        in_turn = {prompt: iter(found) for prompt, found in texts.items()}
        return [next(in_turn[prompt]) for prompt in prompts for _ in range(samples)]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _waves(self, asked: dict[str, int]) -> Iterator["_Wave"]:
        """Yield rows that go together: prompts of as many samples each, of about the same length."""
        ids = dict(zip(asked, self.tokenizer.encode_batch(list(asked)), strict=True))
        for times in sorted(set(asked.values())):
            alike = sorted((prompt for prompt in asked if asked[prompt] == times), key=lambda prompt: len(ids[prompt]))
            size = max(1, self.batch_size // times)
            for some in (alike[i : i + size] for i in range(0, len(alike), size)):
                for first in range(0, times, self.batch_size):
                    numbers = range(first, min(first + self.batch_size, times))
                    yield _Wave(prompts=some, ids=[ids[prompt] for prompt in some], numbers=numbers)

    def _continued(self, wave: "_Wave", *, stepper: Any, new_tokens: int, seed: int) -> list[str]:
        """Return the texts of a wave, one prompt after the other."""
        prompts, samples = len(wave.prompts), len(wave.numbers)
        begun = [torch.tensor([self.tokenizer.boundary_id, *ids.tolist()], device=self._device) for ids in wave.ids]
        streams = [stream(seed, "sample", prompt, number) for prompt in wave.prompts for number in wave.numbers]
        draws_NT = torch.from_numpy(np.stack([draws.random(new_tokens) for draws in streams]))
        written_NT, lengths_N = torch.zeros(draws_NT.shape, dtype=torch.long), torch.full((len(draws_NT),), new_tokens)
        rows_PS = torch.arange(len(draws_NT)).view(prompts, samples)  # which row stands where in the grid
        going_PS = torch.ones_like(rows_PS, dtype=torch.bool)
        grid = stepper.begin(begun, samples=samples, seq_len=self.seq_len)
        logits_PSV = grid.logits_PV[:, None].expand(-1, samples, -1)
        for t in range(new_tokens):
            ids_PS = self._picked(logits_PSV, draws_NT[rows_PS, t])
            written_NT[rows_PS, t] = ids_PS
            ended_PS = going_PS & (ids_PS == self.tokenizer.boundary_id)
            lengths_N[rows_PS[ended_PS]] = t
            going_PS &= ~ended_PS
            if self.stop:
                for row in rows_PS[going_PS].tolist():
                    if self._stopped(written_NT[row, : t + 1].numpy()):
                        lengths_N[row] = t + 1
                going_PS &= lengths_N[rows_PS] > t + 1
            if not going_PS.any() or t + 1 == new_tokens:
                break
            if (kept_PS := _fewer(going_PS)) is not None:
                grid.keep(kept_PS.to(self._device))
                ids_PS, rows_PS, going_PS = (x.flatten()[kept_PS] for x in (ids_PS, rows_PS, going_PS))
            logits_PSV = grid.advance(ids_PS.to(self._device))
        return [self._text(ids_T[:length]) for ids_T, length in zip(written_NT.numpy(), lengths_N.tolist(), strict=True)]

    def _picked(self, logits_PSV: Float[Tensor, "P S V"], draws_PS: Float64[Tensor, "P S"]) -> Int[Tensor, "P S"]:
        known_PSV = logits_PSV[..., : self.tokenizer.vocab_size]  # a model may have rows for ids that no text has
        known_NV = known_PSV.flatten(0, 1).to("cpu" if known_PSV.device.type == "mps" else known_PSV.device, torch.float64)
        if not self.end_at_boundary:
            known_NV = known_NV.index_fill(1, torch.tensor(self.tokenizer.boundary_id, device=known_NV.device), float("-inf"))
        draws_N = draws_PS.flatten().to(known_NV.device)
        ids_N = picked(known_NV, draws_N, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        return ids_N.view(draws_PS.shape).cpu()

    def _stopped(self, ids_T: Int[np.ndarray, "_"]) -> bool:
        """Whether the text holds a stop text, given that it held none a token ago."""
        longest = max(len(text.encode()) for text in self.stop)
        ending = self.tokenizer.decode(ids_T[-longest - 4 :])  # saves time; an end missed here is found by _text
        return _cut(ending, self.stop) is not None and _cut(self.tokenizer.decode(ids_T), self.stop) is not None

    def _text(self, ids_T: Int[np.ndarray, "_"]) -> str:
        """Return the text up to the first stop text: of those that its first token to complete one has completed."""
        text = self.tokenizer.decode(ids_T)
        if _cut(text, self.stop) is None:
            return text
        beginnings = (_cut(self.tokenizer.decode(ids_T[:length]), self.stop) for length in range(1, len(ids_T) + 1))
        return next(cut for cut in beginnings if cut is not None)


@dataclass(frozen=True, kw_only=True)
class _Wave:
    """Rows that are continued together: each of the prompts with samples of these numbers."""

    prompts: list[str]
    ids: list[Int[np.ndarray, "_"]]
    numbers: range


def _in_threads(work: Callable[[_Wave], list[str]], waves: Sequence[_Wave], *, device: torch.device) -> list[list[str]]:
    """Return the work on every wave; on a processor, torch's threads are shared out among waves, which share no state."""
    threads = torch.get_num_threads()
    workers = min(threads, len(waves)) if device.type == "cpu" else 1
    if workers == 1:
        return [work(wave) for wave in waves]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(work, waves))
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself is also what new threads begin with


def _fewer(going_PS: Tensor) -> Int[Tensor, "P S"] | None:
    """Return a grid with the rows that still go, if one of half the size will do; it may hold some that do not."""
    samples = going_PS.shape[1]
    lines, widest = going_PS.any(1).nonzero()[:, 0], int(going_PS.sum(1).max())
    if 2 * len(lines) * widest > going_PS.numel():
        return None
    going_first_PS = going_PS[lines].sort(dim=1, descending=True, stable=True).indices
    return lines[:, None] * samples + going_first_PS[:, :widest]


def picked(
    logits_NV: Float64[Tensor, "N V"],
    draws_N: Float64[Tensor, "N"],
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Tensor, "N"]:
    """Return one id a row, as a uniform draw (0 to 1, 1 excluded) says: with the ids in order, the one it falls on.

    Logits are divided by the temperature (0 takes the likeliest id, the lowest of equals). The `top_k` likeliest ids stay, and
    all equals of the last; of these, the fewest likeliest (the lowest of equals) whose probabilities come to `top_p`.
    Raises RunFailedError if logits are not finite (minus infinity is allowed).
    """
    likeliest_N1 = logits_NV.amax(-1, keepdim=True)
    if not likeliest_N1.isfinite().all():
        raise RunFailedError(
            "the model's logits are not finite, so no token can be picked; sample from a checkpoint before the loss went astray"
        )
    if temperature == 0:
        return logits_NV.argmax(-1)
    weights_NV = logits_NV.sub(likeliest_N1).div_(temperature).exp_()
    if top_k is not None and top_k < logits_NV.shape[1]:
        weights_NV *= logits_NV >= logits_NV.topk(top_k).values[:, -1:]
    if top_p is not None and top_p < 1:
        falling_NV, order_NV = weights_NV.sort(descending=True, stable=True)
        reached_NV = falling_NV.cumsum(-1)
        stays_NV = pad(reached_NV[:, :-1], (1, 0)) < top_p * reached_NV[:, -1:]
        weights_NV *= torch.empty_like(stays_NV).scatter_(1, order_NV, stays_NV)
    reached_NV = weights_NV.cumsum(-1)
    aims_N1 = draws_N[:, None] * reached_NV[:, -1:]  # below the total, also when rounded
    return torch.searchsorted(reached_NV, aims_N1, right=True)[:, 0]


def _cut(text: str, stops: Sequence[str]) -> str | None:
    """Return the text before the first of these; None if it holds none."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None
