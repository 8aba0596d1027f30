r"""Text to hashes of its words, and of runs of n words: what near-duplicates and contamination are counted in.

A word is a run of letters, digits and underscores of the lower-case text, the `\w+` of a regular expression. Scripts that put
no spaces between words (Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer) have no such runs, so there each letter counts
as a word, and 13 words are 13 letters. Vowel signs and accents that stand as characters of their own are no letters; they end a
word, as they do in `\w+`.
Hashes: Fowler, Noll and Vo (FNV-1a, 64 bits) over code points, then the finalizer of splitmix64; Karp and Rabin (1987),
"Efficient randomized pattern-matching algorithms", for runs. The same on every machine, up to what the Unicode version of the
Python in use calls a letter.
Letters: C characters of the lower-case text, N words, n words in a run.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from seedbed.core.compiled import compiled

# Of scripts written without spaces; first and last code point.
_WITHOUT_SPACES = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic repeat, closing and zero
    (0x3021, 0x30FF),  # numerals, hiragana, katakana
    (0x31F0, 0x31FF),  # katakana for Ainu
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # more Burmese
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # ideographs, for compatibility
    (0xFF66, 0xFF9F),  # katakana of half width
    (0x116D0, 0x116FF),  # still more Burmese
    (0x1AFF0, 0x1B16F),  # rare kana
    (0x20000, 0x3FFFF),  # rare ideographs
)
_OUTSIDE, _PART, _ALONE = 0, 1, 2  # what a character is: in no word, a part of one, one by itself

_FNV_START, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_BASE = np.uint64(0xD1342543DE82EF95)  # of the polynomial; any odd number with scattered bits


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of a text, in order; word i is `text.lower()[starts_N[i] : stops_N[i]]`."""

    text: str
    hashes_N: np.ndarray  # uint64
    starts_N: np.ndarray  # int64, places in the lower-case text
    stops_N: np.ndarray

    def excerpt(self, first: int, *, count: int) -> str:
        """Return the text from word `first` on, `count` words long, in its own case and with what stands between them."""
        start, stop = int(self.starts_N[first]), int(self.stops_N[first + count - 1])
        if len(self.text.lower()) != len(self.text):  # the Turkish I with a dot becomes two characters
            places = np.cumsum([0, *(len(c.lower()) for c in self.text)])
            start, stop = np.searchsorted(places, (start, stop)).tolist()
        return self.text[start:stop]


def words(text: str) -> Words:
    """Return every word of the text with its place."""
    # A number for every character, whatever the text holds; half characters (surrogates) are in no word.
    codes_C = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), dtype="<u4")
    hashes_N, starts_N, stops_N = _scan(codes_C, _kinds())
    return Words(text=text, hashes_N=hashes_N, starts_N=starts_N, stops_N=stops_N)


def word_hashes(text: str) -> np.ndarray:
    """Return a uint64 for every word, in order.

    >>> len(word_hashes("It's 3 o'clock, snake_case"))
    6
    """
    return words(text).hashes_N


def ngram_hashes(words_N: np.ndarray, n: int) -> np.ndarray:
    """Return a uint64 for every run of n words, N - n + 1 of them; none if there are fewer words."""
    grams = np.empty(max(0, words_N.size - n + 1), dtype=np.uint64)
    _roll(words_N, n, grams)
    return grams


@cache
def _kinds() -> np.ndarray:
    """Say of every code point what it is; 1.1 MB, made in a fifth of a second when first needed."""
    kinds = np.array([_PART if chr(i).isalnum() else _OUTSIDE for i in range(0x110000)], dtype=np.uint8)
    for first, last in _WITHOUT_SPACES:
        kinds[first : last + 1] *= _ALONE
    kinds[ord("_")] = _PART
    return kinds


@compiled(inline="always")
def _mix(bits):
    """The finalizer of splitmix64: a bijection of 64-bit words that scatters neighboring inputs."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@compiled
def _scan(codes_C, kinds):
    """Return hash, start and stop of every word."""
    count, before = 0, _OUTSIDE
    for i in range(codes_C.size):  # counted first, since room for as many words as characters costs more than this
        kind = kinds[codes_C[i]]
        count += (kind == _ALONE) | ((kind == _PART) & (before != _PART))
        before = kind
    hashes_N = np.empty(count, dtype=np.uint64)
    starts_N, stops_N = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    i = 0
    for word in range(count):
        while kinds[codes_C[i]] == _OUTSIDE:
            i += 1
        starts_N[word] = i
        value = (_FNV_START ^ np.uint64(codes_C[i])) * _FNV_PRIME
        joins = kinds[codes_C[i]] == _PART
        i += 1
        while joins and i < codes_C.size and kinds[codes_C[i]] == _PART:
            value = (value ^ np.uint64(codes_C[i])) * _FNV_PRIME
            i += 1
        hashes_N[word], stops_N[word] = _mix(value), i
    return hashes_N, starts_N, stops_N


@compiled
def _roll(words_N, n, grams):
    """Fill in the sum of word[i + k] * base^(n - 1 - k), modulo 2^64 and mixed, for every i."""
    leaving = np.uint64(1)  # base^n: what the word that stood in front has been multiplied by
    for _ in range(n):
        leaving *= _BASE
    value = np.uint64(0)
    for i in range(words_N.size):
        value = value * _BASE + words_N[i]
        if i >= n:
            value -= leaving * words_N[i - n]
        if i >= n - 1:
            grams[i - n + 1] = _mix(value)
