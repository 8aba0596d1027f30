"""Six floors that need no rule, beside which a model's loss on rows of frames says whether it infers rules in context.

A floor is the loss of a predictor that knows simple statistics only. Each has free constants, and they are chosen in hindsight
on the very tokens that are scored, so a floor is as hard to beat as its kind can be:
- global unigram: token frequencies of training rows;
- in-context unigram: counts of the row so far, smoothed by the global unigram;
- previous frame: the token at the same place one frame before, mixed with the in-context unigram;
- in-context place statistics: counts, in the row so far, of what followed the token that stood at the same place one frame
  before, smoothed by the in-context unigram;
- an earlier frame: as "previous frame", but k frames before, with the best k: on a small torus what moves comes back;
- in-context cell statistics: as "place statistics", but of the cells inside a patch, each from the same cell one frame before:
  ten thousand patches are too many to count in a row, ten states are not.
Only patch tokens after the first frame are scored; start and end tokens are left out.
Letters: R rows, T tokens of a row, S and U the same of training rows, V vocabulary, F frames after the first.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_STRENGTHS = np.array([0.1, 0.3, 1.0, 3.0, 10.0, 30.0])  # pseudo-counts of the smoothing
_SHARES = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])  # of the previous frame


@dataclass(frozen=True, kw_only=True)
class Floors:
    """In nats per scored token, their constants best over all frames together; `by_frame` from frame 1 on."""

    whole: dict[str, float]
    by_frame: dict[str, list[float]]

    @property
    def best(self) -> float:
        return min(self.whole.values())


def floors_of(
    tokens_RT: Int[np.ndarray, "R T"],
    *,
    training_SU: Int[np.ndarray, "S U"],
    frame_tokens: int,
    cells: tuple[int, int] | None = None,
) -> Floors:
    """Return the floors of rows; `training_SU` gives the global unigram.

    `cells` is (states, cells of a patch): without it, or with patches of one cell, the last floor is left out.
    """
    patches = training_SU[:, _inside(training_SU.shape[1], frame_tokens)]
    vocabulary = int(max(tokens_RT.max(), training_SU.max())) + 1
    counts = np.bincount(patches.ravel(), minlength=vocabulary) + 0.5
    by_frame = floors_by_frame(tokens_RT, unigram=counts / counts.sum(), frame_tokens=frame_tokens, cells=cells)
    asked_F = asked_by_frame(tokens_RT.shape[1], frame_tokens)
    return Floors(
        whole={name: float(np.average(nats_F, weights=asked_F)) for name, nats_F in by_frame.items()},
        by_frame={name: nats_F.tolist() for name, nats_F in by_frame.items()},
    )


def nats_by_frame(nll_RT: Float[np.ndarray, "R T"], *, frame_tokens: int) -> list[float]:
    """Return a model's mean loss of the scored tokens, by frame from frame 1 on; `nll_RT` are losses of tokens 1.. of a row."""
    length = nll_RT.shape[1] + 1
    frame_T, scored_T = np.arange(length)[1:] // frame_tokens, scored((1, length), frame_tokens)[0, 1:]
    return [float(nll_RT[:, (frame_T == f + 1) & scored_T].mean()) for f in range(len(asked_by_frame(length, frame_tokens)))]


