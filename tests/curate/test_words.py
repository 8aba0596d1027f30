"""Words and runs of words: what counts as one, that places come back, that equal means equal and order matters."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.curate.words import ngram_hashes, word_hashes, words

SPACELESS = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3000-\u9fff\ua9e0-\uaa7f\uf900-\ufaff\uff66-\uff9f\U000116d0-\U0003ffff]")


def _texts(text):
    found = words(text)
    return [text.lower()[a:b] for a, b in zip(found.starts_N, found.stops_N, strict=True)]


def test_words_are_runs_of_letters_digits_and_underscores():
    assert _texts("It's 3 o'clock:snake_case,Ünder\tßtraße") == ["it", "s", "3", "o", "clock", "snake_case", "ünder", "ßtraße"]
    assert _texts("") == _texts(" .,;\n\ud800") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("我爱Python3吗", ["我", "爱", "python3", "吗"]),
        ("ねこ カメラ", ["ね", "こ", "カ", "メ", "ラ"]),
        ("ไทยไป", ["ไ", "ท", "ย", "ไ", "ป"]),
        ("ລາວ", ["ລ", "າ", "ວ"]),
        ("한국어 말", ["한국어", "말"]),  # Korean has spaces
        ("𠀀𠀁", ["𠀀", "𠀁"]),  # behind the first 65,536 code points
    ],
)
def test_letters_of_scripts_without_spaces_are_words_by_themselves(text, found):
    assert _texts(text) == found


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_elsewhere_words_are_those_of_a_regular_expression(text):
    text = SPACELESS.sub(" ", text)
    assert _texts(text) == re.findall(r"\w+", text.lower())


@given(st.lists(st.text("abcñ", min_size=1, max_size=3), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_equal_words_and_no_others_have_equal_hashes(given_words):
    hashes = word_hashes(" ".join(given_words)).tolist()
    assert len(set(hashes)) == len(set(given_words))
    assert len(set(zip(hashes, given_words, strict=True))) == len(set(given_words))


def test_case_and_what_stands_between_words_do_not_matter():
    np.testing.assert_array_equal(word_hashes("To be, or NOT to be"), word_hashes("to\nbe or...not TO be"))


@given(st.text("aİẞ x.", max_size=20), st.data())
@settings(max_examples=100, deadline=None)
def test_an_excerpt_is_cut_from_the_text_as_it_was_written(text, data):
    found = words(text)
    count = found.hashes_N.size
    if count:
        first = data.draw(st.integers(0, count - 1))
        length = data.draw(st.integers(1, count - first))
        excerpt = found.excerpt(first, count=length)
        assert excerpt in text
        np.testing.assert_array_equal(word_hashes(excerpt), found.hashes_N[first : first + length])


def test_an_excerpt_keeps_case_and_punctuation_also_behind_a_letter_that_grows_in_lower_case():
    assert words("so: The END, he said").excerpt(1, count=2) == "The END"
    grown = words("Zİ İİ. A; B")  # "zi̇ i̇i̇. a; b", whose dots end words
    assert [grown.excerpt(i, count=2) for i in range(4)] == ["Zİ İ", "İİ", "İ. A", "A; B"]


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_runs_are_equal_exactly_where_their_words_are(numbers, n):
    words_N = word_hashes(" ".join("abc"[i] for i in numbers))
    runs = [tuple(numbers[i : i + n]) for i in range(len(numbers) - n + 1)]
    hashes = ngram_hashes(words_N, n).tolist()
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))


def test_the_order_of_words_in_a_run_matters():
    assert ngram_hashes(word_hashes("dog bites man"), 3) != ngram_hashes(word_hashes("man bites dog"), 3)


def test_hashes_are_those_of_every_machine():
    """Written down on 2026-11-25; prepared corpora depend on them, so a change needs a new name."""
    assert [f"{h:016x}" for h in word_hashes("Ünder 我")] == ["dd39a3bf706f3735", "dba4348e1d7e6136"]
    assert [f"{h:016x}" for h in ngram_hashes(word_hashes("to be or not"), 3)] == ["a005e619c0ff4901", "838615cc09fcab2a"]


def test_a_hash_is_fnv_1a_over_code_points_then_mixed():
    value = 0xCBF29CE484222325
    for c in "été":
        value = (value ^ ord(c)) * 0x100000001B3 % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        value = (value ^ value >> shift) * factor % 2**64
    assert word_hashes("ÉTÉ").tolist() == [value]
