"""An order by a column, on values that can be sorted by eye."""

import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.records import Document
from seedbed.orders.by_column import ByColumn


def _order(values, **settings):
    part = ByColumn(column="score", **settings)
    read = part.read([Document(id=str(i), meta={"score": v}) for i, v in enumerate(values)], lent={})
    return part.arrange(read, seed=0).tolist()


def test_equal_values_stay_as_they_stand_whichever_end_comes_first():
    assert _order([2.0, -1.0, 2.0, 0.5]) == [1, 3, 0, 2]
    assert _order([2.0, -1.0, 2.0, 0.5], descending=True) == [0, 2, 3, 1]


def test_labels_are_sorted_by_their_alphabet():
    assert _order(["b", "a", "c", "a"]) == [1, 3, 0, 2]
    assert _order(["b", "a", "c", "a"], descending=True) == [2, 0, 1, 3]


def test_without_a_column_it_says_what_it_needs():
    with pytest.raises(ConfigError, match="by_column needs `column`"):
        ByColumn().columns  # noqa: B018
