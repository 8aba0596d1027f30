import numpy as np
import pytest
from scipy import stats

from seedbed.experiments.study.statistics import contrast, holm, judged, minimum_detectable


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, None, 0.9]) == [pytest.approx(0.06), None, pytest.approx(1.0)], "a missing test still counts as one"


def test_interval_and_p_are_the_paired_t_test_s():
    differences = {0: -0.02, 1: -0.035, 2: -0.01, 3: -0.03}
    found = contrast("nca", "scratch", differences, alpha=0.05)
    expected = stats.ttest_1samp(list(differences.values()), 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.interval_equivalence == pytest.approx(tuple(expected.confidence_interval(0.90)))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.020, -0.021, -0.019], "better"),
        ([0.020, 0.021, 0.019], "worse"),
        ([0.0004, -0.0003, 0.0001], "equivalent"),
        ([-0.05, 0.04, 0.01], "undecided"),
        ([-0.5], "undecided"),
        ([], "undecided"),
    ],
)
def test_the_four_verdicts(differences, verdict):
    one = contrast("a", "b", dict(enumerate(differences)), alpha=0.05)
    assert judged([one], alpha=0.05, margin=0.005)[0].verdict == verdict


def test_where_more_is_better_the_same_difference_is_worse():
    one = contrast("a", "b", {0: -0.020, 1: -0.021, 2: -0.019}, alpha=0.05)
    assert [judged([one], alpha=0.05, margin=0.005, better=b)[0].verdict for b in ("less", "more")] == ["better", "worse"]


def test_a_difference_that_is_certain_but_tiny_is_better_not_equivalent():
    one = contrast("a", "b", {0: -0.001, 1: -0.0011, 2: -0.0009}, alpha=0.05)
    assert judged([one], alpha=0.05, margin=0.005)[0].verdict == "better"


def test_two_contrasts_need_stronger_evidence_than_one():
    one = contrast("a", "b", {0: -0.02, 1: -0.028, 2: -0.015}, alpha=0.05)
    assert judged([one], alpha=0.05, margin=0.001)[0].verdict == "better"
    weak = contrast("c", "b", {0: -0.02, 1: 0.03, 2: 0.001}, alpha=0.05)
    assert judged([one, weak], alpha=0.05, margin=0.001)[0].verdict == "undecided"


def test_equal_differences_have_no_spread_and_a_certain_verdict():
    same = contrast("a", "b", {0: 0.0, 1: 0.0}, alpha=0.05)
    assert same.p == 1.0 and judged([same], alpha=0.05, margin=0.01)[0].verdict == "equivalent"


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_detectable_difference_is_found_four_times_in_five(n):
    shift = minimum_detectable(1.0, n=n, alpha=0.05)
    rng = np.random.default_rng(n)
    d = rng.normal(shift, 1.0, (8000, n))
    t = d.mean(1) / (d.std(1, ddof=1) / np.sqrt(n))
    assert (abs(t) > stats.t.ppf(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.02)


def test_many_seeds_detect_2_8_standard_errors():
    assert minimum_detectable(1.0, n=400, alpha=0.05) == pytest.approx(2.8 / 20, rel=0.01)
    assert minimum_detectable(0.0, n=3, alpha=0.05) == 0.0


def test_the_false_positive_rate_of_a_a_studies_is_alpha():
    """The protocol card's check: the same arm against itself, many times; Holm over two contrasts."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(600):
        pair = [contrast(a, "c", dict(enumerate(rng.normal(0, 1, 3))), alpha=0.05) for a in "ab"]
        wrong += any(c.verdict in ("better", "worse") for c in judged(pair, alpha=0.05, margin=1e-6))
    assert wrong / 600 == pytest.approx(0.05, abs=0.03)
