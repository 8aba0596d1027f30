"""Texts as they come: line ends, marks, values beside the text, what a tokenizer loses, one word without an end, nothing."""

import csv
import datetime
import io
import json
import math
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedbed.core.deaf import listening
from seedbed.experiments.prepare import tokenizing
from seedbed.sources.text import Text
from tests.command_line import fails, seedbed

BOM = b"\xef\xbb\xbf"
PARAGRAPHS = [f"Paragraph {n} stands by itself.\nIt has two lines." for n in range(9)]


# Line ends.


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("empty", ["", " ", "\t "])
def test_an_empty_line_is_one_whatever_ends_lines(tmp_path, end, empty):
    text = f"\n{empty}\n".join(PARAGRAPHS).replace("\n", end)
    (tmp_path / "x.txt").write_bytes(text.encode())
    sections = Text(path=str(tmp_path / "x.txt"), section_bytes=10).all_documents()
    assert len(sections) == len(PARAGRAPHS)
    assert "".join(s.text for s in sections) == text


# Values beside the text, in every format.


def _as_parquet(columns, file):
    pq.write_table(pa.table(columns), file)


def _cannot_be_held():
    """Columns that Python or JSON cannot hold: far dates, nanoseconds, lists of them, binary, halves."""
    far = 2**62
    return {
        "date": pa.array([far, far], pa.timestamp("us")),
        "nano": pa.array([1, 2], pa.timestamp("ns")),
        "span": pa.array([far, far], pa.duration("us")),
        "zone": pa.array([far, 0], pa.timestamp("ms", tz="UTC")),
        "list": pa.array([[far], [1]], pa.list_(pa.timestamp("us"))),
        "raw": pa.array([b"\xff", b"\x00"], pa.binary()),
        "number": pa.array([math.nan, math.inf], pa.float64()),
        "deep": pa.array([{"a": far}, {"a": 0}], pa.struct([("a", pa.timestamp("us"))])),
    }


@pytest.mark.parametrize("name", _cannot_be_held())
def test_a_column_that_nobody_asked_for_is_not_read(tmp_path, name):
    _as_parquet({"text": ["one text", "another text"], name: _cannot_be_held()[name]}, tmp_path / "x.parquet")
    seedbed("prepare", "x.parquet", "--out", "P", cwd=tmp_path).worked()
    assert json.loads((tmp_path / "P/manifest.json").read_text())["documents"] == 2
    done = seedbed("prepare", "x.parquet", "--meta", f"asked={name}", "--out", "Q", cwd=tmp_path)
    if done.returncode:
        assert "x.parquet, record 1" in done.failed(3)
        assert name in done.stderr
        seedbed("prepare", "x.parquet", "--meta", f"asked={name}", "--on-error", "skip", "--out", "R", cwd=tmp_path)


@pytest.mark.parametrize("value", ["NaN", "1e999", "-Infinity", "1" * 5000, '"\\ud800"', "[[[[]]]]", '{"a": {}}'])
@pytest.mark.parametrize("end", ["jsonl", "json"])
def test_values_of_json_that_nobody_asked_for_are_no_hindrance(tmp_path, value, end):
    line = f'{{"text": "one text", "beside": {value}}}'
    (tmp_path / f"x.{end}").write_text(line + "\n")
    seedbed("prepare", f"x.{end}", "--out", "P", cwd=tmp_path).worked()


# One rule for doubles in every format.


def test_a_key_twice_is_refused_in_every_format(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "text": "b"}\n')
    (tmp_path / "x.json").write_text('[{"text": "a", "text": "b"}]')
    (tmp_path / "x.csv").write_text("text,text\na,b\n")
    _as_parquet_twice(tmp_path / "x.parquet")
    for end in ("jsonl", "json", "csv", "parquet"):
        said = fails(3, "prepare", f"x.{end}", "--out", "P", cwd=tmp_path, saying=f"x.{end}")
        assert "it has 'text' twice" in said, said


def _as_parquet_twice(file):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), file)


# A key that is there and holds none.


