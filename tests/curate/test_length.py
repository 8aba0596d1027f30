"""Bounds on a document's bytes."""

import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.records import Document, Keep
from seedbed.curate.length import Length


def _reason(text, **settings):
    """Return why a document is dropped, or nothing."""
    verdict = Length(**settings)(Document(id="d", text=text), lent={})
    return "" if verdict == Keep() else verdict.reason


def test_by_default_only_empty_documents_are_dropped():
    assert _reason("") == "shorter than 1 bytes"
    assert _reason(" ") == _reason("x" * 10**6) == ""


def test_bounds_are_in_bytes_and_allowed_themselves():
    assert _reason("äö", least_bytes=4, most_bytes=4) == ""
    assert _reason("äö", least_bytes=5) == "shorter than 5 bytes"
    assert _reason("äö", most_bytes=3) == "longer than 3 bytes"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"least_bytes": -1}, r"least_bytes must lie in 0\.\.2\^50, got -1"),
        ({"most_bytes": 0, "least_bytes": 0}, r"most_bytes must lie in 1\.\.2\^50, got 0"),
        ({"least_bytes": 5, "most_bytes": 4}, r"no less than least_bytes \(5\), got 4"),
    ],
)
def test_bounds_that_keep_nothing_are_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        Length(**wrong)
