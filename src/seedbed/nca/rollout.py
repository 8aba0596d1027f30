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

from seedbed.core.compiled import compiled
from seedbed.nca.lanes import LANES, add_rows, foremost, lone_lane
from seedbed.nca.rule import HIDDEN, LOGIT_BITS, Rule, mix, word
from seedbed.nca.tables import FRACTION_BITS, GUMBEL, INDEX_BITS, NORMAL, tables

TEMPERATURE_BITS = LOGIT_BITS - FRACTION_BITS  # noise (20 bits) x temperature (24 bits) = logit (44 bits)
_ONE, _TWO = np.uint64(1), np.uint64(2)
START, STEPS = np.uint64(0x5EED), np.uint64(0x57E9)


@compiled
def fill_start(key, uniform, normal, gumbel, logits, out):
    """Fill the first state of every cell. Published: one softmax(g), g ~ N(0, I), for the whole grid; else uniform."""
    key = mix(key ^ START)
    shift = np.uint64(64 - INDEX_BITS)
    n = logits.size
    for s in range(n):
        logits[s] = 0 if uniform else normal[np.int64(word(key, np.uint64(s)) >> shift)]
    for cell in range(out.size):
        best = 0
        best_value = np.int64(-(2**62))
        for s in range(n):
            value = logits[s] + np.int64(gumbel[np.int64(word(key, np.uint64(n + cell * n + s)) >> shift)])
            if value > best_value:
                best = s
                best_value = value
        out[cell] = best