def test_an_empty_text_is_said_to_be_one_and_no_key_is_advised(tmp_path):
    for end, content in {
        "jsonl": '{"text": null, "body": "a"}\n',
        "json": '[{"text": null, "body": "a"}]',
    }.items():
        (tmp_path / f"x.{end}").write_text(content)
        said = fails(3, "prepare", f"x.{end}", "--out", "P", cwd=tmp_path, saying="null")
        assert "did you mean 'text'" not in said
    _as_parquet({"text": pa.array([None], pa.string()), "body": ["a"]}, tmp_path / "x.parquet")
    assert "did you mean 'text'" not in fails(3, "prepare", "x.parquet", "--out", "P", cwd=tmp_path, saying="null")
    (tmp_path / "y.jsonl").write_text('{"texts": "a"}\n')
    assert "did you mean 'texts'?" in fails(3, "prepare", "y.jsonl", "--out", "P", cwd=tmp_path)


def test_every_command_that_reads_records_takes_the_key_of_their_text(one_run, tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"body": f"Text number {n}."}) + "\n" for n in range(9)))
    key = ("--text-key", "body")
    for words in (
        ["prepare", "x.jsonl", "--out", "P"],
        ["tokenizer", "check", "bytes", "x.jsonl"],
        ["tokenizer", "train", "x.jsonl", "--vocab-size", 260, "--out", "t.json"],
        ["eval", one_run / "RUN", "--text", "x.jsonl"],
    ):
        said = fails(3, *words, cwd=tmp_path, saying="x.jsonl, line 1")
        assert "--text-key" in said
        seedbed(*words, *key, cwd=tmp_path).worked()


# A byte order mark, in every file that is text.


