"""Columns from a file and of clusters, on documents that are handed over (the passes: tests/experiments/test_prepare.py)."""

import json

import pytest

from seedbed.columns.cluster import Cluster
from seedbed.columns.from_file import FromFile
from seedbed.core.errors import DataError
from seedbed.core.records import Document

WORDS = " ".join(f"word{n}" for n in range(60))


def _documents(*texts):
    return [Document(id=f"d{i}", text=text) for i, text in enumerate(texts)]


def test_a_document_is_labelled_with_the_first_that_it_nearly_repeats():
    part, documents = Cluster(), _documents(WORDS, "something else altogether", WORDS + " comet")
    found = part.read(documents, lent={})
    assert part.values(found, ids=[d.id for d in documents]) == ["d0", "d1", "d0"]


def _file(tmp_path, values):
    (tmp_path / "v.jsonl").write_text("".join(json.dumps({"id": k, "value": v}) + "\n" for k, v in values.items()))
    return FromFile(path=str(tmp_path / "v.jsonl"))


def test_values_are_joined_by_id_whatever_their_turn(tmp_path):
    part = _file(tmp_path, {"d1": 2, "d0": -0.5})
    assert part.values(part.read(_documents("a", "b"), lent={}), ids=["d0", "d1"]) == [-0.5, 2.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"d0": 1}, "'d1' has no value"),
        ({"d0": 1, "d1": 2, "d7": 3}, "'d7' belongs to no document"),
        ({"d0": 1, "d1": "one"}, "mixes numbers and labels"),
    ],
)
def test_a_file_that_does_not_fit_is_told(tmp_path, values, said):
    part = _file(tmp_path, values)
    with pytest.raises(DataError, match=said):
        part.values(part.read(_documents("a", "b"), lent={}), ids=["d0", "d1"])
