import gzip
import json

import pytest

from seedbed.core.errors import ConfigError, DataError
from seedbed.core.records import Draw, Key, Progress, Vocabulary
from seedbed.sources.files import BUILTIN
from seedbed.sources.nca import NcaRows
from seedbed.sources.text import Text
from seedbed.views.next_token import NextToken


def test_the_published_row_counts_987_of_1024_targets():
    row = NcaRows(seq_len=1024).rows([0], seed=0, split="train")[0]
    key = Key(seed=0, stream="s", position=0, draw=Draw("nca", 0, 0))
    asked = NextToken()(row, key=key, vocabulary=Vocabulary(size=10_002), progress=Progress(step=0, steps=0))
    assert len(asked.tokens_T) == 1024
    assert int(asked.weights_T.sum()) == 987
    assert asked.weights_T[:37].sum() == 0 and asked.weights_T[37:].all()
    assert asked.targets_T[36] == 10_001, "the end of the first frame is not asked"
    assert asked.targets_T[37] == 10_000, "the start of the second frame is"


def test_a_row_begins_with_whole_frames_and_carries_the_cost_of_rejected_rules():
    source = NcaRows(states=2, grid=8, band=(0.12, 2.0), seq_len=64)
    rows = source.rows(range(12), seed=0, split="train")
    assert all(r.tokens_T[0] == r.tokens_T[18] == 16 and r.tokens_T[17] == 17 for r in rows)
    for r in rows:
        assert r.cost.flops_run == (r.labels["tries"] * 19) * source.update_flops
    assert max(r.labels["tries"] for r in rows) > 1


def test_a_row_too_short_for_two_frames_is_refused():
    with pytest.raises(ConfigError, match="does not hold two frames of 38"):
        NcaRows(seq_len=70)


def test_the_exhibit_shows_pictures_and_the_ratios_they_were_chosen_from():
    shown = NcaRows(states=2, grid=4, seq_len=16).exhibit(seed=0, rules=20)
    assert shown.picture.startswith(b"\x89PNG")
    drawn = shown.facts["histogram"]
    assert len(drawn["values"]) == 20 and drawn["span"]["from"] < drawn["span"]["to"] and drawn["line"]["at"] > 0
    assert "% of them lie in the accepted band" in drawn["caption"]


def _folder(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path)


def test_folders_globs_and_compressed_files_give_the_same_documents(tmp_path):
    texts = [f"document {i} " * 9 for i in range(9)]
    for i, t in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(t)
    plain = Text(path=str(tmp_path)).all_documents()
    assert [d.text for d in plain] == texts
    assert [d.text for d in Text(path=f"{tmp_path}/*.txt").all_documents()] == texts
    (tmp_path / "sub").mkdir()
    lines = "\n".join(json.dumps({"text": t, "date": 1999}) for t in texts).encode()
    (tmp_path / "sub/all.jsonl.gz").write_bytes(gzip.compress(lines))
    packed = Text(path=str(tmp_path / "sub/all.jsonl.gz")).all_documents()
    assert [d.text for d in packed] == texts and packed[0].meta == {"date": 1999}


def test_zstandard_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    file = tmp_path / "a.md.zst"
    file.write_bytes(zstandard.ZstdCompressor().compress(b"one\n\ntwo\n\nthree"))
    assert Text(path=str(file)).all_documents()[0].text == "one\n\ntwo\n\nthree"


def test_sections_are_cut_at_empty_lines_and_lose_nothing(corpus):
    documents = Text(path=str(corpus), section_bytes=300).all_documents()
    assert "".join(d.text for d in documents) == corpus.read_text()
    assert all(300 <= len(d.text) < 400 for d in documents[:-1])
    assert all(d.text.endswith("\n") for d in documents)


def test_sides_are_chosen_by_content_and_never_share_a_document(corpus):
    text = Text(path=str(corpus), section_bytes=100)
    sides = {s: {d.text for d in text.documents(s)} for s in ("train", "valid", "test")}
    assert not sides["train"] & sides["valid"] and not sides["valid"] & sides["test"] and not sides["train"] & sides["test"]
    assert 0.01 < len(sides["test"]) / sum(map(len, sides.values())) < 0.12


def test_a_document_that_comes_twice_stands_on_one_side_only(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"text {i % 40} " * 5}) for i in range(400)))
    text = Text(path=str(tmp_path))
    sides = [{d.text for d in text.documents(s)} for s in ("train", "valid", "test")]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_three_documents_are_enough_for_three_sides(tmp_path):
    text = Text(path=_folder(tmp_path, **{"a.txt": "one", "b.txt": "two", "c.txt": "three"}))
    assert [len(text.documents(s)) for s in ("train", "valid", "test")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"fine\nbad \xff byte"}, "a.txt, line 2, byte 9: the value 0xff is not UTF-8"),
        ({"a.jsonl": '{"text": "x"}\n{"text": '}, "a.jsonl, line 2: not valid JSON"),
        ({"a.jsonl": '{"txt": "x"}'}, "line 1: no text under 'text'; did you mean 'txt'"),
        ({"a.jsonl": "[1]"}, "line 1: no text under 'text'"),
        ({"a.txt.gz": gzip.compress(bytes(range(256)))[:100]}, "a.txt.gz, byte .*: cannot be read further: it ends"),
        ({"a.jsonl": '{"text": "half \\ud800 a letter"}'}, "a.jsonl, line 1: half a character"),
        ({"a.txt": ""}, "holds no text"),
        ({"a.txt": "only one"}, "holds 1 document"),
        ({"a.pdf": "x"}, "holds no text file"),
    ],
)
def test_hostile_files_are_named_with_the_place(tmp_path, files, message):
    with pytest.raises(DataError, match=message) as caught:
        Text(path=_folder(tmp_path, **files)).documents("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/place", "builtin:poetry"])
def test_a_missing_corpus_says_what_is_allowed(path):
    with pytest.raises(DataError, match=r"nothing is found at /no|no built-in corpus 'poetry'; known: code, math, prose"):
        Text(path=path).documents("train")


@pytest.mark.parametrize(("name", "least"), [("prose", 4_500_000), ("math", 3_500_000), ("code", 3_000_000)])
def test_the_built_in_corpora_are_there_and_hold_no_addresses(name, least):
    documents = Text(path=f"builtin:{name}").all_documents()
    assert sum(len(d.text.encode()) for d in documents) > least
    if name == "prose":
        assert not any(word in d.text for d in documents for word in ("Gutenberg", "@"))


def test_the_built_in_corpora_are_small():
    assert sum(f.stat().st_size for f in BUILTIN.iterdir()) < 5_000_000


def test_fingerprints_follow_text_and_split(corpus):
    first = Text(path=str(corpus), section_bytes=300)
    assert first.fingerprint() == Text(path=str(corpus), section_bytes=300).fingerprint()
    assert first.fingerprint() != Text(path=str(corpus), section_bytes=300, test_share=0.3).fingerprint()
    corpus.write_text(corpus.read_text() + "one more")
    assert first.fingerprint() != Text(path=str(corpus), section_bytes=300).fingerprint()
