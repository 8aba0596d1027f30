"""Near-duplicates: what a signature estimates, whom a document is compared with, that what comes later changes nothing."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError
from seedbed.curate.near_duplicates import NearDuplicates
from seedbed.curate.words import ngram_hashes, word_hashes

EMPTY = 0xFFFFFFFF
SMALL = {"permutations": 4, "bands": 2}
# Few values, so that bands agree often; some documents without words.
SIGNATURES = st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4) | st.just([EMPTY] * 4), max_size=25)


def _array(rows):
    return np.array(rows, dtype=np.uint32).reshape(-1, 4)


def _text(*ranges):
    return " ".join(f"w{i}" for r in ranges for i in r)


def _pair(number, *, shared, own):
    """Two texts with `shared` words in common and `own` words each; no word of another pair."""
    ranges = (range(shared + own), [*range(shared), *range(shared + own, shared + 2 * own)])
    return [" ".join(f"pair{number}_{i}" for i in r) for r in ranges]


def _jaccard(a, b, n):
    a, b = ({*ngram_hashes(word_hashes(t), n).tolist()} for t in (a, b))
    return len(a & b) / len(a | b)


def test_a_copy_is_found_and_another_text_is_not():
    part = NearDuplicates()
    texts = [_text(range(50)), _text(range(100, 150)), _text(range(50)).upper().replace(" ", "\n"), ""]
    found = part.find(np.stack([part.signature(t) for t in texts]))
    assert found.tolist() == [-1, -1, 0, -1] and found.dtype == np.int64
    assert part.clusters(found).tolist() == [0, 1, 0, 3]


def test_one_changed_word_of_two_hundred_is_found_and_every_tenth_changed_is_not():
    part = NearDuplicates()
    words = [f"w{i}" for i in range(200)]
    once = ["x" if i == 100 else w for i, w in enumerate(words)]
    often = ["x" if i % 10 == 0 else w for i, w in enumerate(words)]
    texts = [" ".join(w) for w in (words, once, often)]
    assert _jaccard(texts[0], texts[1], 5) > 0.94 and _jaccard(texts[0], texts[2], 5) < 0.4
    assert part.find(np.stack([part.signature(t) for t in texts])).tolist() == [-1, 0, -1]


def test_texts_without_words_have_the_largest_signature_and_repeat_nothing():
    part = NearDuplicates()
    assert part.signature(" . ").tolist() == [EMPTY] * 128 == part.signature("").tolist()
    assert part.find(np.stack([part.signature("")] * 3)).tolist() == [-1, -1, -1]


def test_a_text_shorter_than_a_run_is_one_run():
    part = NearDuplicates()
    np.testing.assert_array_equal(part.signature("Thank you!"), part.signature("thank you"))
    assert (part.signature("thank you") != part.signature("you thank")).mean() > 0.9
    assert (part.signature("thank you") != part.signature("thank you all")).mean() > 0.9
    assert EMPTY not in part.signature("thank you")


def test_a_signature_is_the_smallest_of_every_hash_function():
    bits = [int(b) for b in stream(0, "minhash").bit_generator.random_raw(16)]
    grams = [int(g) >> 32 for g in ngram_hashes(word_hashes("a b c d"), 2)]
    lowest = [min((a * g + b) % 2**64 >> 32 for g in grams) for a, b in zip(bits[0::2], bits[1::2], strict=True)]
    assert NearDuplicates(ngram=2, permutations=8, bands=2).signature("a b c d").tolist() == lowest


def test_signatures_are_those_of_every_machine():
    """Written down on 2026-11-25; signatures on disk depend on them."""
    signature = NearDuplicates().signature("the quick brown fox jumps over the lazy dog")
    assert sha256(signature.astype("<u4").tobytes()).hexdigest()[:16] == "52fe38f92f01dc1d"


@pytest.mark.parametrize(("shared", "own"), [(200, 100), (320, 40), (360, 20)])
def test_the_estimate_is_unbiased_and_spreads_as_independent_minima_do(shared, own):
    part, true = NearDuplicates(ngram=1), shared / (shared + 2 * own)
    estimates = []
    for i in range(150):
        a, b = _pair(i, shared=shared, own=own)
        estimates.append((part.signature(a) == part.signature(b)).mean())
    error = (true * (1 - true) / 128) ** 0.5
    assert _jaccard(a, b, 1) == true
    assert abs(np.mean(estimates) - true) < 3.5 * error / 150**0.5
    assert 0.75 * error < np.std(estimates) < 1.25 * error


def test_pairs_are_compared_as_often_as_the_s_curve_says():
    """At a threshold below any estimate, whatever is compared is found: pairs of Jaccard 0.6, 0.7, 0.8 and 0.9."""
    part = NearDuplicates(ngram=1, threshold=0.01)
    shares = []
    for true, own in ((0.6, 80), (0.7, 60), (0.8, 40), (0.9, 20)):
        pairs = [_pair(i, shared=400 - 2 * own, own=own) for i in range(150)]
        found = [part.find(np.stack([part.signature(t) for t in pair]))[1] == 0 for pair in pairs]
        expected = part.candidate_probability(true)
        assert abs(np.mean(found) - expected) < 3.5 * max(0.01, (expected * (1 - expected) / 150) ** 0.5), true
        shares.append(np.mean(found))
    assert shares == sorted(shares) and shares[0] < 0.5 < shares[1] < shares[2] < shares[3]


def test_the_s_curve_has_the_numbers_of_the_docstring():
    assert [round(NearDuplicates().candidate_probability(s), 2) for s in (0.7, 0.8)] == [0.61, 0.95]
    assert round(NearDuplicates().candidate_probability(0.9), 4) == 0.9999


@pytest.mark.parametrize(
    ("threshold", "equal", "found"), [(0.5, 2, True), (0.51, 2, False), (0.75, 3, True), (0.76, 3, False), (1.0, 4, True)]
)
def test_the_estimate_must_reach_the_threshold(threshold, equal, found):
    rows = _array([[7, 7, 7, 7], [7] * equal + [9] * (4 - equal)])
    assert NearDuplicates(threshold=threshold, **SMALL).find(rows).tolist() == [-1, 0 if found else -1]


def test_a_threshold_is_the_decimal_number_that_was_written():
    """In floats 0.07 * 100 is 7.000000000000001, which would ask for 8 minima."""
    rows = np.arange(200, dtype=np.uint32).reshape(2, 100)
    rows[1, :7] = rows[0, :7]
    assert NearDuplicates(threshold=0.07, permutations=100, bands=100).find(rows).tolist() == [-1, 0]
    assert NearDuplicates(threshold=0.071, permutations=100, bands=100).find(rows).tolist() == [-1, -1]


def test_a_dropped_document_drops_no_others():
    """The second repeats the first; the third repeats only the second, which is gone, so it stays."""
    rows = _array([[1, 1, 2, 2], [1, 1, 3, 3], [4, 4, 3, 3]])
    part = NearDuplicates(threshold=0.5, **SMALL)
    assert part.find(rows).tolist() == [-1, 0, -1]
    assert part.find(rows[1:]).tolist() == [-1, 0]


def test_bands_are_asked_in_order_and_each_for_its_first_kept_document():
    rows = _array([[1, 1, 2, 2], [3, 3, 4, 4], [1, 1, 4, 4], [3, 3, 9, 9], [3, 3, 9, 9]])
    assert NearDuplicates(threshold=0.5, **SMALL).find(rows).tolist() == [-1, -1, 0, 1, 1]
    # At 1.0 the fourth is kept, and the fifth meets it in the second band: in the first the second document stands in front.
    assert NearDuplicates(threshold=1.0, **SMALL).find(rows).tolist() == [-1, -1, -1, -1, 3]


@given(SIGNATURES, SIGNATURES, st.sampled_from([0.5, 0.75, 1.0]))
@settings(max_examples=200, deadline=None)
def test_documents_added_later_change_no_verdict(before, after, threshold):
    part = NearDuplicates(threshold=threshold, **SMALL)
    np.testing.assert_array_equal(part.find(_array(before)), part.find(_array(before + after))[: len(before)])


@given(SIGNATURES, st.sampled_from([0.5, 0.75, 1.0]))
@settings(max_examples=200, deadline=None)
def test_verdicts_are_those_of_a_plain_loop(rows, threshold):
    first_kept, expected = {}, []
    for i, row in enumerate(rows):
        buckets = [(band, *row[2 * band : 2 * band + 2]) for band in range(2)]
        earlier = [first_kept[b] for b in buckets if b in first_kept] if row != [EMPTY] * 4 else []
        near = [e for e in earlier if sum(x == y for x, y in zip(row, rows[e], strict=True)) >= 4 * threshold]
        expected.append(near[0] if near else -1)
        if not near and row != [EMPTY] * 4:
            for bucket in buckets:
                first_kept.setdefault(bucket, i)
    part = NearDuplicates(threshold=threshold, **SMALL)
    found = part.find(_array(rows))
    assert found.tolist() == expected
    kept = part.clusters(found)
    np.testing.assert_array_equal(kept[kept], kept)  # who stands for others is kept


def test_signatures_may_be_mapped_from_a_read_only_file(tmp_path):
    rows = stream(0, "mapped").integers(0, 3, (500, 4)).astype(np.uint32)
    rows.tofile(tmp_path / "signatures")
    mapped = np.memmap(tmp_path / "signatures", dtype=np.uint32, mode="r", shape=(500, 4))
    part = NearDuplicates(**SMALL)
    np.testing.assert_array_equal(part.find(mapped), part.find(rows))
    assert (part.find(rows) >= 0).any()


def test_more_hash_functions_begin_with_the_same_ones():
    text = _text(range(30))
    few, many = (NearDuplicates(permutations=p).signature(text) for p in (64, 128))
    np.testing.assert_array_equal(few, many[:64])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"threshold": 0.0}, r"threshold must lie in 0\.\.1 \(0 excluded\), got 0"),
        ({"threshold": 1.5}, r"threshold must lie in 0\.\.1 \(0 excluded\), got 1.5"),
        ({"threshold": float("nan")}, "threshold"),
        ({"ngram": 0}, "ngram must lie in 1"),
        ({"bands": 0}, "bands must lie in 1"),
        ({"permutations": 100}, "multiple of bands.*got 100 and 16"),
        ({"permutations": 0}, "permutations must lie in 1"),
    ],
)
def test_settings_that_cannot_be_right_are_refused_by_name(wrong, says):
    with pytest.raises(ConfigError, match=says):
        NearDuplicates(**wrong)


@pytest.mark.parametrize("wrong", [np.zeros((3, 64), np.uint32), np.zeros((3, 128), np.int64), np.zeros(128, np.uint32)])
def test_signatures_of_other_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="make them with the same settings"):
        NearDuplicates().find(wrong)
