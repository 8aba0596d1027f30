"""Finds documents that hold text of an evaluation set, by runs of 13 words that both contain.

Paper: Brown et al. (2020), "Language models are few-shot learners" (GPT-3), appendix C, which searched its training text for
13-grams. There a match costs the text around it, only a document cut into more than ten pieces is thrown away, and a 13-gram
that more than ten documents hold is let pass. Here one match is a reason to drop the document, and whoever reads the report
judges it by its words.
An evaluation text of fewer than 13 words has no 13-gram. It is matched only by a document that consists of the same words: as a
part it would hit every "The answer is 5".
In scripts written without spaces a run is 13 letters. That is enough in Chinese and Japanese, but Thai spells three or four
words with them: of 125 questions of MGSM, 16 share such a run with the other 125 (common phrases). None do in Chinese or
Japanese, and none in Thai with runs of 20. Set ngram to 20 for corpora in such alphabets.
Letters: G hashes of the evaluation sets, N words or runs of words of a document.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from seedbed.core.bounds import check_ranges, within
from seedbed.core.places import place
from seedbed.core.protocols import Neutral, Refiner
from seedbed.core.records import Document, Drop, Keep, Verdict
from seedbed.curate.words import ngram_hashes, word_hashes, words


@dataclass(frozen=True, kw_only=True)
class Match:
    """Where a document meets an evaluation set first."""

    evaluation: str  # the set's name
    kind: str  # such as "13-gram", or "whole text"
    words: str  # as they stand in the document


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no single answer to ==; compare fingerprints
class KnownHashes:
    """Hashes of evaluation sets, each once; one that several sets have counts for the first of them."""

    hashes_G: np.ndarray  # uint64, sorted
    names_G: np.ndarray  # int32, the number of the set

    def first(self, hashes_N: np.ndarray) -> tuple[int, int] | None:
        """Return the first place with a known hash and the number of its set, or None."""
        if self.hashes_G.size == 0:
            return None
        maybe = np.flatnonzero(self._prefixes[hashes_N >> self._shift])
        places = np.searchsorted(self.hashes_G, hashes_N[maybe])
        hits = np.flatnonzero(np.take(self.hashes_G, places, mode="clip") == hashes_N[maybe])
        return (int(maybe[hits[0]]), int(self.names_G[places[hits[0]]])) if hits.size else None

    @property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - min(26, (8 * self.hashes_G.size).bit_length()))

    @cached_property
    def _prefixes(self) -> np.ndarray:
        """Which first bits any hash has; they tell nine in ten hashes of a clean document apart without a search."""
        prefixes = np.zeros(2 ** (64 - int(self._shift)), dtype=np.bool_)
        prefixes[self.hashes_G >> self._shift] = True
        return prefixes


@dataclass(frozen=True, kw_only=True, eq=False)
class Contamination(Refiner):
    """Evaluation sets as hashes, small enough to be sent to every worker."""

    ngram: int  # words in a run
    names: tuple[str, ...]  # of the evaluation sets, in the order in which they came
    texts: tuple[int, ...]  # how many of each
    short_texts: tuple[int, ...]  # how many of those have fewer words than a run and are matched as whole documents only
    runs: KnownHashes
    short: KnownHashes  # of all words of a short text together

    def __call__(self, document: Document, *, lent: Mapping[str, Any]) -> Verdict:
        match = self.found(document.text)
        return Keep() if match is None else Drop(f"{match.kind} of an evaluation set", f"{match.evaluation}: {match.words}")

    def found(self, text: str) -> Match | None:
        """Return the first match of a document's text, or None if it is clean."""
        document = words(text)
        count = min(document.hashes_N.size, self.ngram)
        if count == 0:
            return None
        known, kind = (self.runs, f"{self.ngram}-gram") if count == self.ngram else (self.short, "whole text")
        found = known.first(ngram_hashes(document.hashes_N, count))
        if found is None:
            return None
        first, number = found
        return Match(evaluation=self.names[number], kind=kind, words=document.excerpt(first, count=count))

    def fingerprint(self) -> str:
        """Return a hash of all that decides what is found."""
        digest = sha256(repr((self.ngram, self.names)).encode("utf-8", "surrogatepass"))
        for known in (self.runs, self.short):
            digest.update(f"{known.hashes_G.size}\0".encode())
            digest.update(known.hashes_G.astype("<u8").tobytes() + known.names_G.astype("<i4").tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Refiner):
    """Which evaluation sets, and how long a shared run of words must be."""

    neutral: ClassVar[Neutral] = {"sets": ()}
    sets: Sequence[str] = place(default=())  # files, folders, globs, builtin:NAME, hub:NAME or prepared folders
    ngram: int = within(2, 1000, default=13)  # words; 8 finds more and errs more often

    def __post_init__(self) -> None:
        check_ranges(self)

    def opened(self, read: Callable[[str], Iterable[tuple[str, str]]]) -> Contamination:
        return self.index(chain.from_iterable(map(read, self.sets)))

    def __call__(self, document: Document, *, lent: Mapping[str, Any]) -> Verdict:
        raise AssertionError("it holds documents against sets that are read when it is opened")

    def index(self, texts: Iterable[tuple[str, str]]) -> Contamination:
        """Return what documents are held against, from (name of the evaluation set, text) pairs in any order."""
        numbers: dict[str, int] = {}
        counts: Counter[str] = Counter()
        short_counts: Counter[str] = Counter()
        runs: list[tuple[np.ndarray, int]] = []
        short: list[tuple[np.ndarray, int]] = []
        for name, text in texts:
            number = numbers.setdefault(name, len(numbers))
            hashes_N = word_hashes(text)
            is_short = hashes_N.size < self.ngram
            counts[name] += 1
            short_counts[name] += is_short
            if hashes_N.size > 0:
                (short if is_short else runs).append((ngram_hashes(hashes_N, min(hashes_N.size, self.ngram)), number))
        return Contamination(
            ngram=self.ngram,
            names=tuple(numbers),
            texts=tuple(counts[n] for n in numbers),
            short_texts=tuple(short_counts[n] for n in numbers),
            runs=_known(runs),
            short=_known(short),
        )


def _known(found: list[tuple[np.ndarray, int]]) -> KnownHashes:
    """Return every hash with the lowest number that it came with."""
    hashes = np.concatenate([h for h, _ in found] or [np.empty(0, dtype=np.uint64)])
    numbers = np.repeat(np.array([n for _, n in found], dtype=np.int32), [h.size for h, _ in found])
    order = np.lexsort((numbers, hashes))
    hashes_G, first = np.unique(hashes[order], return_index=True)
    return KnownHashes(hashes_G=hashes_G, names_G=numbers[order][first])
