"""Any corpus in: what a path names, every format in every packing, and hostile files, each named with its place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.core.errors import DataError
from seedbed.core.records import Turn
from seedbed.sources.fields import strings_of
from seedbed.sources.files import BadInput, Bounds, FoundFile, find_files, shown
from seedbed.sources.formats import line_ranges, read_documents, read_strings
from seedbed.sources.hub import hub_documents
from seedbed.sources.text import Text, sections
from seedbed.sources.unpack import open_file
from tests.conftest import SHARED

zstandard = pytest.importorskip("zstandard")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

RECORDS = [{"text": 'Ünter "quoted", so', "n": "1"}, {"text": "two\nlines", "n": "2"}, {"text": "a\x00b\t日本", "n": "3"}]
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": partial(lzma.compress, preset=1),
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def _jsonl(records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def _table(records, delimiter):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


def _parquet(records):
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records), out)
    return out.getvalue()


WRITE = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": lambda records: json.dumps(records, indent=1).encode(),
    ".csv": lambda records: _table(records, ","),
    ".tsv": lambda records: _table(records, "\t"),
    ".parquet": _parquet,
}


def _file(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return FoundFile(file, name)


def _read(file, **settings):
    return list(read_documents(file, **settings))


def _skipping(file, **settings):
    skipped = []
    documents = _read(file, skip=skipped.append, **settings)
    return [d.text for d in documents], [(b.reason, b.line, b.record, b.byte) for b in skipped]


# --- every format in every packing


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", WRITE)
def test_records_are_the_same_in_every_format_and_packing(tmp_path, kind, packing):
    file = _file(tmp_path, f"a{kind}{packing}", PACK[packing](WRITE[kind](RECORDS)))
    documents = _read(file)
    assert [d.text for d in documents] == [r["text"] for r in RECORDS]
    assert [d.meta for d in documents] == [{"n": r["n"]} for r in RECORDS]
    places = {".csv": (2, 3, 5), ".tsv": (2, 3, 5)}.get(kind, (1, 2, 3))  # lines where records start, or their numbers
    assert [d.id for d in documents] == [f"{file.name}:{n}" for n in places]
    assert list(read_strings(file)) == [(d.id, v) for d, r in zip(documents, RECORDS, strict=True) for v in r.values()]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize(
    ("kind", "meta"), [(".txt", {}), (".md", {}), (".py", {"language": "Python"}), (".RS", {"language": "Rust"})]
)
def test_a_text_or_code_file_is_one_document(tmp_path, kind, meta, packing):
    text = "première ligne\r\n\n\x00 last"
    file = _file(tmp_path, f"a{kind}{packing}", PACK[packing](b"\xef\xbb\xbf" + text.encode()))
    (document,) = _read(file, text_key="content", meta={"x": "y"})
    assert (document.id, document.text, document.meta) == (file.name, text, meta)
    assert list(read_strings(file)) == [(file.name, text)]


def test_frames_one_after_the_other_are_one_file(tmp_path):
    for packing in (".gz", ".xz", ".bz2", ".zst"):
        parts = PACK[packing](b"one ") + PACK[packing](b"") + PACK[packing](b"two")
        assert _read(_file(tmp_path, f"a.txt{packing}", parts))[0].text == "one two"


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        ' {"version": "1", "data": [{"text": "a"}, {"text": "b"}]} ',
        '{"text": "a"}\n{"text": "b"}\n',
        '\ufeff[\n{"text": "a"}\n,\n{"text": "b"}]\n',
    ],
)
def test_json_may_be_an_array_an_object_with_data_or_objects_in_a_row(tmp_path, content):
    documents = _read(_file(tmp_path, "a.json", content))
    assert [(d.id, d.text) for d in documents] == [("a.json:1", "a"), ("a.json:2", "b")]


def test_one_object_is_one_document_and_an_empty_array_none(tmp_path):
    assert [d.text for d in _read(_file(tmp_path, "a.json", '{"text": "x", "data": 3}'))] == ["x"]
    assert _read(_file(tmp_path, "b.json", " [ ] ")) == []


def test_json_is_read_as_a_stream_over_many_blocks(tmp_path):
    records = [{"text": f"{i} " + "é" * (i % 7) * 9000} for i in range(60)]  # 3 MB; blocks have 65,536 bytes
    file = _file(tmp_path, "a.json", json.dumps(records, ensure_ascii=False))
    assert [d.text for d in _read(file, bounds=Bounds(document_bytes=120_000))] == [r["text"] for r in records]
    numbers = _file(tmp_path, "n.json", json.dumps(["x" * 65_520, *range(10**9, 10**9 + 20_000), "end"]))
    assert [text for _, text in read_strings(numbers)] == ["x" * 65_520, "end"], "no number is cut where a block ends"


def test_csv_knows_quotes_line_ends_and_empty_lines(tmp_path):
    file = _file(tmp_path, "a.csv", '\ufefftext,n\r\n"a, ""b""\r\nc",1\r\n\r\nd\x00,2\r\n')
    assert [(d.id, d.text) for d in _read(file)] == [("a.csv:2", 'a, "b"\r\nc'), ("a.csv:5", "d\x00")]


def test_a_field_of_a_csv_may_be_longer_than_its_reader_s_own_limit(tmp_path):
    assert len(_read(_file(tmp_path, "a.csv", "text\n" + "x" * 200_000))[0].text) == 200_000


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": text, "a": text}), min_size=1, max_size=6), st.sampled_from(sorted(WRITE)))
def test_whatever_is_written_is_read(tmp_path_factory, records, kind):
    if kind in (".csv", ".tsv"):  # a bare carriage return ends a line there, for every reader
        records = [{k: v.replace("\r", "") for k, v in r.items()} for r in records]
    file = _file(tmp_path_factory.mktemp("f"), f"a{kind}", WRITE[kind](records))
    texts, skipped = _skipping(file)
    assert texts == [r["text"] for r in records if r["text"].strip()]
    assert [reason for reason, *_ in skipped] == ["empty"] * (len(records) - len(texts))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([*sorted(WRITE), ".txt", ".py"]), st.sampled_from(sorted(PACK)))
def test_no_bytes_make_a_reader_fail_in_another_way(tmp_path_factory, raw, kind, packing):
    file = _file(tmp_path_factory.mktemp("f"), f"a{kind}{packing}", raw)
    skipped = []
    for document in read_documents(file, skip=skipped.append):
        document.text.encode()
    assert all("\n" not in str(b) and b.reason for b in skipped)


# --- what a record gives


def test_a_list_of_numbers_is_text_and_a_list_of_turns_a_dialogue(tmp_path):
    lines = [
        {"text": [3, 17, 4]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": ""}], "id": 7},
        {"conversations": [{"from": "a", "value": "x"}]},
        {"text": [{"speaker": "s", "text": "t"}], "turns": 2},
    ]
    documents = _read(_file(tmp_path, "a.jsonl", _jsonl(lines)))
    assert [d.text for d in documents] == ["3 17 4", "user: Hi\nbot: \n", "a: x\n", "s: t\n"]
    assert [d.turns for d in documents[1:3]] == [(Turn("user", "Hi"), Turn("bot", "")), (Turn("a", "x"),)]
    assert [d.meta for d in documents] == [{}, {"id": 7}, {}, {"turns": 2}]


def test_meta_are_short_scalars_and_may_be_renamed(tmp_path):
    line = {"text": "x", "lang": "fi", "n": 1, "f": 0.5, "b": True, "nan": float("nan"), "no": None, "l": [1]}
    line |= {"long": "é" * 998, "longer": "é" * 999, "language": "overwritten"}
    (document,) = _read(_file(tmp_path, "a.jsonl", _jsonl([line])), meta={"language": "lang", "none": "absent"})
    assert document.meta == {"language": "fi", "n": 1, "f": 0.5, "b": True, "long": "é" * 998}


def test_dates_of_a_parquet_are_text(tmp_path):
    from datetime import date

    assert _read(_file(tmp_path, "a.parquet", _parquet([{"text": b"x", "day": date(1999, 1, 2)}])))[0].meta == {
        "day": "1999-01-02"
    }


def test_strings_are_found_in_order_however_deep():
    deep = "bottom"
    for _ in range(5000):
        deep = [deep]
    assert list(strings_of({"a": "1", "b": ["2", {"c": "3", "d": 4}], "e": deep})) == ["1", "2", "3", "bottom"]


# --- which files


def _tree(tmp_path):
    root = tmp_path / "root"
    for name in ("b.txt", "a/z.md", "a/x.txt/y.py", ".hidden/h.txt", ".h.txt", "c.pdf", "É.txt"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return root


def _names(path):
    return [f.name for f in find_files(str(path))]


def test_a_folder_is_read_in_byte_order_without_hidden_files(tmp_path, monkeypatch):
    root = _tree(tmp_path)
    wanted = ["root/a/x.txt/y.py", "root/a/z.md", "root/b.txt", "root/É.txt"]
    assert _names(root) == _names(f"{root}/") == _names(f"{root}/**") == wanted
    monkeypatch.chdir(root)
    assert _names(".") == _names("**/*") == wanted, "names do not hang on how the folder is written"
    assert _names("*.txt") == ["root/b.txt", "root/É.txt"]
    assert _names("b.txt") == ["b.txt"]
    assert _names(".hidden") == [".hidden/h.txt"] and _names(".h.txt") == [".h.txt"], "named, it is read"


def test_globs_cross_folders_only_where_they_say_so(tmp_path):
    root = _tree(tmp_path)
    assert _names(f"{root}/*/*.md") == ["root/a/z.md"]
    assert _names(f"{root}/**/*.txt") == ["root/b.txt", "root/É.txt"], "x.txt is a folder"
    assert _names(f"{root}/a/**/y.*") == ["a/x.txt/y.py"]
    (root / "s[1].txt").write_text("x")
    assert _names(root / "s[1].txt") == ["s[1].txt"]


def test_loops_of_links_end_and_a_folder_keeps_its_own_name(tmp_path):
    root = _tree(tmp_path)
    for link in ("a/up", "a/x.txt/up", "0first"):
        (root / link).symlink_to(root if link != "0first" else root / "a")
    assert _names(root) == _names(f"{root}/**/*") == ["root/a/x.txt/y.py", "root/a/z.md", "root/b.txt", "root/É.txt"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/o.txt").write_text("x")
    (root / "linked").symlink_to(tmp_path / "other")
    (root / "self.txt").symlink_to(root / "self.txt")
    assert "root/linked/o.txt" in _names(root) and "root/self.txt" not in _names(root)


def test_odd_bytes_in_a_name_are_shown_and_can_be_told_apart(tmp_path):
    odd = [b"a\xff.txt", b"a\\xff.txt", "a\n\x85.txt".encode()]
    for name in odd:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x")
    assert _names(tmp_path)[1:] == [f"{tmp_path.name}/{n}" for n in (r"a\\xff.txt", r"a\xff.txt")]
    assert _names(tmp_path)[0] == rf"{tmp_path.name}/a\u000a\u0085.txt"
    assert [d.text for f in find_files(str(tmp_path)) for d in _read(f)] == ["x"] * 3


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=8), st.binary(min_size=1, max_size=8))
def test_two_names_are_never_shown_alike(one, other):
    one, other = os.fsdecode(one), os.fsdecode(other)
    assert (shown(one) == shown(other)) == (one == other)
    assert len(shown(one).splitlines()) == 1 and shown(one).encode()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.txt", "nothing is found at none.txt; give a file, a folder or a glob of .txt, .md"),
        ("*.txt", r"nothing is found at \*.txt"),
        ("nowhere/**/*.txt", "nothing is found at nowhere"),
        ("a.pdf", "a.pdf is not a kind of file that is read here"),
        ("empty", "the folder empty holds no text file"),
        ("a\0b", "nothing is found"),
        ("x" * 5000, "nothing is found"),
    ],
)
def test_a_path_that_names_nothing_is_said(tmp_path, monkeypatch, path, message):
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        find_files(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("x")
    assert _names(tmp_path) == [f"{tmp_path.name}/b.txt"]
    with pytest.raises(BadInput, match=r"a.txt: cannot be read: it is neither a file"):
        _read(find_files(str(tmp_path / "a.txt"))[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    file = _file(tmp_path, "a.txt", "x")
    file.path.chmod(0)
    with pytest.raises(BadInput, match=r"a.txt: cannot be read: Permission denied"):
        _read(file)


def test_a_file_that_went_away_is_named(tmp_path):
    for name in ("a.txt", "a.jsonl.gz", "a.parquet", "a.json.xz"):
        assert _skipping(FoundFile(tmp_path / name, name)) == ([], [("unreadable file", None, None, None)])


# --- hostile files


U, J, K, C, P = "invalid UTF-8", "invalid JSON", "no text under the key", "invalid CSV", "invalid parquet"
BAD = [
    ("a.txt", b"fine\nbad \xff", "a.txt, line 2, byte 9: the value 0xff is not UTF-8", [], (U, 2, None, 9)),
    ("a.py", b"\xef\xbb\xbfx\xff", "line 1, byte 4", [], (U, 1, None, 4)),
    ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n{"text": "y"}', "line 2, byte 24", ["x", "y"], (U, 2, None, 24)),
    ("a.csv", b'text,n\nx,1\n"\n\xff",2\ny,3\n', "line 4, byte 13", ["x", "y"], (U, 4, None, 13)),
    ("a.tsv", b"text\nx\n\xff\ny", "line 3, byte 7", ["x", "y"], (U, 3, None, 7)),
    ("a.json", b'[{"text": "x"},\n{"text": "\xff"}, {"text": "y"}]', "line 2, byte 26", ["x", "y"], (U, 2, None, 26)),
    ("a.jsonl", b'{"text": "x"}\n{"text": \n{"text": "y"}', "line 2: not valid JSON", ["x", "y"], (J, 2, None, None)),
    ("a.jsonl", b'{"text": ' + b"[" * 200_000, "line 1: not valid JSON", [], (J, 1, None, None)),
    ("a.json", b'[{"text": "x"}, {"text": ]', "line 1, byte 25: not valid JSON .Expecting value", ["x"], (J, 1, None, 25)),
    ("a.json", b'[{"text": "x"} {"text": "y"}]', "',' or ']' is missing", ["x"], (J, 1, None, 16)),
    ("a.json", b'[{"text": "x"}]\n]', "something follows", ["x"], (J, 2, None, 16)),
    ("a.json", b'[{"text": "x"}', "is missing", ["x"], (J, 1, None, 14)),
    ("a.json", b"[" * 200_000, "not valid JSON", [], (J, 1, None, 1)),
    ("a.json", b"", "not valid JSON", [], (J, 1, None, 0)),
    ("a.jsonl", b'{"text": "a \\ud800"}', "half a character", [], ("half a character", 1, None, None)),
    ("a.jsonl", b'{"text": 3}', "what is under 'text' .int. is neither", [], (K, 1, None, None)),
    ("a.jsonl", b'{"text": [{"role": "x"}]}', "turn 1 under 'text' has no text for content", [], (K, 1, None, None)),
    ("a.jsonl", b'{"text": [true]}', "neither text", [], (K, 1, None, None)),
    ("a.jsonl", b'{"a\\nb\\u2028": "x"}', r"known: a\\nb\\u2028 .name the key", [], (K, 1, None, None)),
    ("a.jsonl", b'{"txet": "x"}', "no text under 'text'; did you mean 'txet'", [], (K, 1, None, None)),
    ("a.csv", b"txet,n\nx,1\ny,2\n", "no text under 'text'; did you mean 'txet'", [], (K, 2, None, None)),
    ("a.csv", b'text,n\nx,1\n"y,2\n', "line 3: not valid CSV", ["x"], (C, 3, None, None)),
    ("a.csv", b'text,n\n"x" y,1\nz,2', "line 2: not valid CSV", ["z"], (C, 2, None, None)),
    ("a.csv", b"text,n\nx\ny,2\nz,3,4", "line 2: not valid CSV .1 fields where the header has 2", ["y"], (C, 2, None, None)),
    ("a.csv", b"text,text\nx,y", "it has .text. twice", [], ("a name twice", 1, None, None)),
    ("a.parquet", _parquet(RECORDS)[:-9], "not a whole parquet file", [], (P, None, 1, None)),
    ("a.parquet", b"", "not a whole parquet file", [], (P, None, 1, None)),
    ("a.parquet.gz", gzip.compress(_parquet(RECORDS))[:-9], "ends in the middle", [], ("truncated archive", None, None, None)),
    ("a.parquet", _parquet([{"txt": "x"}] * 3), "did you mean 'txt'", [], (K, None, 1, None)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "message", "texts", "place"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_a_bad_place_is_named_and_what_is_good_is_kept(tmp_path, name, raw, message, texts, place):
    file = _file(tmp_path, name, raw)
    with pytest.raises(BadInput, match=message) as caught:
        _read(file)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(name)
    found, skipped = _skipping(file)
    assert found == texts
    if place[0] == "truncated archive":
        skipped = [(*s[:3], None) for s in skipped]
    assert skipped[0] == place and len(skipped) <= 2


def test_a_text_of_a_parquet_that_is_not_utf8_leaves_the_other_rows(tmp_path):
    ends, letters = pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"x\xffy")
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, ends, letters])
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts}), out)
    assert _skipping(_file(tmp_path, "a.parquet", out.getvalue())) == (["x", "y"], [("invalid UTF-8", None, 2, None)])
    bytes_column = _file(tmp_path, "b.parquet", _parquet([{"text": b"x"}, {"text": b"a\xff"}]))
    assert _skipping(bytes_column) == (["x"], [("invalid UTF-8", None, 2, None)])


def _lines(count):
    return b"".join(b'{"text": "%s"}\n' % os.urandom(60).hex().encode() for _ in range(count))


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst"])
def test_of_a_truncated_archive_the_start_is_kept_and_the_rest_told_once(tmp_path, packing):
    lines = _lines(16_000)  # 133 bytes each, 2.1 MB: two blocks and more even for bz2
    raw = PACK[packing](lines)
    file = _file(tmp_path, f"a.jsonl{packing}", raw[: len(raw) * 9 // 10])
    texts, skipped = _skipping(file)
    assert texts == [json.loads(line)["text"] for line in lines.splitlines()][: len(texts)]
    assert len(texts) > 5_000
    ((reason, _, _, byte),) = skipped
    assert reason == "truncated archive" and len(texts) == byte // 133, "all lines that could be unpacked"
    array = b"[" + lines[:-1].replace(b"\n", b",\n") + b"]"
    raw = PACK[packing](array)
    texts, skipped = _skipping(_file(tmp_path, f"a.json{packing}", raw[: len(raw) * 9 // 10]))
    ((reason, _, _, byte),) = skipped
    assert reason == "truncated archive" and len(texts) == (byte + 1) // 134 > 5_000, "a comma more a line"
    with pytest.raises(BadInput, match=rf"b.txt{packing}, byte 0: .*ends in the middle"):
        _read(_file(tmp_path, f"b.txt{packing}", b""))


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst"])
def test_an_archive_with_changed_bytes_is_found(tmp_path, packing):
    raw = bytearray(PACK[packing](os.urandom(20_000).hex().encode()))
    raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
    with pytest.raises(BadInput, match="cannot be read further") as caught:
        _read(_file(tmp_path, f"a.txt{packing}", bytes(raw)))
    assert caught.value.reason in ("corrupt archive", "invalid UTF-8")
    with pytest.raises(BadInput) as caught:
        _read(_file(tmp_path, f"b.txt{packing}", b"this is plain text, whatever its name says"))
    assert caught.value.reason == "corrupt archive"


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_a_bomb_is_given_up_at_the_bound(bombs, tmp_path, kind, packing):
    file = _file(tmp_path, f"a{kind}{packing}", bombs[packing])
    assert file.path.stat().st_size < 120_000
    bounds = Bounds(file_bytes=10**6, document_bytes=2 * 10**6)
    with pytest.raises(BadInput, match=r"unpacks to more than 1000000 bytes") as caught:
        _read(file, bounds=bounds)
    assert caught.value.reason == "file too large" and caught.value.byte < 1.1 * 10**6
    if kind in (".txt", ".jsonl", ".csv"):
        _, skipped = _skipping(file, bounds=Bounds(document_bytes=10**5, file_bytes=10**7))
        assert skipped[0][0] == "document too long"


@pytest.fixture(scope="module")
def bombs():
    """100 MB of zeros in each packing."""
    return {p: PACK[p](bytes(10**8)) for p in PACK if p}


def test_a_bomb_takes_little_memory(bombs, tmp_path):
    code = (
        "import sys, resource\nfrom pathlib import Path\nfrom seedbed.sources.unpack import open_file\n"
        "from seedbed.sources.files import Bounds\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_file(Path(sys.argv[1]), Bounds()) as opened:\n"
        "    total = sum(len(b) for b in iter(lambda: opened.read1(65536), b''))\n"
        "print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    for packing in (".xz", ".zst"):
        file = _file(tmp_path, f"a.txt{packing}", bombs[packing])
        done = subprocess.run([sys.executable, "-c", code, str(file.path)], capture_output=True, text=True, check=True)
        total, mib = map(int, done.stdout.split())
        assert total == 10**8 and mib < 90, (packing, mib)


def test_a_document_over_the_bound_is_left_out_and_the_next_one_read(tmp_path):
    records = [{"text": "x" * 50}, {"text": "y" * 200}, {"text": "z"}]
    bounds = Bounds(document_bytes=100)
    for kind in (".jsonl", ".parquet"):
        texts, skipped = _skipping(_file(tmp_path, f"a{kind}", WRITE[kind](records)), bounds=bounds)
        assert texts == ["x" * 50, "z"] and skipped[0][0] == "document too long"
    file = _file(tmp_path, "b.jsonl", WRITE[".jsonl"](records))
    assert _skipping(file, bounds=bounds)[1] == [("document too long", 2, None, 63)]
    assert _skipping(_file(tmp_path, "a.txt", "x" * 101), bounds=bounds) == ([], [("document too long", None, None, None)])
    assert _skipping(_file(tmp_path, "b.txt", "x" * 100), bounds=bounds) == (["x" * 100], [])
    quoted = _file(tmp_path, "a.csv", 'text\nx\n"' + "y\n" * 100 + '"\nz\n')
    assert _skipping(quoted, bounds=bounds) == (["x"], [("document too long", 3, None, None)])
    assert "too long" in _skipping(_file(tmp_path, "a.json", WRITE[".json"](records)), bounds=bounds)[1][0][0]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.jsonl", "a.csv", "a.tsv"])
def test_an_empty_file_holds_no_document(tmp_path, name):
    assert _read(_file(tmp_path, name, b"")) == []
    assert _read(_file(tmp_path, name, b"\n \n" if "sv" not in name else b"text\n\n")) == []


def test_empty_documents_are_left_out_and_told_only_to_who_asks(tmp_path):
    file = _file(
        tmp_path,
        "a.jsonl",
        _jsonl([{"text": " \n"}, {"text": "x"}, {"text": []}, {"messages": [{"role": "u", "content": ""}]}]),
    )
    assert [d.text for d in _read(file)] == ["x"]
    assert [(r, line) for r, line, *_ in _skipping(file)[1]] == [("empty", 1), ("empty", 3), ("empty", 4)]


def test_a_column_that_meta_asks_for_and_a_table_lacks_is_said(tmp_path):
    file = _file(tmp_path, "a.csv", "text,lang\nx,fi\ny,en\n")
    with pytest.raises(BadInput, match="meta asks for the column 'lnag'; did you mean 'lang'"):
        _read(file, meta={"language": "lnag"})
    texts, skipped = _skipping(file, meta={"language": "lnag"})
    assert texts == ["x", "y"] and [s[0] for s in skipped] == ["no such column"]


def test_bad_input_travels_between_processes(tmp_path):
    with pytest.raises(BadInput) as caught:
        _read(_file(tmp_path, "a.txt", b"\xff"))
    back = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(back, DataError) and str(back) == str(caught.value) and vars(back) == vars(caught.value)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    for package, name in (("zstandard", "a.txt.zst"), ("pyarrow", "a.parquet")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            DataError, match=rf"reading {name} needs a further package: pip install 'seedbed\[data\]'"
        ) as caught:
            list(read_documents(_file(tmp_path, name, b"x"), skip=lambda bad: None))
        assert not isinstance(caught.value, BadInput), "no reason to skip every file"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'seedbed\[data\]'"):
        list(hub_documents("hub:x"))


# --- ranges


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab", max_size=30), max_size=20), st.integers(1, 200), st.booleans())
def test_ranges_of_lines_give_the_documents_of_the_file(tmp_path_factory, texts, size, mark):
    raw = _jsonl([{"text": "x" + t} for t in texts]).replace(b'"xa"}\n', b'"xa"}\n\n')
    file = _file(tmp_path_factory.mktemp("f"), "a.jsonl", (b"\xef\xbb\xbf" if mark else b"") + raw.rstrip(b"\n"))
    ranges = line_ranges(file, size)
    assert [r.start for r in ranges[1:]] == [r.stop for r in ranges[:-1]]
    assert all(r.stop - r.start >= size for r in ranges[:-1])
    assert [d for r in ranges for d in _read(r)] == _read(file)


def test_a_packed_file_is_one_range(tmp_path):
    file = _file(tmp_path, "a.jsonl.gz", gzip.compress(_lines(50)))
    assert line_ranges(file, 10) == [file]


# --- the recipe part and the hub


def test_text_takes_columns_under_other_names_and_keeps_dialogues_whole(tmp_path):
    turns = [{"role": "user", "content": "word \n\n" * 50}] * 4
    lines = [{"messages": turns, "lang": "en"}, *({"text": f"t{i}", "lang": "fi"} for i in range(3))]
    (tmp_path / "a.jsonl").write_bytes(_jsonl(lines))
    documents = Text(path=str(tmp_path), meta={"language": "lang"}, section_bytes=100).all_documents()
    assert [d.meta["language"] for d in documents] == ["en", "fi", "fi", "fi"]
    assert len(documents[0].turns) == 4 and list(sections(documents[0], 10)) == [documents[0]]
    assert documents[0].id == f"{tmp_path.name}/a.jsonl:1"


def test_builtin_corpora_are_found_under_their_own_names():
    (file,) = find_files("builtin:code")
    assert file.name == "code.jsonl.gz"
    assert next(iter(read_documents(file))).id == "code.jsonl.gz:1"


@pytest.mark.slow
def test_the_hub_reads_a_folder_offline_and_names_what_is_missing(tmp_path):
    pytest.importorskip("datasets")
    data = tmp_path / "mine"
    data.mkdir()
    (data / "train.jsonl").write_bytes(_jsonl([{"text": f"t{i}", "lang": "fi"} for i in range(4)]))
    (data / "test.jsonl").write_bytes(_jsonl([{"text": "held out", "lang": "fi"}]))
    code = (
        "import sys\nfrom seedbed.core.errors import DataError\nfrom seedbed.sources.hub import hub_documents\n"
        "from seedbed.sources.text import Text\n"
        "for name in sys.argv[1:]:\n"
        "    try: print([(d.id, d.text, dict(d.meta)) for d in hub_documents(name, meta={'language': 'lang'})])\n"
        "    except DataError as e: print(type(e).__name__, e)\n"
        "print(len(Text(path=sys.argv[1]).all_documents()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"hub:{data}", f"hub:{data}:test", f"hub:{data}:none", "hub:no-one/nothing", "hub:a:b:c"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stderr
    assert eval(lines[0]) == [(f"hub:mine:train:{i + 1}", f"t{i}", {"language": "fi"}) for i in range(4)]
    assert eval(lines[1]) == [("hub:mine:test:1", "held out", {"language": "fi"})]
    assert lines[2].startswith("DataError hub:mine:none cannot be read") and str(tmp_path) not in lines[2].split("(")[0]
    assert lines[3].startswith("DataError hub:no-one/nothing:train cannot be read") and "check the name" in lines[3]
    assert lines[4].startswith("DataError hub:a:b:c does not name a data set")
    assert lines[5] == "4"


# --- real data


def _shared(path):
    if not (SHARED / "data" / path).exists():
        pytest.skip(f"shared/data/{path} is not on this machine")
    return find_files(str(SHARED / "data" / path))[0]


def test_real_parquet_with_a_column_a_language():
    documents = _read(_shared("ntrex/ntrex.parquet"), text_key="fin", meta={"domain": "doc_id"})
    assert len(documents) == 1997 and documents[0].text.startswith("Walesin edustajiston")
    assert documents[0].meta["domain"] == "bbc.381790" and documents[0].meta["swa"].startswith("Wajumbe")


def test_real_dialogues():
    documents = _read(_shared("sgd/dev.jsonl.zst"))
    assert len(documents) == 400 and all(len(d.turns) > 1 for d in documents)
    assert {t.speaker for d in documents for t in d.turns} == {"user", "assistant"}
    assert all(d.text == "".join(map(str, d.turns)) for d in documents)


def test_real_texts_with_genres_and_real_books():
    documents = _read(_shared("masc/masc.jsonl.zst"), meta={"domain": "genre"})
    assert len(documents) == 389 and sum(d.meta["domain"] == "spam" for d in documents) == 96
    books = _read(_shared("books/books.jsonl.zst"))
    assert len(books) == 13 and {d.meta["author"] for d in books} >= {"austen", "milton"}


def test_the_bytes_of_a_file_are_streamed(tmp_path):
    file = _file(tmp_path, "a.txt.zst", PACK[".zst"](b"one\ntwo\n"))
    with open_file(file.path) as opened:
        assert opened.readline() == b"one\n" and opened.read() == b"two\n"