@compiled
def _cell_logits(padded, at, side, table, bias_H, out_NH, out_bias_N, hidden, logits):
    """Exact logits of the cell whose upper left neighbor stands at `at` of the padded grid."""
    n = logits.size
    for h in range(HIDDEN):
        hidden[h] = bias_H[h]
    for k in range(9):
        state = padded[at + k // 3 * (side + 2) + k % 3]
        for h in range(HIDDEN):
            hidden[h] += table[k * n + state, h]
    for s in range(n):
        total = out_bias_N[s]
        for h in range(HIDDEN):
            total += np.int64(max(hidden[h], 0)) * np.int64(out_NH[s, h])
        logits[s] = total


@compiled
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


@compiled
def float_error(table, bias_H, out_NH, out_bias_N):
    """Return by how much the difference of two float32 logits may be off, from the largest sums that the rule allows."""
    n = out_bias_N.size
    most = 0.0
    for s in range(n):
        most = max(most, np.float64(abs(out_bias_N[s])))
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
    return most * 64 * 2.0**-24  # twice (two logits) at most 20 roundings, and room


@compiled
def _as_reals(out_NH, out_bias_N, weights, offsets):
    """Fill float32 copies of the last layer, in blocks of LANES states; lanes without a state can never be best."""
    n = out_bias_N.size
    for s in range(offsets.size):
        offsets[s] = np.float32(out_bias_N[s]) if s < n else np.float32(-1e38)
        for h in range(HIDDEN):
            place = (s // LANES * HIDDEN + h) * LANES + s % LANES
            weights[place] = np.float32(out_NH[s, h]) if s < n else np.float32(0)


@compiled
def _decided(hidden_H, weights, offsets, state, extra, margin):
    """The state whose float32 logit leads by more than the margin, or -1 if none does."""
    best, found = np.float32(-3e38), np.int64(-1)
    for block in range(offsets.size // LANES):
        top, mask = foremost(hidden_H, weights, offsets, block, state - block * LANES, extra, margin)
        if top > best + margin:
            lane = lone_lane(mask)
            found = block * LANES + lane if lane >= 0 else np.int64(-1)
        elif top >= best - margin:
            found = np.int64(-1)
        best = max(best, top)
    return found


@compiled
def _update(grid, out, side, rule, slack, key, temperature, bias, gumbel, memory):
    """One update; return whether every cell was decided by its logits alone, without noise."""
    table, bias_H, out_NH, out_bias_N = rule
    padded, hidden, logits, reals_H, weights, offsets = memory
    n = logits.size
    shift = np.uint64(64 - INDEX_BITS)
    reach = (np.int64(gumbel[-1]) - np.int64(gumbel[0])) * temperature
    margin = np.float32((np.float64(reach) + slack) * 1.000001)
    extra = np.float32(bias)
    width = side + 2
    _pad(grid, side, padded)
    sure = True
    for row in range(side):
        for column in range(side):
            cell = row * side + column
            at = row * width + column
            upper, middle, lower = np.uint64(at), np.uint64(at + width), np.uint64(at + 2 * width)  # unsigned: no wrapping
            rows = (
                padded[upper],
                padded[upper + _ONE] + n,
                padded[upper + _TWO] + 2 * n,
                padded[middle] + 3 * n,
                padded[middle + _ONE] + 4 * n,
                padded[middle + _TWO] + 5 * n,
                padded[lower] + 6 * n,
                padded[lower + _ONE] + 7 * n,
                padded[lower + _TWO] + 8 * n,
            )
            add_rows(table, rows, bias_H, reals_H)
            best = _decided(reals_H, weights, offsets, np.int64(grid[cell]), extra, margin)
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


@compiled
def run_frames(grid, frames, burn_in, stride, first_update, side, rule, slack, key, temperature, bias, gumbel, memory):
    """Fill `frames` from `grid` on, which is used up. A grid that stands still without noise stays for ever.

    Cells are copied one by one: for an assigned slice numba compiles what its error would say, a third of all that it compiles.
    """
    other, rest = memory
    _as_reals(rule[2], rule[3], rest[4], rest[5])
    update = first_update
    still = False
    for f in range(frames.shape[0]):
        for _ in range(burn_in if f == 0 else stride):
            if not still:
                step_key = mix(key ^ mix(STEPS + np.uint64(update)))
                sure = _update(grid, other, side, rule, slack, step_key, temperature, bias, gumbel, rest)
                still = sure
                for c in range(grid.size):
                    still &= grid[c] == other[c]
                    grid[c] = other[c]
            update += 1
        for c in range(grid.size):
            frames[f, c] = grid[c]


@compiled
def aligned(raw):
    """Return the part of `raw` (four bytes an entry) from its first whole cache line on, LANES entries shorter."""
    start = (64 - raw.ctypes.data % 64) % 64 // 4
    return raw[start : start + raw.size - LANES]


@compiled
def working_memory(side, states):
    """Return what `run_frames` writes on, for one thread at a time: the next grid, then what an update needs."""
    blocks = (states + LANES - 1) // LANES
    return np.empty(side * side, dtype=np.uint8), (
        np.empty((side + 2) * (side + 2), dtype=np.int64),
        np.empty(HIDDEN, dtype=np.int32),
        np.empty(states, dtype=np.int64),
        aligned(np.empty(HIDDEN + LANES, dtype=np.float32)),
        aligned(np.empty(blocks * HIDDEN * LANES + LANES, dtype=np.float32)),
        aligned(np.empty(blocks * LANES + LANES, dtype=np.float32)),
    )


@compiled
def _roll(grid, frames, burn_in, stride, first_update, side, table, bias_H, out_NH, out_bias_N, key, temperature, bias, gumbel):
    rule = (table, bias_H, out_NH, out_bias_N)
    slack = float_error(table, bias_H, out_NH, out_bias_N)
    memory = working_memory(side, out_bias_N.size)
    run_frames(grid, frames, burn_in, stride, first_update, side, rule, slack, key, temperature, bias, gumbel, memory)


def start_grid(key: int, *, states: int, grid: int, uniform: bool) -> UInt8[np.ndarray, "G G"]:
    """Return the start state of a roll-out's 64-bit key."""
    out = np.empty(grid * grid, dtype=np.uint8)
    fill_start(np.uint64(key), uniform, tables()[NORMAL], tables()[GUMBEL], np.empty(states, dtype=np.int64), out)
    return out.reshape(grid, grid)


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


@compiled
def _all_logits(grid, side, table, bias_H, out_NH, out_bias_N, out):
    padded, hidden = working_memory(side, out_bias_N.size)[1][:2]
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
