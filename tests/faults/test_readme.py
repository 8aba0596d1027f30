"""The table of tests/data/faults/README.md, line by line: the same inputs, the same commands, what a user expects."""

import json
import re

import pytest

from tests.command_line import fails, seedbed
from tests.faults.conftest import INPUTS


def bits(said):
    return float(re.search(r"bits_per_byte: ([\d.]+)", said)[1])


def test_every_line_of_the_table_is_tried_here():
    named = set(re.findall(r"[a-z0-9_]+\.(?:yaml|txt|parquet|jsonl|json)", (INPUTS / "README.md").read_text()))
    with open(__file__, encoding="utf-8") as file:
        tried = file.read()
    assert named >= {p.name for p in INPUTS.iterdir()} - {"README.md", "words.txt", "word.json"}
    assert all(name in tried for name in named - {"bert.json"})


def test_a_stride_lies_within_a_row(here, one_run):
    for stride in (0, 65, 128):
        fails(2, "run", "stride.yaml", "--set", f"evaluate.text.stride={stride}", "--out", "S", cwd=here, saying="stride")
    assert not (here / "S").exists()
    fails(2, "eval", "RUN", "--text", "words.txt", "--stride", 65, cwd=one_run, saying="1..64")
    disjoint = bits(seedbed("eval", "RUN", "--text", "words.txt", cwd=one_run).worked())
    assert bits(seedbed("eval", "RUN", "--text", "words.txt", "--stride", 64, cwd=one_run).worked()) == disjoint
    assert bits(seedbed("eval", "RUN", "--text", "words.txt", "--stride", 32, cwd=one_run).worked()) <= disjoint


@pytest.mark.parametrize("file", ["lines_lf.txt", "lines_crlf.txt"])
def test_windows_line_ends_are_empty_lines_too(here, file):
    from seedbed.sources.text import Text

    assert seedbed("validate", "nca-demo", "--scale", "smoke", "--corpus", file, cwd=here).returncode == 0
    sections = Text(path=str(here / file)).all_documents()
    assert len(sections) == 17
    assert "".join(s.text for s in sections).encode() == (here / file).read_bytes()


def test_a_date_that_nobody_asked_for_is_not_read(here):
    seedbed("prepare", "far_ts.parquet", "--out", "X", cwd=here).worked()


def test_a_far_date_that_was_asked_for_is_told_or_kept(here):
    fails(
        3,
        "prepare",
        "far_ts.parquet",
        "--meta",
        "when=crawled",
        "--out",
        "Y",
        cwd=here,
        saying="far_ts.parquet, record 1: the column 'crawled'",
    )
    said = fails(3, "prepare", "far_ts.parquet", "--meta", "when=ts", "--out", "Z", cwd=here, saying="known:")
    assert "crawled" in said


def test_a_column_twice_is_refused_as_in_every_format(here):
    fails(3, "prepare", "dupcol.parquet", "--out", "X", cwd=here, saying="twice")


def test_a_text_that_is_null_is_said_to_be(here):
    said = fails(3, "prepare", "null.jsonl", "--out", "X", cwd=here, saying="null.jsonl, line 1")
    assert "null" in said.replace("null.jsonl", "") and "did you mean" not in said


def test_a_lossy_tokenizer_is_told_with_the_number(here):
    said = seedbed("run", "lossy.yaml", "--out", "L", "--threads", 1, cwd=here).worked()
    assert said.count("documents back changed") == 2  # before the first step, and beside the number
    test = json.loads((here / "L/final.json").read_text())["evaluations"]["text"]["numbers"]
    assert test["changed_documents"] == test["documents"] > 0
    assert "documents back changed" in seedbed("eval", "L", "--text", "words.txt", cwd=here).worked()


def test_equal_documents_share_a_side_and_that_is_said(here):
    fails(
        3,
        "run",
        "one.yaml",
        "--set",
        "streams.text.source.path=same3.jsonl",
        "--out",
        "S",
        cwd=here,
        saying="equal texts stand on one side",
    )


def test_advice_can_be_followed_where_it_is_given(here):
    said = fails(2, "prepare", "words.txt", "--tokenizer", "padunk.json", "--out", "X", cwd=here, saying="--boundary")
    token = said.rsplit(" ", 1)[1].strip()
    seedbed(
        "prepare", "words.txt", "--tokenizer", "padunk.json", "--boundary", token, "--on-error", "skip", "--out", "X", cwd=here
    )
    assert json.loads((here / "X/manifest.json").read_text())["tokenizer"]["part"]["boundary"] == token


def test_a_tokenizer_of_one_long_word_is_trained(here):
    words = ("train", "one_word.txt", "--kind", "bpe", "--vocab-size", 600, "--out", "t.json")
    assert "lossless_documents: 1" in seedbed("tokenizer", *words, cwd=here).worked()


def test_a_byte_order_mark_is_no_hindrance(here):
    for name in ("bert.json", "stride.yaml"):
        (here / name).write_bytes(b"\xef\xbb\xbf" + (here / name).read_bytes())
    assert "lossless_documents" in seedbed("tokenizer", "check", "bert.json", "words.txt", cwd=here).stdout
    seedbed("validate", "stride.yaml", "--set", "evaluate.text.stride=32", cwd=here).worked()
