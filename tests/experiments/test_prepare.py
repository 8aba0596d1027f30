import contextlib
import json
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seedbed.core.errors import ConfigError, DataError, RefusedError, RunFailedError
from seedbed.experiments.plan.specs import StreamSpec
from seedbed.experiments.prepare import inputs, seal, units
from seedbed.experiments.prepare import prepare as module
from seedbed.experiments.prepare.passes import make_column, make_order, open_prepared
from seedbed.experiments.prepare.preparation import Preparation
from seedbed.experiments.prepare.prepare import prepare, validate_folder
from seedbed.experiments.prepare.units import make_units, plan
from seedbed.experiments.streams import build_stream
from seedbed.sources.shards import SPLITS, Shards
from seedbed.tokenizers.bytes import Bytes
from seedbed.tokenizers.integers import Integers
from tests.processes import ended, forked

FORKING = "tests.experiments.forking_prepare"

WORDS = [
    "seed",
    "bed",
    "soil",
    "row",
    "sun",
    "rain",
    "leaf",
    "root",
    "stem",
    "bud",
    "moss",
    "fern",
    "reed",
    "vine",
    "bark",
    "twig",
    "thorn",
    "petal",
]


def _quiet(line):
    pass


def _prepare(paths, out, **more):
    return prepare(paths if isinstance(paths, list) else [paths], out, say=_quiet, **more)


def _lines(file, records):
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


def _text(seed, words=40):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def _all(folder):
    """(split, id, text) of every document of a prepared folder."""
    store = open_prepared(folder)
    return [(split, d.id, d.text) for split in SPLITS for d in store.documents(split)]


