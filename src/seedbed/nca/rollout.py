"""Running a rule on a grid that closes into a torus, in integers only.

The next state of a cell is a categorical sample at a temperature: argmax over states of logit + identity bias (for the
present state) + temperature x Gumbel noise. The noise of (step, cell, state) is addressed by a counter, so it is computed
only where it can change the answer: candidates further below the best logit than the noise can reach are left out, and a
lone candidate needs no noise at all. The result is the same as if all noise had been drawn.
Letters: F frames, G grid side, N states, H hidden values.
"""

import numpy as np
from jaxtyping import Int64, UInt8
from numba import njit

from seedbed.nca.rule import HIDDEN, LOGIT_BITS, Rule, mix, word
from seedbed.nca.tables import FRACTION_BITS, GUMBEL, INDEX_BITS, NORMAL, tables

TEMPERATURE_BITS = LOGIT_BITS - FRACTION_BITS  # noise (20 bits) x temperature (24 bits) = logit (44 bits)
_START, _STEPS = np.uint64(0x5EED), np.uint64(0x57E9)


@njit(cache=True, nogil=True)
def _start(key, n, cells, uniform, table):
    """First state of every cell. Published: one softmax(g), g ~ N(0, I), for the whole grid; else uniform."""
    shift = np.uint64(64 - INDEX_BITS)
    out = np.empty(cells, dtype=np.uint8)
    logits = np.zeros(n, dtype=np.int64)
    if not uniform:
        for s in range(n):
            logits[s] = table[NORMAL, np.int64(word(key, np.uint64(s)) >> shift)]
    for cell in range(cells):
        best = 0
        best_value = np.int64(-(2**62))
        for s in range(n):
            counter = np.uint64(n + cell * n + s)
            value = logits[s] + np.int64(table[GUMBEL, np.int64(word(key, counter) >> shift)])
            if value > best_value:
                best = s
                best_value = value
        out[cell] = best
    return out


@njit(cache=True, nogil=True)
def _cell_logits(grid, row, column, g, table_KNH, bias_H, out_NH, out_bias_N, hidden, logits):
    for h in range(HIDDEN):
        hidden[h] = bias_H[h]
    for k in range(9):
        r = row + k // 3 - 1
        c = column + k % 3 - 1
        r = r + g if r < 0 else (r - g if r >= g else r)
        c = c + g if c < 0 else (c - g if c >= g else c)
        state = grid[r * g + c]
        for h in range(HIDDEN):
            hidden[h] += table_KNH[k, state, h]
    for h in range(HIDDEN):
        hidden[h] = max(hidden[h], 0)
    for s in range(logits.size):
        total = out_bias_N[s]
        for h in range(HIDDEN):
            total += np.int64(hidden[h]) * np.int64(out_NH[s, h])
        logits[s] = total


@njit(cache=True, nogil=True)
def _update(grid, out, g, rule_table, rule_bias, rule_out, rule_out_bias, key, temperature, bias, gumbel, hidden, logits):
    n = logits.size
    shift = np.uint64(64 - INDEX_BITS)
    reach = (np.int64(gumbel[-1]) - np.int64(gumbel[0])) * temperature
    for row in range(g):
        for column in range(g):
            cell = row * g + column
            _cell_logits(grid, row, column, g, rule_table, rule_bias, rule_out, rule_out_bias, hidden, logits)
            logits[grid[cell]] += bias
            best = 0
            for s in range(1, n):
                if logits[s] > logits[best]:
                    best = s
            limit = logits[best] - reach
            rivals = 0
            for s in range(n):
                if logits[s] >= limit:
                    rivals += 1
            if rivals > 1 and temperature > 0:
                best_value = np.int64(-(2**62))
                for s in range(n):
                    if logits[s] >= limit:
                        index = np.int64(word(key, np.uint64(cell * n + s)) >> shift)
                        value = logits[s] + np.int64(gumbel[index]) * temperature
                        if value > best_value:
                            best = s
                            best_value = value
            out[cell] = best


@njit(cache=True, nogil=True)
def _run(grid, frames, burn_in, stride, first_update, g, table, bias_H, out_NH, out_bias, key, temperature, bias, gumbel):
    hidden = np.empty(HIDDEN, dtype=np.int32)
    logits = np.empty(out_bias.size, dtype=np.int64)
    other = np.empty_like(grid)
    update = first_update
    for f in range(frames.shape[0]):
        for _ in range(burn_in if f == 0 else stride):
            step_key = mix(key ^ mix(_STEPS + np.uint64(update)))
            _update(grid, other, g, table, bias_H, out_NH, out_bias, step_key, temperature, bias, gumbel, hidden, logits)
            grid, other = other, grid
            update += 1
        frames[f] = grid
    return grid


def start_grid(key: int, *, states: int, grid: int, uniform: bool) -> UInt8[np.ndarray, "G G"]:
    """Return the start state of a roll-out's 64-bit key."""
    return _start(np.uint64(mix(np.uint64(key) ^ _START)), states, grid * grid, uniform, tables()).reshape(grid, grid)


def roll_out(
    rule: Rule,
    grid_GG: UInt8[np.ndarray, "G G"],
    *,
    key: int,
    frames: int,
    burn_in: int,
    stride: int,
    temperature: float,
    identity_bias: float,
    updates_done: int = 0,
) -> UInt8[np.ndarray, "F G G"]:
    """Return `frames` grids: the first after `burn_in` updates, each next one `stride` updates later.

    `updates_done` continues a roll-out: the noise of an update is addressed by its number, so a roll-out in two parts
    equals the whole. Temperature and bias are rounded to 24 fractional bits.
    """
    side = grid_GG.shape[0]
    kept = np.empty((frames, side * side), dtype=np.uint8)
    _run(
        grid_GG.reshape(-1).copy(),
        kept,
        burn_in,
        stride,
        updates_done,
        side,
        rule.table_KNH,
        rule.bias_H,
        rule.out_NH,
        rule.out_bias_N,
        np.uint64(key),
        round(temperature * 2**TEMPERATURE_BITS),
        round(identity_bias * 2**TEMPERATURE_BITS) << FRACTION_BITS,
        tables()[GUMBEL],
    )
    return kept.reshape(frames, side, side)


@njit(cache=True, nogil=True)
def _all_logits(grid, g, table_KNH, bias_H, out_NH, out_bias_N, out):
    hidden = np.empty(HIDDEN, dtype=np.int32)
    for row in range(g):
        for column in range(g):
            _cell_logits(grid, row, column, g, table_KNH, bias_H, out_NH, out_bias_N, hidden, out[row * g + column])


def logits(rule: Rule, grid_GG: UInt8[np.ndarray, "G G"]) -> Int64[np.ndarray, "G G N"]:
    """Return the network's output for every cell, with LOGIT_BITS fractional bits (before bias and noise)."""
    side = grid_GG.shape[0]
    out = np.empty((side * side, rule.out_NH.shape[0]), dtype=np.int64)
    _all_logits(grid_GG.reshape(-1), side, *rule, out)
    return out.reshape(side, side, -1)
