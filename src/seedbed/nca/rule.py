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
from numba import njit

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


@njit(cache=True, nogil=True, inline="always")
def mix(key: np.uint64) -> np.uint64:
    """The finalizer of splitmix64: a bijection of 64-bit words that scatters neighboring inputs."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """64 random bits for (key, counter)."""
    return mix(key + _GOLDEN * (counter + np.uint64(1)))


@njit(cache=True, nogil=True)
def _draw(key, scales, first_channels, n, split_bits, split_mask, table):
    """Weights of the three layers, in the order (kernel row, kernel column, in, out)."""
    counter = np.uint64(0)
    one = np.uint64(1)
    shift = np.uint64(64 - INDEX_BITS)
    first = np.empty((9, first_channels, SQUEEZE), dtype=np.int64)
    second = np.empty((SQUEEZE, HIDDEN), dtype=np.int64)
    third = np.empty((HIDDEN, n), dtype=np.int64)
    half = np.int64(1) << np.int64(FRACTION_BITS - 1)
    flat_first = first.reshape(-1)
    for i in range(flat_first.size):
        index = np.int64(word(key, counter) >> shift)
        if i == 0:
            index = (index & ~split_mask) | split_bits
        flat_first[i] = (np.int64(table[index]) * scales[0] + half) >> np.int64(FRACTION_BITS)
        counter += one
    flat_second = second.reshape(-1)
    for i in range(flat_second.size):
        index = np.int64(word(key, counter) >> shift)
        flat_second[i] = (np.int64(table[index]) * scales[1] + half) >> np.int64(FRACTION_BITS)
        counter += one
    flat_third = third.reshape(-1)
    for i in range(flat_third.size):
        index = np.int64(word(key, counter) >> shift)
        flat_third[i] = (np.int64(table[index]) * scales[2] + half) >> np.int64(FRACTION_BITS)
        counter += one
    return first, second, third


def draw_rule(key: int, *, states: int, wrap_states: bool, split: str) -> Rule:
    """Return the rule of a 64-bit key.

    Rules of different splits differ by construction: the two low bits of the first weight's table index are 0 or 1 for
    "train", 2 for "valid" and 3 for "test", and all table entries are distinct.
    """
    channels = states + 2 if wrap_states else states
    scales = np.array([lecun_scale(9 * channels), lecun_scale(SQUEEZE), lecun_scale(HIDDEN)], dtype=np.int64)
    mask = 2 if split == "train" else 3
    first, second, third = _draw(np.uint64(key), scales, channels, states, _SPLIT_OF[split], mask, tables()[TRUNCATED_NORMAL])
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
    if wrap_states:  # channels are [n-1, 0..n-1, 0]
        merged = first_KCS[:, 1:-1].copy()
        merged[:, 0] += first_KCS[:, -1]
        merged[:, -1] += first_KCS[:, 0]
    else:
        merged = first_KCS
    drop = 2 * FRACTION_BITS - HIDDEN_BITS
    half = 1 << (drop - 1)
    bias = first_bias_S @ second_SH + (second_bias_H << FRACTION_BITS)
    return Rule(
        table_KNH=((merged @ second_SH + half) >> drop).astype(np.int32),
        bias_H=((bias + half) >> drop).astype(np.int32),
        out_NH=np.ascontiguousarray(third_HN.T, dtype=np.int32),
        out_bias_N=third_bias_N << HIDDEN_BITS,
    )
