"""One rule of the automaton: a random two-layer network, drawn and applied in integers only.

The published network is conv3x3 (n+2 -> 4), conv1x1 (4 -> 16), ReLU, conv1x1 (16 -> n) on a one-hot grid, LeCun-normal
weights (truncated at two sigma), zero biases. The first two layers are linear with nothing in between, so they are composed
exactly into one table: each of the nine neighbors adds a row of 16 hidden values chosen by its state.

Published quirk, the default: padding wraps around the state axis too, so the first kernel has n+2 input channels and states
0 and n-1 get a second channel each (`wrap_states`).
Letters: N states, K the nine neighbors in raster order, H 16 hidden values.
"""

from functools import cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from seedbed.core.compiled import compiled
from seedbed.nca.tables import FRACTION_BITS, INDEX_BITS, TRUNCATED_NORMAL, tables

SQUEEZE, HIDDEN = 4, 16
HIDDEN_BITS = 24  # fractional bits of the composed table and of hidden values
LOGIT_BITS = HIDDEN_BITS + FRACTION_BITS
# Standard deviation of a unit normal truncated at +-2, in 1e-18: LeCun normal divides by it.
_TRUNCATED_STD_E18 = 879_625_661_034_239_780

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPLIT_OF = {"train": 0, "valid": 2, "test": 3}  # low bits of the first weight's table index; train keeps its low bit


class Rule(NamedTuple):
    """A rule ready to run: the composed first layers, their bias, and the last layer."""

    table_KNH: Int32[np.ndarray, "9 N 16"]  # HIDDEN_BITS fractional bits
    bias_H: Int32[np.ndarray, "16"]  # HIDDEN_BITS
    out_NH: Int32[np.ndarray, "N 16"]  # FRACTION_BITS
    out_bias_N: Int64[np.ndarray, "N"]  # LOGIT_BITS


@compiled(inline="always")
def mix(key: np.uint64) -> np.uint64:
    """The finalizer of splitmix64: a bijection of 64-bit words that scatters neighboring inputs."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@compiled(inline="always")
def word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """64 random bits for (key, counter)."""
    return mix(key + _GOLDEN * (counter + np.uint64(1)))


@compiled
def draw_weights(key, scales, split_bits, split_mask, table, first, second, third):
    """Fill the three layers with weights drawn in the order (kernel row, kernel column, in, out)."""
    shift = np.uint64(64 - INDEX_BITS)
    half = np.int64(1) << np.int64(FRACTION_BITS - 1)
    counter = np.uint64(0)
    for layer, weights in enumerate((first, second, third)):
        for i in range(weights.size):
            index = np.int64(word(key, counter) >> shift)
            if counter == 0:
                index = (index & ~split_mask) | split_bits
            weights[i] = (np.int64(table[index]) * scales[layer] + half) >> np.int64(FRACTION_BITS)
            counter += np.uint64(1)


@compiled
def compose_table(first_KCS, second_SH, wrap_states, out_KNH):
    """Fill the composed table of the first two layers; with `wrap_states`, channels are [n-1, 0..n-1, 0]."""
    drop = np.int64(2 * FRACTION_BITS - HIDDEN_BITS)
    half = np.int64(1) << (drop - np.int64(1))
    n = out_KNH.shape[1]
    merged = np.empty(SQUEEZE, dtype=np.int64)
    for k in range(9):
        for s in range(n):
            for q in range(SQUEEZE):
                merged[q] = first_KCS[k, s + 1 if wrap_states else s, q]
                if wrap_states and s == 0:
                    merged[q] += first_KCS[k, n + 1, q]
                if wrap_states and s == n - 1:
                    merged[q] += first_KCS[k, 0, q]
            for h in range(HIDDEN):
                total = merged[0] * second_SH[0, h] + merged[1] * second_SH[1, h]
                total += merged[2] * second_SH[2, h] + merged[3] * second_SH[3, h]
                out_KNH[k, s, h] = (total + half) >> drop


def split_bits(split: str) -> tuple[int, int]:
    """Return the low bits of the first weight's table index that mark a split, and the mask of those bits."""
    return _SPLIT_OF[split], 2 if split == "train" else 3


@cache
def layer_scales(states: int, wrap_states: bool) -> Int64[np.ndarray, "3"]:
    """Return the LeCun scales of the three layers, FRACTION_BITS."""
    channels = states + 2 if wrap_states else states
    return np.array([lecun_scale(9 * channels), lecun_scale(SQUEEZE), lecun_scale(HIDDEN)], dtype=np.int64)


def draw_rule(key: int, *, states: int, wrap_states: bool, split: str) -> Rule:
    """Return the rule of a 64-bit key.

    Rules of different splits differ by construction: the two low bits of the first weight's table index are 0 or 1 for
    "train", 2 for "valid" and 3 for "test", and all table entries are distinct.
    """
    channels = states + 2 if wrap_states else states
    first = np.empty((9, channels, SQUEEZE), dtype=np.int64)
    second, third = np.empty((SQUEEZE, HIDDEN), dtype=np.int64), np.empty((HIDDEN, states), dtype=np.int64)
    layers = first.reshape(-1), second.reshape(-1), third.reshape(-1)
    draw_weights(np.uint64(key), layer_scales(states, wrap_states), *split_bits(split), tables()[TRUNCATED_NORMAL], *layers)
    zeros = [np.zeros(width, dtype=np.int64) for width in (SQUEEZE, HIDDEN, states)]
    return compose(first, second, third, *zeros, wrap_states=wrap_states)


@cache
def lecun_scale(fan_in: int) -> int:
    """Return sqrt(1 / fan_in) / 0.8796.. with FRACTION_BITS fractional bits, computed in integers."""
    square = (10**36 << (2 * FRACTION_BITS)) // (fan_in * _TRUNCATED_STD_E18**2)
    return isqrt(square)


def compose(
    first_KCS: Int64[np.ndarray, "9 C 4"],
    second_SH: Int64[np.ndarray, "4 16"],
    third_HN: Int64[np.ndarray, "16 N"],
    first_bias_S: Int64[np.ndarray, "4"],
    second_bias_H: Int64[np.ndarray, "16"],
    third_bias_N: Int64[np.ndarray, "N"],
    *,
    wrap_states: bool,
) -> Rule:
    """Return a rule from fixed-point weights (all with FRACTION_BITS fractional bits).

    Drawn weights are bounded by two sigma, so hidden values stay below 32 and far from overflow (128).
    """
    table = np.empty((9, third_HN.shape[1], HIDDEN), dtype=np.int32)
    compose_table(first_KCS, second_SH, wrap_states, table)
    drop = 2 * FRACTION_BITS - HIDDEN_BITS
    bias = first_bias_S @ second_SH + (second_bias_H << FRACTION_BITS)
    return Rule(
        table_KNH=table,
        bias_H=((bias + (1 << (drop - 1))) >> drop).astype(np.int32),
        out_NH=np.ascontiguousarray(third_HN.T, dtype=np.int32),
        out_bias_N=third_bias_N << HIDDEN_BITS,
    )