def floors(
    tokens_RT: Int[np.ndarray, "R T"],
    *,
    unigram: Float[np.ndarray, "V"],
    frame_tokens: int,
    cells: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Return the floors in nats per scored token; `cells` as in `floors_of`."""
    asked_F = asked_by_frame(tokens_RT.shape[1], frame_tokens)
    by_frame = floors_by_frame(tokens_RT, unigram=unigram, frame_tokens=frame_tokens, cells=cells)
    return {name: float(np.average(nats_F, weights=asked_F)) for name, nats_F in by_frame.items()}


def floors_by_frame(
    tokens_RT: Int[np.ndarray, "R T"],
    *,
    unigram: Float[np.ndarray, "V"],
    frame_tokens: int,
    cells: tuple[int, int] | None = None,
) -> dict[str, Float[np.ndarray, "F"]]:
    """Return the floors frame by frame, in nats per scored token; their constants are best over all frames together."""
    scored_T = scored((1, tokens_RT.shape[1]), frame_tokens)[0]
    inside_T = _inside(tokens_RT.shape[1], frame_tokens)
    asked_F = asked_by_frame(tokens_RT.shape[1], frame_tokens)
    count = len(asked_F)
    shares = _SHARES[:, None]
    sums = {
        "global unigram": np.zeros((count, 1)),
        "in-context unigram": np.zeros((count, len(_STRENGTHS))),
        "previous frame": np.zeros((count, len(_SHARES), len(_STRENGTHS))),
        "in-context place statistics": np.zeros((count, len(_STRENGTHS), len(_STRENGTHS))),
        "an earlier frame": np.zeros((count, count, len(_SHARES), len(_STRENGTHS))),
    }
    for row_T in tokens_RT:
        seen: dict[int, int] = defaultdict(int)
        after: dict[tuple[int, int], int] = defaultdict(int)
        contexts: dict[int, int] = defaultdict(int)
        total = 0
        for t, token in enumerate(row_T.tolist()):
            if not inside_T[t]:
                continue
            before = int(row_T[t - frame_tokens]) if t >= frame_tokens else -1
            if scored_T[t]:
                f = t // frame_tokens - 1
                base = unigram[token]
                adaptive = (seen[token] + _STRENGTHS * base) / (total + _STRENGTHS)
                sums["global unigram"][f] -= math.log(base)
                sums["in-context unigram"][f] -= np.log(adaptive)
                hit, miss = -np.log(shares + (1 - shares) * adaptive), -np.log((1 - shares) * adaptive)
                sums["previous frame"][f] += hit if before == token else miss
                placed = after[before, token] + _STRENGTHS[:, None] * adaptive
                sums["in-context place statistics"][f] -= np.log(placed / (contexts[before] + _STRENGTHS[:, None]))
                earlier_K = row_T[t - frame_tokens * np.arange(1, f + 2)] == token  # k = 1, 2, .. as far as the row goes
                earlier = sums["an earlier frame"][f]
                earlier[: f + 1] += np.where(earlier_K[:, None, None], hit, miss)
                earlier[f + 1 :] -= np.log(adaptive)  # nothing stood there yet
            seen[token] += 1
            total += 1
            if before >= 0:
                after[before, token] += 1
                contexts[before] += 1
    if cells is not None and cells[1] > 1:
        sums["in-context cell statistics"] = _cell_sums(tokens_RT, frame_tokens=frame_tokens, states=cells[0], each=cells[1])
    return {name: _at_best_constants(value) / (len(tokens_RT) * asked_F) for name, value in sums.items()}


def _cell_sums(tokens_RT: Int[np.ndarray, "R T"], *, frame_tokens: int, states: int, each: int) -> Float[np.ndarray, "F S S"]:
    """Nats by frame and strength of a predictor that counts which state followed which in a cell; patches are sums of cells."""
    scored_T = scored((1, tokens_RT.shape[1]), frame_tokens)[0]
    inside_T = _inside(tokens_RT.shape[1], frame_tokens)
    sums = np.zeros((len(asked_by_frame(tokens_RT.shape[1], frame_tokens)), len(_STRENGTHS), len(_STRENGTHS)))
    for row_T in tokens_RT:
        digits_TC = row_T[:, None] // states ** np.arange(each) % states
        seen_N, after_NN = np.zeros(states), np.zeros((states, states))
        for t in np.flatnonzero(inside_T):
            now_C = digits_TC[t]
            if scored_T[t]:
                before_C = digits_TC[t - frame_tokens]
                base_SC = (seen_N[now_C] + _STRENGTHS[:, None] / states) / (seen_N.sum() + _STRENGTHS[:, None])
                placed = after_NN[before_C, now_C] + _STRENGTHS[:, None, None] * base_SC
                found = placed / (after_NN[before_C].sum(1) + _STRENGTHS[:, None, None])
                sums[t // frame_tokens - 1] -= np.log(found).sum(-1)
            np.add.at(seen_N, now_C, 1)
            if t >= frame_tokens:
                np.add.at(after_NN, (digits_TC[t - frame_tokens], now_C), 1)
    return sums


def _at_best_constants(sums: Float[np.ndarray, "F ..."]) -> Float[np.ndarray, "F"]:
    by_constants = sums.reshape(len(sums), -1)
    return by_constants[:, by_constants.sum(0).argmin()]


def asked_by_frame(length: int, frame_tokens: int) -> Int[np.ndarray, "F"]:
    """How many tokens of a row are scored in each frame after the first; frames without any are left out."""
    scored_T = scored((1, length), frame_tokens)[0]
    counts = np.bincount(np.arange(length) // frame_tokens, weights=scored_T).astype(np.int64)[1:]
    return counts[counts > 0]


def _inside(length: int, frame_tokens: int) -> Bool[np.ndarray, "T"]:
    place_T = np.arange(length) % frame_tokens
    return (place_T != 0) & (place_T != frame_tokens - 1)


def scored(shape: tuple[int, ...], frame_tokens: int) -> Bool[np.ndarray, "R T"]:
    """Return which tokens are: patches after the first frame."""
    return np.broadcast_to(_inside(shape[1], frame_tokens) & (np.arange(shape[1]) >= frame_tokens), shape)
