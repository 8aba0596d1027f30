"""From indices to accepted roll-outs in one compiled pass: draw a rule, roll out, measure, until the ratio lies in the band.

The steps are those of `rule`, `rollout`, `patches` and `deflate`; here they only share working memory, so that a row costs no
trip through Python. Row i of the result depends on its own keys alone.
Letters: R rows, F frames, C cells, T tokens, P patches.
"""

import numpy as np

from seedbed.core.compiled import compiled
from seedbed.nca.deflate import GZIP_BYTES, deflate_bytes
from seedbed.nca.lanes import LANES
from seedbed.nca.rollout import aligned, fill_start, float_error, run_frames, working_memory
from seedbed.nca.rule import HIDDEN, SQUEEZE, compose_table, draw_weights, mix

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@compiled
def encode_frames(frames_FC, side, patch, states, tokens, framed):
    """Fill `tokens` with patch tokens frame by frame, with delimiters if `framed` (see patches.Patches)."""
    across = side // patch
    at = 0
    start = states ** (patch * patch)
    for f in range(frames_FC.shape[0]):
        if framed:
            tokens[at] = start
            at += 1
        for row in range(across):
            for column in range(across):
                token = 0
                for i in range(patch - 1, -1, -1):
                    for j in range(patch - 1, -1, -1):
                        token = token * states + frames_FC[f, (row * patch + i) * side + column * patch + j]
                tokens[at] = token
                at += 1
        if framed:
            tokens[at] = start + 1
            at += 1


@compiled
def tokens_gzip(tokens, data, chain, memory):
    """Length of the gzip file of int32 little-endian tokens; `data` is four bytes a token, and zeros beyond."""
    for i in range(tokens.size):
        for b in range(4):
            data[4 * i + b] = (tokens[i] >> (8 * b)) & 255
    return GZIP_BYTES + deflate_bytes(data, 4 * tokens.size, chain, memory)


@compiled
def gzip_lengths(tokens_RP, memory, lengths_R):
    """Fill `lengths_R` with the gzip lengths of rows of patch tokens."""
    data = np.zeros(4 * tokens_RP.shape[1] + 300, dtype=np.uint8)
    chain = np.empty(4 * tokens_RP.shape[1], dtype=np.int32)
    for r in range(len(tokens_RP)):
        lengths_R[r] = tokens_gzip(tokens_RP[r], data, chain, memory)


@compiled
def make_rows(
    rule_index,  # R: index of the rule
    start_base,  # R: base of the keys of the shown roll-out
    rule_base,
    first_start_base,  # base of the keys of the roll-out that is measured
    max_tries,
    kinds,  # (states, side, patch, burn_in, stride, selection frames)
    physics,  # (temperature, identity_bias, wrap_states, uniform start)
    band,  # (low, high) gzip ratios, both excluded
    measuring,  # False: every rule is taken unseen
    draws,  # (layer scales, split bits, split mask, truncated normals, normals, Gumbels)
    deflate_memory,
    frames_RFC,  # out
    tokens_RT,  # out
    gzip_R,  # out: bytes of the accepted roll-out's selection frames, 0 if not measured
    tries_R,  # out: candidates looked at, 0 if none of max_tries was accepted
    seen,  # out: least and most bytes among rejected candidates
):
    """Fill the rows; stops early at a row for which no rule was found."""
    states, side, patch, burn_in, stride, selection = kinds
    temperature, bias, wrap_states, uniform = physics
    scales, split, mask, truncated, normal, gumbel = draws
    cells, wanted = side * side, frames_RFC.shape[1]
    channels = states + 2 if wrap_states else states
    first = np.empty((9, channels, SQUEEZE), dtype=np.int64)
    second = np.empty((SQUEEZE, HIDDEN), dtype=np.int64)
    third = np.empty((HIDDEN, states), dtype=np.int64)
    layers = (first.reshape(-1), second.reshape(-1), third.reshape(-1))
    flat_table = aligned(np.empty(9 * states * HIDDEN + LANES, dtype=np.int32)).reshape(9 * states, HIDDEN)
    table = flat_table.reshape(9, states, HIDDEN)
    no_bias = aligned(np.zeros(HIDDEN + LANES, dtype=np.int32))
    out = np.empty((states, HIDDEN), dtype=np.int32)
    out_bias = np.zeros(states, dtype=np.int64)
    grid = np.empty(cells, dtype=np.uint8)
    logits = np.empty(states, dtype=np.int64)
    memory = working_memory(side, states)
    measured = np.empty((selection, cells), dtype=np.uint8)
    patches = np.empty(selection * (side // patch) ** 2, dtype=np.int32)
    data = np.zeros(4 * patches.size + 300, dtype=np.uint8)
    chain = np.empty(4 * patches.size, dtype=np.int32)
    size, begin = 0, np.int64(0)  # typed, as `done` is: one function compiled instead of two
    rule = (flat_table, no_bias, out, out_bias)
    for r in range(rule_index.size):
        tries_R[r] = 0
        for attempt in range(max_tries):
            address = _GOLDEN * (rule_index[r] * np.uint64(max_tries) + np.uint64(attempt))
            draw_weights(mix(rule_base + address), scales, split, mask, truncated, layers[0], layers[1], layers[2])
            compose_table(first, second, wrap_states, table)
            for s in range(states):
                for h in range(HIDDEN):
                    out[s, h] = third[h, s]
            slack = float_error(flat_table, no_bias, out, out_bias)
            key = mix(first_start_base + address)
            if measuring:
                fill_start(key, uniform, normal, gumbel, logits, grid)
                run_frames(grid, measured, burn_in, stride, begin, side, rule, slack, key, temperature, bias, gumbel, memory)
                encode_frames(measured, side, patch, states, patches, False)
                size = tokens_gzip(patches, data, chain, deflate_memory)
                if not band[0] < size / (4 * patches.size) < band[1]:
                    seen[0] = min(seen[0], size)
                    seen[1] = max(seen[1], size)
                    continue
            gzip_R[r] = size
            tries_R[r] = attempt + 1
            frames = frames_RFC[r]
            if measuring and start_base[r] == first_start_base:
                both = min(selection, wanted)
                for f in range(both):
                    for c in range(cells):
                        frames[f, c] = measured[f, c]
                if wanted > selection:  # go on from the last frame of the selection
                    done = burn_in + (selection - 1) * stride
                    rest = frames[selection:]
                    run_frames(grid, rest, stride, stride, done, side, rule, slack, key, temperature, bias, gumbel, memory)
            else:
                key = mix(start_base[r] + address)
                fill_start(key, uniform, normal, gumbel, logits, grid)
                run_frames(grid, frames, burn_in, stride, begin, side, rule, slack, key, temperature, bias, gumbel, memory)
            encode_frames(frames, side, patch, states, tokens_RT[r], True)
            break
        if tries_R[r] == 0:
            return
