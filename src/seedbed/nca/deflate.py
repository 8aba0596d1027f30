"""How long zlib's deflate would make a sequence of bytes at level 9: the length alone, nothing is written.

The length decides which rules are accepted, so it must be the same on every machine, whatever zlib it has. It equals the one of
zlib 1.2.12 to 1.3.1 with its usual memory (window 2^15, memory level 8), for inputs of any length: lazy matching over chains of
hashed triples, then for each block of at most 16,383 symbols the shortest of fixed codes, codes of its own and stored bytes.
Formats: RFC 1951 (deflate), RFC 1952 (gzip).
"""

import numpy as np
from jaxtyping import UInt8

from seedbed.core.compiled import compiled

GZIP_BYTES = 18  # header and trailer of the gzip container

# Level 9 searches long and postpones a match while a longer one may begin at the next byte.
_CHAIN, _GOOD = 4096, 32
_LONGEST, _SHORTEST = 258, 3
_LOOKAHEAD = _LONGEST + _SHORTEST + 1
_REACH = 2**15 - _LOOKAHEAD
_FAR = 4096  # a match of three bytes further back than this is dearer than three literals
_HASHES = 2**15
_SYMBOLS = 2**14 - 1  # of one block

_LITERALS, _DISTANCES, _LENGTHS = 286, 30, 19
_END = 256


