"""Refiners in a preparation: what they may touch, and what of their work is told. Their own tests are beside this file."""

import json

import numpy as np
import pytest

from seedbed.core.errors import ConfigError, DataError
from seedbed.experiments.prepare.passes import make_column, make_order, open_prepared
from seedbed.experiments.prepare.prepare import prepare
from seedbed.experiments.prepare.units import WORK

CODE = """
from dataclasses import dataclass, replace

import numpy as np

from seedbed.core.protocols import ColumnKind, OrderKind, Refiner
from seedbed.core.records import Drop, Keep, Rewrite


@dataclass(frozen=True, kw_only=True)
class NoSevens(Refiner):
    neutral = {"digit": ""}
    digit: str = "7"

    def __call__(self, document, *, lent):
        if self.digit in document.text.split():
            return Drop("has the digit", self.digit)
        if "comet" in document.text:
            return Rewrite(replace(document, id="mine", text=document.text.replace("comet", "star")), "comets")
        return Keep()


@dataclass(frozen=True, kw_only=True)
class TooFew(ColumnKind):
    neutral = "it is wrong"

    def read(self, documents, *, lent):
        return np.zeros(len(documents) - 1)


@dataclass(frozen=True, kw_only=True)
class Twice(OrderKind):
    neutral = "it is wrong"

    def read(self, documents, *, lent):
        return np.arange(len(documents))

    def arrange(self, found_N, *, seed):
        return np.zeros_like(found_N)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDBED_ALLOW_LOCAL_CODE", "1")
    (tmp_path / "mine.py").write_text(CODE)
    words = [f"{' '.join(str((i * j) % 11) for j in range(1, 40))} text {i}" for i in range(40)]
    twice = [*words, *(f"{w} comet" for w in words)]  # of each a near duplicate, which may stand on another side
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in twice))
    return tmp_path


def _prepared(mine, name, **settings):
    shares = {"valid_share": 0.2, "test_share": 0.2}
    prepare([mine / "texts.jsonl"], mine / name, say=lambda line: None, **{**shares, **settings})
    return mine / name


def _side(folder, split):
    return {f.name: f.read_bytes() for f in folder.glob(f"{split}-*")}


@pytest.mark.parametrize("duplicates", ["keep", "exact", "near"])
def test_a_refiner_changes_what_is_trained_on_and_no_other_side(mine, duplicates):
    plain = _prepared(mine, "plain", duplicates=duplicates)
    refined = _prepared(mine, "refined", duplicates=duplicates, refine=[f"{mine}/mine.py:NoSevens"])
    for split in ("valid", "test"):
        assert _side(plain, split) == _side(refined, split) != {}
    before, after = (open_prepared(folder) for folder in (plain, refined))
    kept = {d.id: d.text for d in before.documents("train") if "7" not in d.text.split()}
    assert len(kept) < len(before.documents("train"))
    assert {d.id: d.text for d in after.documents("train")} == {i: t.replace("comet", "star") for i, t in kept.items()}
    assert not any(d.data["changed"] for d in after.documents("train")), "by the tokenizer, that is"


def test_what_is_dropped_and_rewritten_is_counted_and_listed(mine):
    folder = _prepared(mine, "out", valid_share=0, test_share=0, duplicates="keep", refine=[f"{mine}/mine.py:NoSevens"])
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    (reason,) = manifest["dropped"]
    assert reason == "has the digit" and manifest["dropped"][reason] == len(listed) and listed[0]["detail"] == "7"
    assert 0 < manifest["rewritten"]["comets"] == sum("star" in d.text for d in open_prepared(folder).documents("train"))
    assert json.loads((folder / "cost.json").read_text())["seconds"] > 0
    assert manifest["documents"] + manifest["dropped"][reason] == 80


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", r"NoSevens returned None for texts.jsonl:\d+; return Keep\(\), Drop\(reason\) or Rewrite"),
        ("return Rewrite('a new text', 'cleaned')", "with a whole Document"),
        ("1 / 0", r"NoSevens failed on texts.jsonl:\d+: ZeroDivisionError: .*mine.py, line 16.; mend it there"),
        ("lent['reader']", "KeyError: 'reader' .*names under `calls`"),
    ],
)
def test_what_a_refiner_of_ones_own_does_wrong_is_told_with_the_document(mine, body, said):
    old = "if self.digit in document.text.split():"
    (mine / "mine.py").write_text(CODE.replace(old, f"{body}\n        {old}"))
    with pytest.raises(ConfigError, match=said):
        _prepared(mine, "out", refine=[f"{mine}/mine.py:NoSevens"])


def test_parts_of_the_package_are_refiners_too(mine):
    (mine / "exam.txt").write_text(" ".join(str((3 * j) % 11) for j in range(1, 40)))
    few = {"refine": [{"kind": "decontaminate", "sets": [str(mine / "exam.txt")]}, {"kind": "length", "most_bytes": 88}]}
    plain, refined = _prepared(mine, "plain"), _prepared(mine, "refined", **few)
    assert _side(plain, "test") == _side(refined, "test")
    dropped = json.loads((refined / "manifest.json").read_text())["dropped"]
    assert set(dropped) == {"13-gram of an evaluation set", "longer than 88 bytes"}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("lenght", "refine.0.kind: curate has no part 'lenght'; did you mean 'length'"),
        ({"kind": "length", "most_bytes": 0}, "most_bytes"),
    ],
)
def test_a_refiner_that_does_not_fit_is_told_before_anything_is_read(mine, part, said):
    with pytest.raises(ConfigError, match=said):
        _prepared(mine, "out", refine=[part])
    assert not (mine / "out").exists()


def test_a_part_that_leaves_documents_out_or_names_one_twice_is_refused(mine):
    folder = _prepared(mine, "out")
    with pytest.raises(DataError, match="TooFew returned float64 of shape .79,. for 80 documents"):
        make_column(folder, "bad", f"{mine}/mine.py:TooFew")
    (mine / "mine.py").write_text(CODE.replace("np.zeros(len(documents) - 1)", "[1.0, 'a'] * 40"))
    with pytest.raises(DataError, match="TooFew mixes numbers and labels"):
        make_column(folder, "bad", f"{mine}/mine.py:TooFew")
    (mine / "mine.py").write_text(CODE.replace("np.zeros(len(documents) - 1)", "np.zeros(len(documents))"))
    make_column(folder, "mended", f"{mine}/mine.py:TooFew")
    make_column(folder, "bad", f"{mine}/mine.py:TooFew")  # nothing was kept of the first try
    with pytest.raises(ConfigError, match="no permutation"):
        make_order(folder, "bad", f"{mine}/mine.py:Twice")
    assert not (folder / "orders").exists()
    (mine / "mine.py").write_text(CODE.replace("np.zeros_like(found_N)", "found_N[::-1]"))
    with pytest.raises(Exception, match="beginnings of another order-bad; remove it"):
        make_order(folder, "bad", f"{mine}/mine.py:Twice")
    make_order(folder, "good", f"{mine}/mine.py:Twice")
    assert np.fromfile(folder / "orders/good/train.bin", "<i8")[-1] == 0
    assert not (folder / WORK).exists()
