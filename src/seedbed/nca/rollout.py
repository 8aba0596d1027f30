"""Running a rule on a grid that closes into a torus, in integers only.

The next state of a cell is a categorical sample at a temperature: argmax over states of logit + identity bias (for the
present state) + temperature x Gumbel noise. The noise of (step, cell, state) is addressed by a counter, so it is computed
only where it can change the answer: candidates further below the best logit than the noise can reach are left out, and a
lone candidate needs no noise at all. The result is the same as if all noise had been drawn.

Most cells are decided in float32: if the best logit leads by more than the noise can reach and float32 can be off (a bound that
is computed for every rule), it is the best; all others are computed again in exact integers. So speed changes no bit.
Letters: F frames, G grid side, N states, H hidden values.
"""

import numpy as np
from jaxtyping import Int64, UInt8
from numba import njit

from seedbed.nca.rule import HIDDEN, LOGIT_BITS, Rule, mix, word
from seedbed.nca.tables import FRACTION_BITS, GUMBEL, INDEX_BITS, NORMAL, tables

TEMPERATURE_BITS = LOGIT_BITS - FRACTION_BITS  # noise (20 bits) x temperature (24 bits) = logit (44 bits)
_LANES = 16  # states that are decided side by side
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
def _cell_logits(padded, at, side, table, bias_H, out_NH, out_bias_N, hidden, logits):
    """Exact logits of the cell whose upper left neighbor stands at `at` of the padded grid."""
    _hidden(padded, at, side + 2, table, out_bias_N.size, bias_H, hidden)
    for s in range(logits.size):
        total = out_bias_N[s]
        for h in range(HIDDEN):
            total += np.int64(max(hidden[h], 0)) * np.int64(out_NH[s, h])
        logits[s] = total


@njit(cache=True, nogil=True, inline="always")
def _hidden(padded, at, width, table, step, bias_H, hidden):
    """Sum the table rows of the nine neighbors; written out, so that the compiler makes vector additions of it."""
    row0 = table[padded[at]]
    row1 = table[padded[at + 1] + step]
    row2 = table[padded[at + 2] + 2 * step]
    row3 = table[padded[at + width] + 3 * step]
    row4 = table[padded[at + width + 1] + 4 * step]
    row5 = table[padded[at + width + 2] + 5 * step]
    row6 = table[padded[at + 2 * width] + 6 * step]
    row7 = table[padded[at + 2 * width + 1] + 7 * step]
    row8 = table[padded[at + 2 * width + 2] + 8 * step]
    for h in range(HIDDEN):
        upper = row0[h] + row1[h] + row2[h]
        middle = row3[h] + row4[h] + row5[h]
        hidden[h] = bias_H[h] + upper + middle + row6[h] + row7[h] + row8[h]


@njit(cache=True, nogil=True)
def _pad(grid, side, padded):
    """Copy a grid, the torus closed by a frame of copies."""
    width = side + 2
    for row in range(side):
        for column in range(side):
            padded[(row + 1) * width + column + 1] = grid[row * side + column]
        padded[(row + 1) * width] = padded[(row + 1) * width + side]
        padded[(row + 1) * width + side + 1] = padded[(row + 1) * width + 1]
    for column in range(width):
        padded[column] = padded[side * width + column]
        padded[(side + 1) * width + column] = padded[width + column]