def _hashes(folder):
    """The hashes of all files but the one that says how long it took."""
    files = (f for f in sorted(folder.iterdir()) if f.is_file() and f.name != seal.COST)
    return {f.name: sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def texts(tmp_path):
    """A folder of text files and records, about 60 documents."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02d}.txt").write_text(_text(i))
    _lines(folder / "more.jsonl", [{"text": _text(100 + i), "language": "en" if i % 2 else "la", "n": i} for i in range(48)])
    return folder


def test_the_manifest_says_what_was_read_kept_and_left_out(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.txt").write_text("abc")
    (folder / "b.txt").write_text("abc")
    (folder / "c.txt").write_text("grün")
    _lines(folder / "d.jsonl", [{"text": "xy", "date": "1999-01-01"}, {"text": " "}])
    m = _prepare(folder, tmp_path / "out", valid_share=0, test_share=0, licence="CC0", on_error="skip").manifest
    assert (m["documents"], m["bytes"], m["tokens"]) == (3, 3 + 5 + 2, 3 + 5 + 2 + 3), "three boundaries"
    assert m["dropped"] == {"empty": 1, "exact duplicate": 1}
    assert [(f["name"], f["documents"]) for f in m["files"]] == [
        ("mine/a.txt", 1),
        ("mine/b.txt", 1),
        ("mine/c.txt", 1),
        ("mine/d.jsonl", 1),
    ]
    assert m["licence"] == "CC0" and m["splits"]["train"]["documents"] == 3
    listed = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert {"id": "mine/b.txt", "reason": "exact duplicate"} in listed
    document = open_prepared(tmp_path / "out").documents("train")[2]
    assert (document.id, document.text, document.meta, document.size_bytes) == (
        "mine/d.jsonl:1",
        "xy",
        {"date": "1999-01-01"},
        2,
    )
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text(), "no folder of the machine is named"


def test_shards_hold_boundaries_and_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    _prepare(tmp_path / "a.txt", tmp_path / "out", valid_share=0, test_share=0)
    assert np.fromfile(tmp_path / "out/train-00000.bin", "<u2").tolist() == [256, *b"hi"]


def test_a_shard_ends_before_the_document_that_would_pass_its_size(tmp_path):
    file = _lines(tmp_path / "a.jsonl", [{"text": "abcd" + str(i)} for i in range(5)] + [{"text": "z" * 40}])
    m = _prepare(file, tmp_path / "out", valid_share=0, test_share=0, shard_tokens=13).manifest
    assert [(e["documents"], e["tokens"]) for e in m["shards"]] == [(2, 12), (2, 12), (1, 6), (1, 41)]
    store = open_prepared(tmp_path / "out")
    assert [d.text for d in store.documents("train")] == [f"abcd{i}" for i in range(5)] + ["z" * 40]
    whole = store.tokens("train", 0, 71)
    assert all(store.tokens("train", a, b).tolist() == whole[a:b].tolist() for a in range(0, 71, 5) for b in range(a, 72, 7))


def test_bytes_are_the_same_for_any_number_of_workers(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT_BYTES", 1500)
    assert len(plan(Preparation(paths=(str(texts),))).units) > 4
    _prepare(texts, tmp_path / "out-1", duplicates="near")
    (code,), said = ended([forked(FORKING, texts, tmp_path / "out-3", 3, 1500)])
    assert code == 0, said
    assert _hashes(tmp_path / "out-1") == _hashes(tmp_path / "out-3")


@pytest.mark.slow
def test_workers_that_begin_afresh_make_the_same_bytes(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT_BYTES", 1500)
    for workers in (1, 2):
        _prepare(texts, tmp_path / f"out-{workers}", workers=workers, duplicates="near")
    assert _hashes(tmp_path / "out-1") == _hashes(tmp_path / "out-2")


def test_a_large_file_of_lines_is_cut_into_ranges_that_hold_what_the_whole_does(tmp_path, monkeypatch):
    file = _lines(tmp_path / "a.jsonl", [{"text": _text(i, 5 + i % 30)} for i in range(80)])
    _prepare(file, tmp_path / "whole")
    monkeypatch.setattr(inputs, "UNIT_BYTES", 1000)
    cut = plan(Preparation(paths=(str(file),)))
    assert len(cut.units) > 5
    _prepare(file, tmp_path / "cut")
    assert _all(tmp_path / "cut") == _all(tmp_path / "whole")


@pytest.mark.parametrize("when", ["in a unit", "in the seal", "before the manifest"])
def test_after_a_stop_anywhere_the_same_command_goes_on_to_the_same_bytes(texts, tmp_path, monkeypatch, when):
    monkeypatch.setattr(inputs, "UNIT_BYTES", 1500)
    _prepare(texts, tmp_path / "whole")
    calls = iter(range(1000))
    where = units if when == "in a unit" else seal
    name = {"in a unit": "_records", "in the seal": "_copy", "before the manifest": "sync_folder"}[when]
    real = getattr(where, name)

    def stopping(*given, **more):
        if next(calls) == (0 if when == "before the manifest" else 2):
            raise KeyboardInterrupt
        return real(*given, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, name, stopping)
        _prepare(texts, tmp_path / "out")
    with pytest.raises(DataError, match="holds no manifest.json .it was begun: run the same"):
        open_prepared(tmp_path / "out")
    _prepare(texts, tmp_path / "out")
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "whole")
    assert not (tmp_path / "out/.work").exists()


def test_killed_at_random_moments_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for f in range(6):
        _lines(folder / f"{f}.jsonl", [{"text": _text(1000 * f + i, 400)} for i in range(100)])

    def begin(out, workers):
        return forked(FORKING, folder, tmp_path / out, workers, 60_000)

    assert begin("whole", 1).wait() == 0
    kills = 0
    for workers, delay in ((2, 0.03), (1, 0.0), (2, 0.06), (1, 0.02)):
        process = begin("out", workers)
        begun = time.monotonic()
        while not (tmp_path / "out/.work").exists() and process.poll() is None and time.monotonic() - begun < 60:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    if not (tmp_path / "out/manifest.json").exists():
        time.sleep(0.5)  # workers of a killed parent end by themselves
        assert begin("out", 2).wait() == 0
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "whole")


@given(
    a=st.lists(st.text("abc ", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=8),
    b=st.lists(st.text("abc ", min_size=1, max_size=30).filter(str.strip), max_size=8),
    duplicates=st.sampled_from(["keep", "exact", "near"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_that_come_later_change_nothing_about_those_that_were_there(a, b, duplicates, tmp_path_factory):
    place = tmp_path_factory.mktemp("growing")
    first = _lines(place / "first.jsonl", [{"text": t} for t in a])
    second = _lines(place / "second.jsonl", [{"text": t} for t in b])
    shares = {"valid_share": 0.2, "test_share": 0.2, "duplicates": duplicates}
    _prepare(first, place / "alone", **shares)
    _prepare([str(first), str(second)] if b else first, place / "both", **shares)
    of_first = [d for d in _all(place / "both") if d[1].startswith("first")]
    assert of_first == _all(place / "alone"), "same documents, same order, same sides"


@given(
    documents=st.lists(st.integers(1, 9), min_size=2, max_size=9),
    weights=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    packing=st.sampled_from(["concatenate", "best_fit"]),
    window=st.integers(1, 9),
    seed=st.integers(0, 99),
    seq_len=st.integers(2, 6),
)
@settings(max_examples=25, deadline=None)
def test_every_token_is_asked_once_an_epoch_under_any_weights(
    documents, weights, packing, window, seed, seq_len, tmp_path_factory
):
    """Ids are their own addresses: document 0 holds 0, 1, ..., the next goes on; so what is asked tells which token it was."""
    place = tmp_path_factory.mktemp("epochs")
    ids = iter(range(500))
    half = max(1, len(documents) // 2)
    for name, some in (("a", documents[:half]), ("b", documents[half:])):
        _lines(place / f"{name}.jsonl", [{"text": [next(ids) for _ in range(n)]} for n in some])
        _prepare(place / f"{name}.jsonl", place / name, tokenizer="integers:500", valid_share=0, test_share=0)
    spec = {
        "sources": {n: {"kind": "shards", "path": str(place / n)} for n in ("a", "b")},
        "packing": packing,
        "mixture": {"kind": "weighted", "weights": dict(zip("ab", map(float, weights), strict=True)), "window": window},
        "seq_len": seq_len,
        "batch_size": 2,
    }
    try:
        built = build_stream("text", StreamSpec.model_validate(spec))
    except DataError as e:
        assert "a row needs" in str(e) or "whole row" in str(e), "a source shorter than a row is refused"
        return
    rows_of = {n: s.size("train") for n, s in built.stream.sources.items()}
    draws = built.stream.draws(0, count=60, seed=seed)
    rows = built.stream.rows(0, count=60, seed=seed)
    for name, size in rows_of.items():
        mine = [(d, r) for d, r in zip(draws, rows, strict=True) if d.source == name]
        whole = len(mine) // size - (2 * window) // size - 1  # epochs that are surely over
        store = built.stream.sources[name].store
        tokens = [t for t in store.tokens("train", 0, int(store.offsets("train")[-1])).tolist() if t < 500]
        for epoch in range(whole):
            asked = Counter(
                int(t)
                for d, r in mine
                if d.epoch == epoch
                for t, w in zip(r.targets_T, r.weights_T, strict=True)
                if w > 0 and t < 500
            )
            if packing == "best_fit":
                assert asked == Counter(tokens)
            else:
                reached = (int(store.offsets("train")[-1]) - 1) // seq_len * seq_len
                told = store.tokens("train", 1, reached + 1).tolist()
                assert asked == Counter(t for t in told if t < 500), "all but what is left over behind the last whole row"


def test_a_document_s_side_follows_from_its_content_alone(tmp_path):
    records = [{"text": _text(i)} for i in range(300)]
    _prepare(_lines(tmp_path / "a.jsonl", records), tmp_path / "a", valid_share=0.1, test_share=0.1)
    random.Random(0).shuffle(records)
    _prepare(_lines(tmp_path / "b.jsonl", records), tmp_path / "b", valid_share=0.1, test_share=0.1)
    sides = [{text: split for split, _, text in _all(tmp_path / f)} for f in ("a", "b")]
    assert sides[0] == sides[1]
    assert 10 < sum(s == "test" for s in sides[0].values()) < 55


def test_all_sections_of_a_book_stand_on_one_side(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text("\n\n".join(_text(100 * i + j) for j in range(6)))
    _prepare(str(tmp_path / "*.txt"), tmp_path / "out", section_bytes=300, valid_share=0.3, test_share=0.3)
    sides = {}
    for split, name, _ in _all(tmp_path / "out"):
        sides.setdefault(name.split("#")[0], set()).add(split)
    assert len(sides) == 40 and all(len(s) == 1 for s in sides.values())
    assert {s for some in sides.values() for s in some} == set(SPLITS)


def test_near_duplicates_go_inside_and_across_sets(tmp_path):
    base = _text(0, 120).split()
    changed = " ".join([*base[:60], "comet", *base[61:]])
    records = [{"text": " ".join(base)}, {"text": changed}, {"text": _text(1, 120)}]
    file = _lines(tmp_path / "a.jsonl", records)
    m = _prepare(file, tmp_path / "out", duplicates="near", valid_share=0, test_share=0).manifest
    assert m["dropped"] == {"near duplicate": 1}
    other = _lines(tmp_path / "b.jsonl", [{"text": changed}, {"text": _text(2, 120)}, {"text": _text(1, 120)}])
    for against in (str(tmp_path / "out"), str(file)):
        place = tmp_path / f"b-{len(against)}"
        m = _prepare(other, place, duplicates="near", against=(against,), valid_share=0, test_share=0).manifest
        assert m["dropped"] == {"exact duplicate": 1, "near duplicate": 1} or m["dropped"] == {"exact duplicate": 2}
        assert [t for _, _, t in _all(place)] == [_text(2, 120)]


def test_what_shares_thirteen_words_with_an_evaluation_set_is_left_out_and_listed(tmp_path):
    question = _text(5, 30)
    evaluation = _lines(tmp_path / "eval.jsonl", [{"question": question, "answer": ["seed"]}])
    records = [{"text": f"{_text(6)} {question} {_text(7)}"}, {"text": _text(8)}, {"text": " ".join(question.split()[:12])}]
    m = _prepare(
        _lines(tmp_path / "a.jsonl", records), tmp_path / "out", decontaminate=(str(evaluation),), valid_share=0, test_share=0
    ).manifest
    assert m["documents"] == 2 and m["dropped"] == {"13-gram of an evaluation set": 1}
    (found,) = [json.loads(x) for x in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert found["id"] == "a.jsonl:1" and "eval.jsonl" in found["detail"] and " ".join(question.split()[:5]) in found["detail"]


def test_dialogues_keep_their_turns(tmp_path):
    turns = [{"role": "user", "content": "Grüß Gott: how?\nSo."}, {"role": "assistant", "content": "Well."}]
    _prepare(
        _lines(tmp_path / "a.jsonl", [{"messages": turns, "label": "greeting"}]), tmp_path / "out", valid_share=0, test_share=0
    )
    (document,) = open_prepared(tmp_path / "out").documents("train")
    assert [(t.speaker, t.text) for t in document.turns] == [(t["role"], t["content"]) for t in turns]
    assert document.meta == {"label": "greeting"}


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".jsonl"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_harmed_file_is_named_when_the_folder_is_opened(texts, tmp_path, suffix, harm):
    _prepare(texts, tmp_path / "out")
    file = tmp_path / f"out/train-00000{suffix}"
    raw = bytearray(file.read_bytes())
    if harm == "remove":
        file.unlink()
    else:
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw if harm == "flip" else raw[:-1])
    said = {"flip": "was altered", "cut": f"has {len(raw) - 1} bytes, {len(raw)} were written", "remove": "is missing"}[harm]
    for opened in (lambda: open_prepared(tmp_path / "out"), lambda: validate_folder(tmp_path / "out")):
        with pytest.raises(DataError, match=f"train-00000{suffix} {said}"):
            opened()


def test_another_tokenizer_than_the_folder_s_is_refused(texts, tmp_path):
    _prepare(texts, tmp_path / "out")
    with pytest.raises(DataError, match=r"was prepared with the tokenizer bytes-257 \(257 ids\), not with"):
        Shards(path=str(tmp_path / "out")).store(Integers(vocab=256))
    assert Shards(path=str(tmp_path / "out")).store(Bytes()).document("train", 0).text


def test_bad_input_stops_with_its_place_or_is_left_out_and_counted(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.txt").write_text("good text")
    (folder / "b.txt").write_bytes(b"fine\nbad \xff byte")
    _lines(folder / "c.jsonl", [{"text": "one"}]).open("a").write('{"text": \n{"text": "three"}\n')
    with pytest.raises(DataError, match=r"b.txt, line 2, byte 9"):
        _prepare(folder, tmp_path / "out")
    m = _prepare(folder, tmp_path / "skipped", on_error="skip", valid_share=0, test_share=0).manifest
    assert m["dropped"] == {"invalid JSON": 1, "invalid UTF-8": 1} and m["documents"] == 3
    details = [json.loads(x)["detail"] for x in (tmp_path / "skipped/dropped.jsonl").read_text().splitlines()]
    assert "line 2, byte 9" in details[0] and "c.jsonl, line 2" in details[1]


def test_nothing_is_overwritten_and_nothing_mixed(texts, tmp_path):
    _prepare(texts, tmp_path / "out")
    with pytest.raises(RefusedError, match="holds a finished preparation"):
        _prepare(texts, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    with pytest.raises(RefusedError, match="is not empty and holds no preparation"):
        _prepare(texts, tmp_path / "full")
    begun = tmp_path / "begun"
    _stopped_after_a_unit(texts, begun)
    (texts / "00.txt").write_text("changed since")
    with pytest.raises(RefusedError, match="beginnings of another preparation, or the input changed"):
        _prepare(texts, begun)
    for unit in (begun / module.WORK).glob("unit-*"):
        shutil.rmtree(unit)
    _prepare(texts, begun)  # nothing had been done, so nothing is lost


def _stopped_after_a_unit(texts, folder):
    folder.mkdir()
    work = plan(Preparation(paths=(str(texts),)))
    module.begin(folder, work)
    units.make_unit(folder, work, 0)


def test_no_space_left_loses_nothing_that_was_done(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT_BYTES", 1500)
    real, calls = units.ShardWriter.add, iter(range(1000))

    def full(self, *given):
        if next(calls) == 12:
            raise OSError(28, "No space left on device")
        return real(self, *given)

    with monkeypatch.context() as patch, pytest.raises(RunFailedError, match="No space left on device; what was done is kept"):
        patch.setattr(units.ShardWriter, "add", full)
        _prepare(texts, tmp_path / "out")
    done = len(list((tmp_path / "out/.work").glob("unit-*")))
    assert done > 0
    said = []
    prepare([texts], tmp_path / "out", say=said.append)
    assert said[0].startswith(f"going on: {done} of")


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"valid_share": 0.6, "test_share": 0.6}, ConfigError, "leave something to train on"),
        ({"duplicates": "some"}, ConfigError, "keep, exact or near"),
        ({"duplicates": "keep", "against": ("x",)}, ConfigError, "against takes duplicates out"),
        ({"tokenizer": "nowhere.json"}, DataError, "there is no tokenizer 'nowhere.json'"),
        ({"tokenizer": "integers:x"}, ConfigError, "needs a whole number"),
        ({"decontaminate": ("nowhere",)}, DataError, "nothing is found at nowhere"),
        ({"workers": 0}, ConfigError, "workers must lie in 1"),
        ({"most_bytes": 3}, DataError, "leaves no document"),
    ],
)
def test_wrong_settings_are_named(texts, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        _prepare(texts, tmp_path / "out", **more)


def _column_of(folder, name, file):
    return make_column(folder, name, {"kind": "from_file", "path": str(file)})


def test_columns_are_joined_by_id_and_orders_are_read_before_packing(tmp_path):
    file = _lines(tmp_path / "a.jsonl", [{"text": [10 * i, 10 * i + 1]} for i in range(4)])
    out = tmp_path / "out"
    _prepare(file, out, tokenizer="integers:100", valid_share=0, test_share=0)
    scores = _lines(
        tmp_path / "scores.jsonl", [{"id": f"a.jsonl:{n}", "value": v} for n, v in ((3, 0.5), (1, 2.0), (2, -1), (4, 1))]
    )
    _column_of(out, "score", scores)
    documents = open_prepared(out, columns=["score"]).documents("train")
    assert [d.meta["score"] for d in documents] == [2.0, -1.0, 0.5, 1.0]
    make_order(out, "best-first", {"kind": "by_column", "column": "score", "descending": True})
    spec = {
        "source": {"kind": "shards", "path": str(out), "order": "best-first"},
        "mixture": {"kind": "epochs", "shuffle": False},
    }
    built = build_stream("text", StreamSpec.model_validate({**spec, "seq_len": 3, "batch_size": 1}))
    shown = [r.tokens_T.tolist() for r in built.stream.rows(0, count=3, seed=0)]
    assert shown == [[100, 0, 1], [100, 30, 31], [100, 20, 21]], "scores 2, 1, 0.5"
    assert built.stream.sources["shards"].store.document("train", 1).id == "a.jsonl:4"
    with pytest.raises(DataError, match="the document 'a.jsonl:1' has no value"):
        _column_of(out, "half", _lines(tmp_path / "half.jsonl", [{"id": f"a.jsonl:{n}", "value": 1} for n in (2, 3, 4)]))
    with pytest.raises(DataError, match="line 1: its value is neither"):
        _column_of(out, "none", _lines(tmp_path / "none.jsonl", [{"id": "a.jsonl:1", "value": None}]))
    with pytest.raises(RefusedError, match="exists already"):
        _column_of(out, "score", scores)


def test_a_duplicate_cluster_is_named_by_its_first_document(tmp_path):
    base = _text(0, 120)
    file = _lines(tmp_path / "a.jsonl", [{"text": base}, {"text": _text(1, 120)}, {"text": base + " comet"}])
    _prepare(file, tmp_path / "out", valid_share=0, test_share=0)
    make_column(tmp_path / "out", "cluster", "cluster")
    documents = open_prepared(tmp_path / "out", columns=["cluster"]).documents("train")
    assert [d.meta["cluster"] for d in documents] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:1"]


def test_a_column_of_other_shards_is_refused(texts, tmp_path):
    for name, share in (("a", 0.1), ("b", 0.4)):
        _prepare(texts, tmp_path / name, valid_share=share)
    make_column(tmp_path / "a", "cluster", "cluster")
    os.rename(tmp_path / "a/columns", tmp_path / "b/columns")
    with pytest.raises(DataError, match="belongs to other shards"):
        open_prepared(tmp_path / "b", columns=["cluster"])


def test_work_that_is_there_is_not_done_again(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT_BYTES", 1500)
    work = plan(Preparation(paths=(str(texts),)))
    (tmp_path / "out").mkdir()
    module.begin(tmp_path / "out", work)
    make_units(tmp_path / "out", work, [0, 2], workers=1, say=_quiet)
    made = []
    monkeypatch.setattr(
        units, "make_unit", lambda folder, work, n, real=units.make_unit: (made.append(n), real(folder, work, n))
    )
    _prepare(texts, tmp_path / "out")
    assert made == [n for n in range(len(work.units)) if n not in (0, 2)]


def test_many_units_and_shards_need_few_file_descriptors(tmp_path, monkeypatch):
    file = _lines(tmp_path / "a.jsonl", [{"text": _text(i, 20)} for i in range(200)])
    monkeypatch.setattr(inputs, "UNIT_BYTES", 200)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 220, hard))
    try:
        m = _prepare(file, tmp_path / "out", shard_tokens=150, valid_share=0, test_share=0).manifest
        assert len(m["shards"]) > 150
        assert len(_all(tmp_path / "out")) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_flipped_bit_of_the_manifest_is_found(texts, tmp_path):
    _prepare(texts, tmp_path / "out")
    file = tmp_path / "out/manifest.json"
    raw = file.read_bytes()
    for at in range(0, len(raw), 41):
        for bit in (0, 3, 6):
            harmed = bytearray(raw)
            harmed[at] ^= 1 << bit
            file.write_bytes(harmed)
            with contextlib.suppress(ValueError, RecursionError):
                if json.loads(bytes(harmed)) == json.loads(raw):
                    continue  # white space for white space
            with pytest.raises(DataError, match="manifest.json"):
                open_prepared(tmp_path / "out")


def test_a_unit_that_was_altered_before_the_seal_is_refused(texts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "seal", lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        _prepare(texts, tmp_path / "out")
    (file,) = (tmp_path / "out/.work").glob("unit-*/unit.bin")
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DataError, match="unit.bin was altered"):
        _prepare(texts, tmp_path / "out")


def test_a_text_that_the_tokenizer_cannot_take_is_named_or_skipped(tmp_path):
    file = _lines(tmp_path / "a.jsonl", [{"text": [1, 2]}, {"text": [3, 99]}, {"text": [4]}])
    with pytest.raises(DataError, match="a.jsonl:2: .*99"):
        _prepare(file, tmp_path / "out", tokenizer="integers:10", valid_share=0, test_share=0)
    m = _prepare(file, tmp_path / "skipped", tokenizer="integers:10", valid_share=0, test_share=0, on_error="skip").manifest
    assert m["documents"] == 2 and m["dropped"] == {"not to be tokenized": 1}


def test_an_evaluation_set_may_be_a_prepared_folder(tmp_path):
    question = _text(5, 30)
    _prepare(_lines(tmp_path / "eval.jsonl", [{"text": question}]), tmp_path / "eval", valid_share=0, test_share=0)
    file = _lines(tmp_path / "a.jsonl", [{"text": f"{_text(6)} {question}"}, {"text": _text(8)}])
    m = _prepare(file, tmp_path / "out", decontaminate=(str(tmp_path / "eval"),), valid_share=0, test_share=0).manifest
    assert m["dropped"] == {"13-gram of an evaluation set": 1}


def test_a_name_that_leads_out_of_the_folder_is_refused(texts, tmp_path):
    _prepare(texts, tmp_path / "out")
    make_column(tmp_path / "out", "cluster", "cluster")
    with pytest.raises(ConfigError, match="letters, digits"):
        make_order(tmp_path / "out", "../../escaped", {"kind": "by_column", "column": "cluster"})