def test_a_byte_order_mark_changes_nothing(here, one_run, tmp_path):
    rows = [{"text": f"Text number {n}, of its own."} for n in range(9)]
    table = io.StringIO()
    writer = csv.DictWriter(table, ["text"])
    writer.writeheader()
    writer.writerows(rows)
    files = {
        "x.jsonl": "".join(json.dumps(r) + "\n" for r in rows),
        "x.json": json.dumps(rows),
        "x.csv": table.getvalue(),
        "x.txt": "".join(r["text"] for r in rows),
    }
    for name, content in files.items():
        found = []
        for mark, folder in ((b"", "without"), (BOM, "with")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(mark + content.encode())
            seedbed("prepare", f"{folder}/{name}", "--out", f"{folder}-{name}", cwd=tmp_path).worked()
            found.append(sorted((f.name, f.read_bytes()) for f in (tmp_path / f"{folder}-{name}").glob("*.bin")))
        assert found[0] == found[1], name
    seedbed("prepare", "words.txt", "--out", "P", cwd=here).worked()
    document = json.loads(next((here / "P").glob("train-0*.jsonl")).read_text().splitlines()[0])["id"]
    (here / "scores.jsonl").write_bytes(BOM + (json.dumps({"id": document, "value": 1}) + "\n").encode())
    seedbed("column", "P", "score", "from_file", "path=scores.jsonl", cwd=here).worked()
    for name in ("padunk.json", "one.yaml", "word.json", "lossy.yaml"):
        (here / name).write_bytes(BOM + (here / name).read_bytes())
    (here / "tokenizer_config.json").write_bytes(BOM + b'{"bos_token": "[UNK]"}')
    seedbed("tokenizer", "check", "padunk.json", "words.txt", "--boundary", "[UNK]", cwd=here)
    seedbed("validate", "one.yaml", cwd=here).worked()
    seedbed("validate", "lossy.yaml", cwd=here).worked()


# A prepared folder, wherever a text may be named.


def test_a_prepared_folder_is_a_text_to_every_command(here, one_run):
    seedbed("prepare", "lines_lf.txt", "--section-bytes", 2048, "--out", "P", cwd=here).worked()
    run = one_run / "RUN"
    whole = seedbed("eval", run, "--text", "lines_lf.txt", "--json", cwd=here).worked()
    prepared = seedbed("eval", run, "--text", "P", "--json", cwd=here).worked()
    assert json.loads(prepared)["bytes"] == json.loads(whole)["bytes"]
    seedbed("prepare", "P", "--out", "again", cwd=here).worked()
    one, two = (json.loads((here / f / "manifest.json").read_text())["documents"] for f in ("P", "again"))
    assert one == two > 10
    seedbed("tokenizer", "check", "bytes", "P", cwd=here).worked()
    seedbed("tokenizer", "train", "P", "--vocab-size", 300, "--out", "t.json", cwd=here).worked()
    seedbed("prepare", "words.txt", "--against", "P", "--decontaminate", "P", "--out", "new", cwd=here).worked()


# What a tokenizer loses.

TWO_TOKENIZERS = """
name: two
model: {kind: decoder, num_layers: 1, d_model: 32, num_heads: 2}
streams:
  text:
    source: {kind: text, path: words.txt, section_bytes: 64}
    tokenizer: bytes
    seq_len: 64
    batch_size: 8
stages:
  - {name: text, stream: text, budget: {steps: 6}, evaluations: 2}
study:
  control: {name: bytes, change: {}}
  arms: {words: {streams.text.tokenizer: {kind: file, path: word.json}}}
  seeds: 0-1
"""


@pytest.mark.slow
def test_tokenizers_that_lose_text_are_not_compared_unless_that_is_allowed(here, runs_here):
    (here / "two.yaml").write_text(TWO_TOKENIZERS)
    said = fails(2, "compare", "two.yaml", "--out", "S", cwd=here, saying="lossy_tokenizers")
    assert "words" in said and not (here / "S").exists()
    allowed = ("--set", "study.lossy_tokenizers=true")
    done = seedbed("compare", "two.yaml", "--out", "S", *allowed, "--threads", 1, "--json", cwd=here).worked()
    assert json.loads(done.splitlines()[-1])["notes"]["words"]
    fails(2, "compare", "two.yaml", "--out", "N", *allowed, "--set", "study.outcome=nats", cwd=here)


def test_a_lossy_tokenizer_is_told_wherever_a_number_per_byte_stands(here):
    seedbed("run", "lossy.yaml", "--out", "L", "--threads", 1, cwd=here).worked()
    seedbed("export", "L", "--to", "safetensors", "--out", "E", cwd=here).worked()
    places = {
        "log": (here / "L/log.txt").read_text(),
        "card": (here / "E/README.md").read_text(),
        "eval": seedbed("eval", "L", "--text", "words.txt", cwd=here).worked(),
        "prepare": seedbed("prepare", "words.txt", "--tokenizer", "word.json", "--out", "P", cwd=here).stdout,
        "check": seedbed("tokenizer", "check", "word.json", "words.txt", cwd=here).stdout,
    }
    for name in ("log", "card", "eval"):
        assert "documents back changed" in places[name], name


# Native code that is deaf.


def test_a_signal_is_heard_while_native_code_works(monkeypatch):
    stopped, told = [], []

    def interrupted():
        told.append(1)
        if len(told) == 3:
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        listening(lambda: time.sleep(5), tell=interrupted, every=0.01, stop=lambda: stopped.append(1))
    assert stopped == [1] and time.monotonic() - begun < 4
    assert listening(lambda: 7, tell=interrupted, every=1, stop=stopped.clear) == 7
    assert stopped == [1]
    with pytest.raises(ZeroDivisionError):
        listening(lambda: 1 // 0, tell=interrupted, every=1, stop=stopped.clear)


def test_ctrl_c_ends_the_training_of_a_tokenizer_and_leaves_nothing(here, monkeypatch):
    begun = threading.Event()

    def train(*given, **more):
        begun.set()
        time.sleep(3)

    def interrupted(self):
        assert begun.wait(3)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizing, "train_tokenizer", train)
    monkeypatch.setattr(tokenizing, "_TOLD_SECONDS", 0.01)
    monkeypatch.setattr(tokenizing._Reading, "so_far", interrupted)
    fails(130, "tokenizer", "train", "words.txt", "--out", "t.json", cwd=here, saying="interrupted")
    assert not (here / "t.json").exists()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("word", ["a", "ab", "\u4e2d", "\U0001f600", "\u0301"])
def test_a_word_without_end_is_learnt_from_in_no_time(tmp_path, kind, word):
    (tmp_path / "x.txt").write_text(word * 200_000)
    words = ("train", "x.txt", "--kind", kind, "--vocab-size", 600, "--out", "t.json")
    assert "lossless_documents: 1" in seedbed("tokenizer", *words, cwd=tmp_path).worked()


# Nothing to divide by.


@pytest.mark.parametrize("content", ["", " ", "\n\n", BOM.decode()])
def test_a_text_without_a_token_is_said_to_be_one(one_run, tmp_path, content):
    (tmp_path / "x.txt").write_text(content)
    for words in (
        ["eval", one_run / "RUN", "--text", "x.txt"],
        ["tokenizer", "check", "bytes", "x.txt"],
        ["tokenizer", "train", "x.txt", "--out", "t.json"],
        ["run", one_run / "one.yaml", "--set", f"streams.text.source.path={tmp_path / 'x.txt'}", "--out", "R"],
    ):
        done = seedbed(*words, cwd=tmp_path)
        assert done.returncode in (0, 3), done.stderr
        assert done.returncode == 3 or content.strip() != content


def test_held_out_text_without_a_token_is_refused_before_there_is_a_folder(here):
    (here / "empty.txt").write_text("")
    with (here / "one.yaml").open("a") as recipe:
        recipe.write("evaluate: {none: {kind: bits_per_byte, over: {kind: text, path: empty.txt}}}\n")
    fails(3, "run", "one.yaml", "--out", "R", cwd=here, saying="empty.txt")
    assert not (here / "R").exists()


# Values of a column.


@pytest.mark.parametrize(
    ("lines", "saying"),
    [
        ('{"id": "ID", "value": NaN}\n', "finite"),
        ('{"id": "ID", "value": 1e999}\n', "finite"),
        ('{"id": "ID", "value": -Infinity}\n', "finite"),
        ('{"id": "ID", "value": 1}\n{"id": "ID", "value": 2}\n', "has a value already"),
        ('{"id": "ID", "value": "a"}\n{"id": "ID", "value": "a"}\n', "has a value already"),
        ('{"id": "ID", "value": null}\n', "value"),
        ('{"id": "ID"}\n', "value"),
        ('{"id": 3, "value": 1}\n', "id"),
        ('{"id": "ID", "value": 1, "value": 2}\n', "twice"),
        ('["ID", 1]\n', "line 1"),
        ("[[[[" * 50_000 + "\n", "line 1"),
        ('{"id": "nobody", "value": 1}\n', "has no value"),
        ("", "has no value"),
    ],
)
def test_the_values_of_a_column_are_looked_at(here, lines, saying):
    seedbed("prepare", "words.txt", "--out", "P", cwd=here).worked()
    document = json.loads(next((here / "P").glob("train-0*.jsonl")).read_text().splitlines()[0])["id"]
    (here / "scores.jsonl").write_text(lines.replace("ID", document))
    done = seedbed("column", "P", "score", "from_file", "path=scores.jsonl", cwd=here)
    assert done.returncode in (2, 3)
    assert saying in done.failed(done.returncode)
    assert not (here / "P/columns/score.json").exists()


def test_dates_that_python_can_hold_are_kept_as_text(tmp_path):
    when = pa.array([datetime.datetime(2024, 2, 29, 12)], pa.timestamp("s"))
    _as_parquet({"text": ["one text"], "when": when}, tmp_path / "x.parquet")
    seedbed("prepare", "x.parquet", "--meta", "when=when", "--test-share", 0, "--valid-share", 0, "--out", "P", cwd=tmp_path)
    (line,) = next((tmp_path / "P").glob("train-0*.jsonl")).read_text().splitlines()
    assert "2024-02-29" in line