def _length_codes() -> tuple[np.ndarray, np.ndarray]:
    """For every match length its code (from 257 on) and extra bits (RFC 1951, 3.2.5)."""
    code, extra = np.zeros(_LONGEST + 1, dtype=np.int64), np.zeros(_LITERALS, dtype=np.int64)
    length = 3
    for i in range(28):
        extra[257 + i] = max(0, i // 4 - 1)
        for _ in range(1 << extra[257 + i]):
            code[length] = 257 + i
            length += 1
    code[_LONGEST] = 285
    return code, extra


def _distance_extra() -> np.ndarray:
    return np.array([max(0, i // 2 - 1) for i in range(_DISTANCES)], dtype=np.int64)


def _fixed_bits() -> np.ndarray:
    bits = np.full(_LITERALS, 8, dtype=np.int64)
    bits[144:256], bits[256:280] = 9, 7
    return bits


_CODE_OF_LENGTH, _EXTRA_OF_LITERAL = _length_codes()
_EXTRA_OF_DISTANCE = _distance_extra()
_EXTRA_OF_LENGTH = np.array([0] * 16 + [2, 3, 7], dtype=np.int64)
_FIXED_LITERAL, _FIXED_DISTANCE = _fixed_bits(), np.full(_DISTANCES, 5, dtype=np.int64)
_SENT_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15], dtype=np.int64)


def scratch() -> tuple[np.ndarray, ...]:
    """Return the working memory of `deflate_bytes`, to be used by one thread at a time; its hash table must stay clear."""
    return (
        np.full(_HASHES, -1, dtype=np.int32),  # newest position of each hash
        np.zeros(_LITERALS + 2, dtype=np.int64),  # counts of literals and lengths
        np.zeros(_DISTANCES + 2, dtype=np.int64),
        np.zeros(_LENGTHS + 2, dtype=np.int64),
        np.zeros(_LITERALS + 2, dtype=np.int64),  # code lengths
        np.zeros(_DISTANCES + 2, dtype=np.int64),
        np.zeros(_LENGTHS + 2, dtype=np.int64),
        np.zeros(2 * _LITERALS + 2, dtype=np.int64),  # heap, its keys, parents and lengths of all nodes
        np.zeros(2 * _LITERALS + 2, dtype=np.int64),
        np.zeros(2 * _LITERALS + 2, dtype=np.int64),
        np.zeros(2 * _LITERALS + 2, dtype=np.int64),
    )


def gzip_length(data: UInt8[np.ndarray, "B"]) -> int:
    """Return the length in bytes of the gzip file of `data` at level 9."""
    padded = np.zeros(len(data) + _LOOKAHEAD, dtype=np.uint8)
    padded[: len(data)] = data
    return GZIP_BYTES + int(deflate_bytes(padded, len(data), np.empty(max(1, len(data)), dtype=np.int32), scratch()))


@compiled(inline="always")
def _key(count, depth, node):
    """Ordered as zlib orders its heap: by count, then by depth. `node` rides along."""
    return (count << np.int64(24)) | (depth << np.int64(12)) | node


@compiled
def _sift(heap, size, k):
    """Let entry k sink. Ties go to the entry that comes up: count and depth are compared, the node is not."""
    low = np.int64(12)
    moved = heap[k]
    rank = moved >> low
    child = 2 * k
    while child <= size:
        if child < size and heap[child + 1] >> low <= heap[child] >> low:
            child += 1
        if rank <= heap[child] >> low:
            break
        heap[k] = heap[child]
        k = child
        child *= 2
    heap[k] = moved


@compiled
def _code(counts, elements, extra, longest, bits, heap, parent, order, length):
    """Fill `bits` with the lengths of zlib's Huffman code; return (last used symbol, bits of the coded symbols).

    Two symbols at least get a code, as zlib does. Give numbers as np.int64: for each literal one it would be compiled anew.
    """
    node_mask = np.int64(4095)
    size = 0
    last = -1
    for n in range(elements):
        bits[n] = 0
        if counts[n] > 0:
            size += 1
            heap[size] = _key(counts[n], np.int64(0), np.int64(n))
            last = n
    while size < 2:
        if last < 2:
            last += 1
            new = last
        else:
            new = 0
        counts[new] = 1
        size += 1
        heap[size] = _key(np.int64(1), np.int64(0), np.int64(new))
    for k in range(size // 2, 0, -1):
        _sift(heap, size, k)
    node = elements
    ranked = 0  # nodes in the order in which they left the heap
    while size > 1:
        first = heap[1]
        heap[1] = heap[size]
        size -= 1
        _sift(heap, size, np.int64(1))
        second = heap[1]
        a, b = first & node_mask, second & node_mask
        order[ranked], order[ranked + 1] = a, b
        ranked += 2
        parent[a] = node
        parent[b] = node
        depth = max((first >> np.int64(12)) & node_mask, (second >> np.int64(12)) & node_mask) + 1
        heap[1] = _key((first >> np.int64(24)) + (second >> np.int64(24)), depth, np.int64(node))
        _sift(heap, size, np.int64(1))
        node += 1
    root = node - 1
    length[root] = 0
    total = np.int64(0)
    overflow = 0
    of_length = np.zeros(16, dtype=np.int64)
    for i in range(ranked - 1, -1, -1):
        n = order[i]
        deep = length[parent[n]] + 1
        if deep > longest:
            deep = longest
            overflow += 1
        length[n] = deep
        if n < elements:
            of_length[deep] += 1
            bits[n] = deep
            total += counts[n] * (deep + extra[n])
    if overflow:
        while overflow > 0:
            deep = longest - 1
            while of_length[deep] == 0:
                deep -= 1
            of_length[deep] -= 1
            of_length[deep + 1] += 2
            of_length[longest] -= 1
            overflow -= 2
        i = 0
        for deep in range(longest, 0, -1):
            left = of_length[deep]
            while left > 0:
                n = order[i]
                i += 1
                if n < elements:
                    total += (deep - bits[n]) * counts[n]
                    bits[n] = deep
                    left -= 1
    return last, total


@compiled
def _count_lengths(bits, last, counts):
    """Count the symbols with which a code's lengths are sent: a length, 16 (again), 17 and 18 (runs of zeros)."""
    previous = np.int64(-1)
    following = bits[0]
    run = 0
    most, least = (138, 3) if following == 0 else (7, 4)
    for n in range(last + 1):
        current = following
        following = bits[n + 1] if n < last else np.int64(-2)
        run += 1
        if run < most and current == following:
            continue
        if run < least:
            counts[current] += run
        elif current != 0:
            if current != previous:
                counts[current] += 1
            counts[16] += 1
        elif run <= 10:
            counts[17] += 1
        else:
            counts[18] += 1
        run = 0
        previous = current
        if following == 0:
            most, least = 138, 3
        elif current == following:
            most, least = 6, 3
        else:
            most, least = 7, 4


@compiled
def _block_bits(bits_before, stored, memory):
    """Bits after a block whose symbols are counted in `memory`; `stored` is its number of bytes. Clears the counts."""
    _, literals, distances, lengths, literal_bits, distance_bits, length_bits, heap, parent, order, deep = memory
    literals[_END] += 1
    fixed = np.int64(0)
    for n in range(_LITERALS):
        fixed += literals[n] * (_FIXED_LITERAL[n] + _EXTRA_OF_LITERAL[n])
    for n in range(_DISTANCES):
        fixed += distances[n] * (5 + _EXTRA_OF_DISTANCE[n])
    lengths[:] = 0
    distances_before = distances.copy()
    last, own = _code(literals, np.int64(_LITERALS), _EXTRA_OF_LITERAL, np.int64(15), literal_bits, heap, parent, order, deep)
    _count_lengths(literal_bits, last, lengths)
    last, more = _code(
        distances, np.int64(_DISTANCES), _EXTRA_OF_DISTANCE, np.int64(15), distance_bits, heap, parent, order, deep
    )
    for n in range(_DISTANCES):  # symbols that only fill up a code are never sent
        if distances[n] != distances_before[n]:
            more -= distance_bits[n] + _EXTRA_OF_DISTANCE[n]
    own += more
    _count_lengths(distance_bits, last, lengths)
    _, more = _code(lengths, np.int64(_LENGTHS), _EXTRA_OF_LENGTH, np.int64(7), length_bits, heap, parent, order, deep)
    own += more + 14
    sent = _LENGTHS
    while sent > 4 and length_bits[_SENT_ORDER[sent - 1]] == 0:
        sent -= 1
    own += 3 * sent
    literals[:] = 0
    distances[:] = 0
    own_bytes, fixed_bytes = (own + 3 + 7) >> 3, (fixed + 3 + 7) >> 3
    best = min(own_bytes, fixed_bytes)
    if stored + 4 <= best:
        return ((bits_before + 3 + 7) >> 3 << 3) + 8 * (4 + stored)
    return bits_before + 3 + (fixed if fixed_bytes <= own_bytes else own)


@compiled
def deflate_bytes(data, size, chain, memory):
    """Length in bytes of the deflate stream of data[:size]; `data` goes on with zeros, `chain` has room for `size`."""
    newest, literals, distances = memory[0], memory[1], memory[2]
    out = np.int64(0)
    symbols = 0
    block_start = 0
    previous_length = 2
    previous_start = 0
    match_start = 0
    length = 2
    pending = False  # the byte before is neither sent nor part of a match
    at = 0
    while at < size:
        left = size - at
        head = -1
        if left >= _SHORTEST:
            h = ((np.int64(data[at]) << 10) ^ (np.int64(data[at + 1]) << 5) ^ np.int64(data[at + 2])) & (_HASHES - 1)
            head = newest[h]
            chain[at] = head
            newest[h] = at
        previous_length, previous_start = length, match_start
        length = 2
        if head > 0 and previous_length < _LONGEST and at - head <= _REACH:  # position 0 is never a match: zlib's nil
            tries = _CHAIN >> 2 if previous_length >= _GOOD else _CHAIN
            limit = max(0, at - _REACH)
            enough = min(_LONGEST, left)
            best = previous_length
            candidate = head
            tail0, tail1 = data[at + best - 1], data[at + best]
            while True:
                if (
                    data[candidate + best] == tail1
                    and data[candidate + best - 1] == tail0
                    and data[candidate] == data[at]
                    and data[candidate + 1] == data[at + 1]
                ):
                    same = 3
                    while same < _LONGEST and data[candidate + same] == data[at + same]:
                        same += 1
                    if same > best:
                        match_start = candidate
                        best = same
                        if same >= enough:
                            break
                        tail0, tail1 = data[at + best - 1], data[at + best]
                candidate = chain[candidate]
                tries -= 1
                if candidate <= limit or tries == 0:
                    break
            length = min(best, left)
            if length == _SHORTEST and at - match_start > _FAR:
                length = 2
        if previous_length >= _SHORTEST and length <= previous_length:
            literals[_CODE_OF_LENGTH[previous_length]] += 1
            distance = at - 1 - previous_start - 1
            code = distance
            if distance >= 4:
                top = 0
                rest = distance
                while rest > 3:
                    rest >>= 1
                    top += 1
                code = 2 * top + rest
            distances[code] += 1
            for k in range(at + 1, at - 1 + previous_length):
                if k + _SHORTEST <= size:
                    h = ((np.int64(data[k]) << 10) ^ (np.int64(data[k + 1]) << 5) ^ np.int64(data[k + 2])) & (_HASHES - 1)
                    chain[k] = newest[h]
                    newest[h] = k
            at += previous_length - 1
            pending = False
            length = 2
            symbols += 1
            if symbols == _SYMBOLS:
                out = _block_bits(out, at - block_start, memory)
                block_start = at
                symbols = 0
        elif pending:
            literals[data[at - 1]] += 1
            symbols += 1
            if symbols == _SYMBOLS:
                out = _block_bits(out, at - block_start, memory)
                block_start = at
                symbols = 0
            at += 1
        else:
            pending = True
            at += 1
    if pending:
        literals[data[size - 1]] += 1
    out = _block_bits(out, size - block_start, memory)
    for k in range(size - _SHORTEST + 1):
        h = ((np.int64(data[k]) << 10) ^ (np.int64(data[k + 1]) << 5) ^ np.int64(data[k + 2])) & (_HASHES - 1)
        newest[h] = -1
    return (out + 7) >> 3
