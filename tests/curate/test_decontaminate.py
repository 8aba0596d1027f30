"""Contamination: runs of 13 words and whole short texts are found, with their set and words, as tools/build_builtin.py does."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.core.errors import ConfigError
from seedbed.curate.decontaminate import Contamination, Decontaminate, Match
from tests.conftest import SHARED

WORDS = [f"word{i}" for i in range(14)]
DATA = SHARED / "data"
no_data = pytest.mark.skipif(not (DATA / "humaneval").is_dir(), reason="GSM8K, HumanEval and MBPP are not on this machine")


@pytest.fixture(scope="module")
def tool():
    pytest.importorskip("zstandard")
    spec = importlib.util.spec_from_file_location("build_builtin", Path(__file__).parents[2] / "tools/build_builtin.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _index(*texts, ngram=13):
    return Decontaminate(ngram=ngram).index(texts)


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not():
    known = _index(("quiz", " ".join(WORDS)))
    shouted = ", ".join(WORDS[:13]).upper()
    assert known.found(f"Here: {shouted}!") == Match(evaluation="quiz", kind="13-gram", words=shouted)
    assert known.found(" ".join(WORDS[:12]) + " else " + " ".join(WORDS[12:])) is None
    assert known.found("") is None


def test_a_short_text_is_found_as_a_whole_document_only():
    known = _index(("quiz", "The answer is 5."), ("quiz", " ".join(WORDS)), ("facts", "Paris"), ("facts", "..."))
    assert known.found("(the ANSWER is 5)") == Match(evaluation="quiz", kind="whole text", words="the ANSWER is 5")
    assert known.found("PARIS") == Match(evaluation="facts", kind="whole text", words="PARIS")
    assert known.found("so the answer is 5") is None
    assert known.found("The answer is 5. " * 4) is None
    assert known.found("...") is None
    assert (known.names, known.texts, known.short_texts) == (("quiz", "facts"), (2, 2), (1, 2))


def test_the_first_match_of_the_document_is_told_and_the_first_set_that_has_it():
    known = _index(("b", "x x y z"), ("a", "z z z"), ("a", "x y z"), ("b", "z z z"), ngram=3)
    assert known.found("o o z Z z x y z") == Match(evaluation="b", kind="3-gram", words="z Z z")
    assert _index(("a", "x y z"), ("b", "x y z"), ngram=3).found("x, y, z").evaluation == "a"


def test_hashes_are_sorted_and_each_once():
    known = _index(("a", "p q r s"), ("b", "q r s t"), ngram=3)
    assert (np.diff(known.runs.hashes_G) > 0).all() and known.runs.hashes_G.dtype == np.uint64
    assert sorted(known.runs.names_G.tolist()) == [0, 0, 1] and known.runs.names_G.dtype == np.int32


def test_nothing_is_found_in_an_index_of_nothing():
    known = _index()
    assert known.found(" ".join(WORDS)) is None and known.found("short") is None
    assert known.names == ()


def test_a_worker_finds_the_same_as_who_sent_it():
    known = _index(("quiz", " ".join(WORDS)), ("quiz", "short one"))
    for sent in (known, pickle.loads(pickle.dumps(known))):  # the second time with what the first search has prepared
        copy: Contamination = pickle.loads(pickle.dumps(sent))
        for text in (" ".join(WORDS), "short one", "neither"):
            assert copy.found(text) == known.found(text)
        assert copy.fingerprint() == known.fingerprint()


def test_the_fingerprint_tells_what_is_found_and_nothing_else():
    print_ = _index(("a", "p q r s"), ("b", "one two"), ngram=3).fingerprint()
    assert print_ == _index(("a", "P, q; r s!"), ("b", "one\ntwo"), ngram=3).fingerprint()
    for other in (
        _index(("a", "p q r s"), ("b", "one two"), ngram=4),
        _index(("c", "p q r s"), ("b", "one two"), ngram=3),
        _index(("a", "p q r s"), ("b", "two one"), ngram=3),
        _index(("a", "p q r"), ("b", "one two"), ngram=3),
        _index(("a", "p q r s"), ("a", "one two"), ("b", ""), ngram=3),
    ):
        assert other.fingerprint() != print_


def test_a_run_of_one_word_is_refused():
    with pytest.raises(ConfigError, match=r"ngram must lie in 2\.\.1,000, got 1"):
        Decontaminate(ngram=1)


TEXT = st.lists(st.sampled_from(["a", "b", "C ", "a_1", "9", ", ", "\n", "-"]), max_size=40).map(" ".join)


@given(TEXT, TEXT, st.sampled_from([3, 5]))
@settings(max_examples=300, deadline=None)
def test_matches_are_those_of_the_tool_that_built_the_corpora(tool, evaluation, document, n):
    known = _index(("quiz", evaluation), ngram=n)
    shared = tool.ngrams(evaluation, n) & tool.ngrams(document, n)
    assert known.runs.hashes_G.size == len(tool.ngrams(evaluation, n))
    match = known.found(document)
    assert (match is not None and match.kind == f"{n}-gram") == bool(shared)
    if shared:
        assert tool.ngrams(match.words, n) <= shared and match.words in document


@no_data
def test_gsm8k_train_is_nearly_clean_of_the_evaluation_sets_and_what_is_found_is_what_the_tool_dropped(tool):
    known = Decontaminate().index(
        (name.split("/", maxsplit=1)[0], text)
        for name in tool.EVALUATION
        for row in tool.lines(DATA / f"{name}.jsonl.zst")
        for value in row.values()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str)
    )
    assert known.names == ("gsm8k", "humaneval", "mbpp_sanitized")
    matches = {d["id"]: known.found(d["text"]) for d in tool.math(DATA)}
    dropped = [i for i, match in matches.items() if match]
    assert dropped == json.loads((tool.OUT / "ORIGIN.json").read_text())["math"]["dropped_for_13_gram_overlap"]
    assert 0 < len(dropped) < 0.005 * len(matches)


@no_data
def test_a_test_question_planted_in_a_training_text_is_found_with_its_words(tool):
    questions = [str(row["question"]) for row in tool.lines(DATA / "gsm8k/test.jsonl.zst")]
    known = Decontaminate().index(("gsm8k", q) for q in questions)
    clean = next(d["text"] for d in tool.math(DATA) if known.found(d["text"]) is None)
    match = known.found(f"{clean}\n{questions[700]}\n{clean}")
    assert match.evaluation == "gsm8k" and questions[700].startswith(match.words) and len(match.words.split()) >= 10


@pytest.mark.skipif(not (DATA / "mgsm").is_dir(), reason="MGSM is not on this machine")
@pytest.mark.parametrize(("language", "ngram"), [("zh", 13), ("ja", 13), ("th", 20)])
def test_a_question_in_a_script_without_spaces_is_found_and_others_are_not(tool, language, ngram):
    questions = [str(r["question"]) for r in tool.lines(DATA / "mgsm/test.jsonl.zst") if r["lang"] == language]
    known, others = questions[:125], questions[125:]
    index = _index(*(("mgsm", q) for q in known), ngram=ngram)
    assert [index.found(q) for q in others] == [None] * 125
    match = index.found(f"{others[0]}\n{known[7]}")
    assert match.evaluation == "mgsm" and match.words in known[7]


@pytest.mark.skipif(not (DATA / "mgsm").is_dir(), reason="MGSM is not on this machine")
def test_thirteen_letters_of_thai_are_too_few(tool):
    """The docstring warns of it with this number."""
    questions = [str(r["question"]) for r in tool.lines(DATA / "mgsm/test.jsonl.zst") if r["lang"] == "th"]
    index = _index(*(("mgsm", q) for q in questions[:125]))
    assert sum(index.found(q) is not None for q in questions[125:]) == 16