@njit(cache=True, nogil=True)
def _reals(table, bias_H, out_NH, out_bias_N, weights, offsets):
    """Fill float32 copies of the last layer, states padded to lanes; return by how much two logits may be off."""
    n = out_bias_N.size
    lanes = offsets.size
    for s in range(lanes):
        offsets[s] = np.float32(out_bias_N[s]) if s < n else np.float32(-1e38)
        for h in range(HIDDEN):
            weights[s // _LANES, h, s % _LANES] = np.float32(out_NH[s, h]) if s < n else 0.0
    most = 0.0  # no logit, and no sum on the way to it, is larger
    for h in range(HIDDEN):
        highest = np.float64(abs(bias_H[h]))
        for k in range(9):
            peak = np.int64(0)
            for s in range(n):
                peak = max(peak, abs(np.int64(table[k * n + s, h])))
            highest += peak
        steepest = np.int64(0)
        for s in range(n):
            steepest = max(steepest, abs(np.int64(out_NH[s, h])))
        most += highest * steepest
    for s in range(n):
        most = max(most, np.float64(abs(out_bias_N[s])))
    return most * 64 * 2.0**-24


@njit(cache=True, nogil=True, fastmath={"nnan", "ninf", "nsz", "reassoc", "contract"})
def _nearly(hidden, weights, offsets, extra_state, extra, margin, values):
    """The state with the best float32 logit, or -1 if another comes within the margin."""
    count = 0
    index = 0
    best = np.float32(-3e38)
    for block in range(offsets.size // _LANES):
        for s in range(_LANES):
            values[s] = offsets[block * _LANES + s]
        for h in range(HIDDEN):
            x = np.float32(max(hidden[h], 0))
            for s in range(_LANES):
                values[s] += x * weights[block, h, s]
        if extra_state // _LANES == block:
            values[extra_state % _LANES] += extra
        top = values[0]
        for s in range(_LANES):
            top = max(top, values[s])
        if top > best:
            if best < top - margin:
                count = 0
            best = top
        limit = best - margin
        near = 0
        place = 0
        for s in range(_LANES):
            hit = np.int32(values[s] >= limit)
            near += hit
            place += hit * s
        if near > 0:
            count += near
            index = block * _LANES + place
    return index if count == 1 else -1


@njit(cache=True, nogil=True)
def _update(grid, out, side, padded, rule, reals, key, temperature, bias, gumbel, hidden, logits, values):
    """One update; return whether every cell was decided by its logits alone, without noise."""
    table, bias_H, out_NH, out_bias_N = rule
    weights, offsets, slack = reals
    n = logits.size
    shift = np.uint64(64 - INDEX_BITS)
    reach = (np.int64(gumbel[-1]) - np.int64(gumbel[0])) * temperature
    margin = np.float32((np.float64(reach) + slack) * 1.000001)
    extra = np.float32(bias)
    _pad(grid, side, padded)
    sure = True
    for row in range(side):
        for column in range(side):
            cell = row * side + column
            at = row * (side + 2) + column
            _hidden(padded, at, side + 2, table, n, bias_H, hidden)
            best = _nearly(hidden, weights, offsets, np.int64(grid[cell]), extra, margin, values)
            if best < 0:  # too close for float32, or noise may decide
                sure = False
                _cell_logits(padded, at, side, table, bias_H, out_NH, out_bias_N, hidden, logits)
                logits[grid[cell]] += bias
                best = 0
                for s in range(1, n):
                    if logits[s] > logits[best]:
                        best = s
                limit = logits[best] - reach
                best_value = np.int64(-(2**62))
                if temperature > 0:
                    for s in range(n):
                        if logits[s] >= limit:
                            index = np.int64(word(key, np.uint64(cell * n + s)) >> shift)
                            value = logits[s] + np.int64(gumbel[index]) * temperature
                            if value > best_value:
                                best = s
                                best_value = value
            out[cell] = best
    return sure


@njit(cache=True, nogil=True)
def run_frames(grid, frames, burn_in, stride, first_update, side, rule, reals, key, temperature, bias, gumbel, memory):
    """Fill `frames` from `grid` on, which is used up. A grid that stands still without noise stays for ever."""
    other, padded, hidden, logits, values = memory
    update = first_update
    still = False
    for f in range(frames.shape[0]):
        for _ in range(burn_in if f == 0 else stride):
            if not still:
                step_key = mix(key ^ mix(_STEPS + np.uint64(update)))
                sure = _update(
                    grid, other, side, padded, rule, reals, step_key, temperature, bias, gumbel, hidden, logits, values
                )
                if sure:
                    still = True
                    for cell in range(grid.size):
                        if grid[cell] != other[cell]:
                            still = False
                            break
                grid[:] = other
            update += 1
        frames[f] = grid


@njit(cache=True, nogil=True)
def lanes_of(states):
    return (states + _LANES - 1) // _LANES * _LANES


@njit(cache=True, nogil=True)
def working_memory(side, states):
    """Return what `run_frames` writes on: the next grid, the padded grid, hidden values, logits, lanes."""
    return (
        np.empty(side * side, dtype=np.uint8),
        np.empty((side + 2) * (side + 2), dtype=np.int64),
        np.empty(HIDDEN, dtype=np.int32),
        np.empty(states, dtype=np.int64),
        np.empty(_LANES, dtype=np.float32),
    )


@njit(cache=True, nogil=True)
def _roll(grid, frames, burn_in, stride, first_update, side, table, bias_H, out_NH, out_bias_N, key, temperature, bias, gumbel):
    n = out_bias_N.size
    weights = np.empty((lanes_of(n) // _LANES, HIDDEN, _LANES), dtype=np.float32)
    offsets = np.empty(lanes_of(n), dtype=np.float32)
    slack = _reals(table, bias_H, out_NH, out_bias_N, weights, offsets)
    rule, reals = (table, bias_H, out_NH, out_bias_N), (weights, offsets, slack)
    memory = working_memory(side, n)
    run_frames(grid, frames, burn_in, stride, first_update, side, rule, reals, key, temperature, bias, gumbel, memory)


def start_grid(key: int, *, states: int, grid: int, uniform: bool) -> UInt8[np.ndarray, "G G"]:
    """Return the start state of a roll-out's 64-bit key."""
    return _start(np.uint64(mix(np.uint64(key) ^ _START)), states, grid * grid, uniform, tables()).reshape(grid, grid)


def fixed_point(temperature: float, identity_bias: float) -> tuple[int, int]:
    """Return temperature (TEMPERATURE_BITS) and identity bias (LOGIT_BITS) as integers."""
    return round(temperature * 2**TEMPERATURE_BITS), round(identity_bias * 2**TEMPERATURE_BITS) << FRACTION_BITS


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
    _roll(
        grid_GG.reshape(-1).copy(),
        kept,
        burn_in,
        stride,
        updates_done,
        side,
        rule.table_KNH.reshape(-1, HIDDEN),
        rule.bias_H,
        rule.out_NH,
        rule.out_bias_N,
        np.uint64(key),
        *fixed_point(temperature, identity_bias),
        tables()[GUMBEL],
    )
    return kept.reshape(frames, side, side)


@njit(cache=True, nogil=True)
def _all_logits(grid, side, table, bias_H, out_NH, out_bias_N, out):
    _, padded, hidden, _, _ = working_memory(side, out_bias_N.size)
    _pad(grid, side, padded)
    for row in range(side):
        for column in range(side):
            at = row * (side + 2) + column
            _cell_logits(padded, at, side, table, bias_H, out_NH, out_bias_N, hidden, out[row * side + column])


def logits(rule: Rule, grid_GG: UInt8[np.ndarray, "G G"]) -> Int64[np.ndarray, "G G N"]:
    """Return the network's output for every cell, with LOGIT_BITS fractional bits (before bias and noise)."""
    side = grid_GG.shape[0]
    out = np.empty((side * side, rule.out_NH.shape[0]), dtype=np.int64)
    _all_logits(grid_GG.reshape(-1), side, rule.table_KNH.reshape(-1, HIDDEN), rule.bias_H, rule.out_NH, rule.out_bias_N, out)
    return out.reshape(side, side, -1)
