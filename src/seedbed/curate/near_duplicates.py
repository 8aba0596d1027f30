"""Finds documents that nearly repeat an earlier one, by the share of runs of five words that both have.

Resemblance, as Jaccard index of the two sets of runs, and its estimate from minima of random hash functions: Broder (1997),
"On the resemblance and containment of documents". Only documents that agree on a whole band of minima are compared: Leskovec,
Rajaraman and Ullman (2014), "Mining of massive datasets", chapter 3. Why at all: Lee et al. (2022), "Deduplicating training
data makes language models better".

Two documents of resemblance s agree on one of b bands of r minima with probability 1 - (1 - s^r)^b, an S-curve: with 16 bands
of 8 it is 0.61 at 0.7, 0.95 at 0.8 and 0.9999 at 0.9. The estimate from 128 minima, which then decides, has a standard error
of 0.041 at 0.7, 0.035 at 0.8 and 0.027 at 0.9. With both at a threshold of 0.8, one pair in 200 is found at 0.7, every second
one at 0.8, 94 in 100 at 0.85 and 1999 in 2000 at 0.9.

We depart from the papers in one thing. A document is compared with earlier documents that were kept, and in every band with
the first of these alone. So a verdict never depends on what comes later, a corpus that grows keeps its verdicts, and the time
is linear however often one page is repeated. It costs pairs: where a band's first is another document, only the other bands
can find the nearer one.
Letters: N documents (or words of one), P hash functions, B bands, G runs of words of a document.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import ClassVar

import numpy as np

from seedbed.core.bounds import check_ranges, within
from seedbed.core.compiled import compiled
from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral
from seedbed.curate.words import ngram_hashes, word_hashes

_EMPTY = np.uint32(0xFFFFFFFF)  # the minimum over no run at all


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Settings of the search; more hash functions estimate better, more bands find more and cost more."""

    neutral: ClassVar[Neutral] = "even at threshold 1 documents of the same runs are duplicates"
    threshold: float = within(
        0, 1, default=0.8, above=True
    )  # estimated share of runs in common from which on a document is dropped
    ngram: int = within(1, 1000, default=5)  # words in a run
    permutations: int = within(1, 4096, default=128)  # hash functions
    bands: int = within(1, 4096, default=16)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.permutations % self.bands:
            raise ConfigError(
                f"permutations must be a multiple of bands, so that all bands are of one size; "
                f"got {self.permutations} and {self.bands}, give for example 128 and 16"
            )

    def candidate_probability(self, resemblance: float) -> float:
        """Return how likely two documents are compared: 1 - (1 - s^r)^b."""
        return 1 - (1 - resemblance ** (self.permutations // self.bands)) ** self.bands

    def signature(self, text: str) -> np.ndarray:
        """Return the uint32 minimum of every hash function over the text's runs of words.

        A text of fewer words than a run is one run; a text without words has only the largest number.
        """
        words_N = word_hashes(text)
        grams_G = ngram_hashes(words_N, min(self.ngram, max(1, words_N.size)))
        return _minima((grams_G >> np.uint64(32)).astype(np.uint32), *_hash_functions(self.permutations))

    def find(self, signatures_NP: np.ndarray) -> np.ndarray:
        """Return for every document the number of the kept, earlier one that it nearly repeats, or -1 if it is kept.

        Int64. The signatures may be mapped from a file; beside them it needs 4 to 6 bytes for every document and band.
        Raises ConfigError for signatures of another kind or size.
        """
        if signatures_NP.ndim != 2 or signatures_NP.shape[1] != self.permutations or signatures_NP.dtype != np.uint32:
            raise ConfigError(
                f"signatures must be a uint32 array of (documents, {self.permutations}), got {signatures_NP.dtype} of "
                f"{signatures_NP.shape}; make them with the same settings"
            )
        signatures_NP = np.asarray(signatures_NP)  # kernels know a mapped file as the array that it is
        num_documents, size = signatures_NP.shape[0], self.permutations // self.bands
        groups_NB = np.empty((num_documents, self.bands), dtype=np.int32)
        starts_B = np.zeros(self.bands + 1, dtype=np.int64)
        for band in range(self.bands):
            keys_N = _band_keys(signatures_NP, band * size, size)
            groups_NB[:, band] = _groups_of_equals(keys_N)
            starts_B[band + 1] = starts_B[band] + groups_NB[:, band].max(initial=-1) + 1
        # As the decimal number that the user wrote: 0.07 of 100 is 7, though in floats it is a little more.
        least = math.ceil(Fraction(str(self.threshold)) * self.permutations)
        return _stream_through(signatures_NP, groups_NB, starts_B, least)

    @staticmethod
    def clusters(found_N: np.ndarray) -> np.ndarray:
        """Return for every document the number of the kept one that stands for it: its own if it is kept itself."""
        return np.where(found_N < 0, np.arange(found_N.size), found_N)


@cache
def _hash_functions(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and summands of x -> the upper half of factor * x + summand: pairwise independent (Dietzfelbinger, 1996)."""
    # Raw bits, since numpy promises their order for ever; in pairs, so that more functions begin with the same ones.
    bits = np.asarray(stream(0, "minhash").bit_generator.random_raw(2 * count), dtype=np.uint64)
    return np.ascontiguousarray(bits[0::2]), np.ascontiguousarray(bits[1::2])


@compiled
def _minima(grams_G, factors_P, summands_P):
    """Return the smallest value of every hash function."""
    lowest_P = np.full(factors_P.size, _EMPTY, dtype=np.uint32)
    for gram in grams_G:
        for p in range(factors_P.size):
            value = np.uint32((factors_P[p] * np.uint64(gram) + summands_P[p]) >> np.uint64(32))
            lowest_P[p] = min(lowest_P[p], value)
    return lowest_P


@compiled
def _band_keys(signatures_NP, first, size):
    """Return one uint64 for the minima of one band; equal minima give equal keys, and others hardly ever."""
    keys_N = np.empty(signatures_NP.shape[0], dtype=np.uint64)
    for i in range(signatures_NP.shape[0]):
        key = np.uint64(0)
        for p in range(first, first + size):
            key = (key ^ np.uint64(signatures_NP[i, p])) * np.uint64(0xD1342543DE82EF95)
            key ^= key >> np.uint64(32)
        keys_N[i] = key
    return keys_N


def _groups_of_equals(keys_N: np.ndarray) -> np.ndarray:
    """Return a number from 0 on for every key that occurs more than once, and -1 for the others; int32."""
    order_N = np.argsort(keys_N)
    sorted_N = keys_N[order_N]
    like_next_N = np.append(sorted_N[1:] == sorted_N[:-1], [False])[: keys_N.size]
    like_last_N = np.append([False], like_next_N)[: keys_N.size]
    numbers_N = np.cumsum(like_next_N & ~like_last_N, dtype=np.int32) - np.int32(1)
    groups_N = np.empty(keys_N.size, dtype=np.int32)
    groups_N[order_N] = np.where(like_next_N | like_last_N, numbers_N, np.int32(-1))
    return groups_N


@compiled
def _stream_through(signatures_NP, groups_NB, starts_B, least):
    """Compare every document in turn with the first kept one of each of its groups."""
    num_documents, num_bands = groups_NB.shape
    first_kept = np.full(starts_B[-1], -1, dtype=np.int32)
    found_N = np.full(num_documents, -1, dtype=np.int64)
    for i in range(num_documents):
        if np.all(signatures_NP[i] == _EMPTY):
            continue  # no words: it repeats nothing and is repeated by nothing
        for band in range(num_bands):
            group = groups_NB[i, band]
            if group < 0:
                continue
            earlier = first_kept[starts_B[band] + group]
            if earlier >= 0 and np.sum(signatures_NP[i] == signatures_NP[earlier]) >= least:
                found_N[i] = earlier
                break
        if found_N[i] < 0:
            for band in range(num_bands):
                group = groups_NB[i, band]
                if group >= 0 and first_kept[starts_B[band] + group] < 0:
                    first_kept[starts_B[band] + group] = i
    return found_N
