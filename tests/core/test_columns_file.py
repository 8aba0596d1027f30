"""Lines by columns: what comes out is what went in, whatever it is; and small where numbers have few digits."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.core.columns_file import packed, unpacked

NUMBERS = st.floats(width=64) | st.floats(width=32) | st.decimals(-999, 999, places=3).map(float) | st.just(-0.0)
VALUES = st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=9) | st.lists(st.integers(), max_size=3)
LINES = st.lists(st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4), max_size=12)
COLUMNS = st.one_of(st.lists(kind, min_size=1, max_size=12) for kind in (NUMBERS, st.integers(), st.text(max_size=3)))


@pytest.fixture(autouse=True, scope="module")
def smallest_numbers():
    """They are numbers here, whatever a run in this process has set."""
    torch.set_flush_denormal(False)


def there_and_back(lines, facts=None):
    return unpacked(packed({"a": lines, "b": lines[:1], "none": []}, facts))


def same(one, other):
    return json.dumps(one) == json.dumps(other)


@given(LINES)
@settings(max_examples=25, deadline=None)
def test_any_lines_come_back_with_their_keys_in_order(lines):
    tables, facts = there_and_back(lines, {"say": "ü"})
    assert same(tables["a"], lines) and same(tables["b"], lines[:1]) and tables["none"] == [] and facts == {"say": "ü"}


@given(COLUMNS)
@settings(max_examples=25, deadline=None)
def test_a_column_of_one_kind_comes_back_to_the_bit(values):
    lines = [{"v": v} for v in values]
    assert same(there_and_back(lines)[0]["a"], lines)


@pytest.mark.parametrize("values", [[math.nan, math.inf, -math.inf], [0.0, -0.0], [2**62, -(2**62)], [1e300, 0.1], [True, 1]])
def test_values_that_are_no_plain_numbers_come_back_too(values):
    lines = [{"v": v} for v in values]
    assert same(there_and_back(lines)[0]["a"], lines)


def test_numbers_of_few_places_come_back():
    lines = [{"v": v} for v in (0.25, -3.125, 1234.567891, 2.0)]
    assert same(there_and_back(lines)[0]["a"], lines)


def test_numbers_of_few_digits_take_few_bytes():
    few = [{"step": n, "seconds": round(0.3 + (n * 7919 % 1000) / 1e6, 6), "loss": 2.0 - n / 10_000} for n in range(2000)]
    assert len(packed({"a": few}, None)) < 0.06 * sum(len(json.dumps(line)) for line in few)


@pytest.mark.parametrize("harmed", ["cut", "begun otherwise", "empty", "with a hole"])
def test_what_is_no_whole_file_is_said_to_be_none(harmed):
    raw = packed({"a": [{"v": n / 7} for n in range(99)]}, None)
    harm = {"cut": raw[:-9], "begun otherwise": b"x" + raw, "empty": b"", "with a hole": raw[:40] + raw[50:]}
    with pytest.raises(ValueError, match="not a whole xz file"):
        unpacked(harm[harmed])
