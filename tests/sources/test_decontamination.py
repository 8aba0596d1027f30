"""The corpora in the package share no run of 13 words with the evaluation sets that users will report."""

import importlib.util
from pathlib import Path

import pytest

from seedbed.sources.text import Text
from tests.conftest import SHARED

spec = importlib.util.spec_from_file_location("build_builtin", Path(__file__).parents[2] / "tools/build_builtin.py")
tool = importlib.util.module_from_spec(spec)
pytest.importorskip("zstandard")
spec.loader.exec_module(tool)


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not():
    words = [f"word{i}" for i in range(14)]
    banned = tool.ngrams(" ".join(words))
    assert len(banned) == 2
    assert tool.ngrams("Here: " + ", ".join(words[:13]).upper()) & banned
    assert not tool.ngrams(" ".join(words[:12]) + " else " + " ".join(words[12:])) & banned


@pytest.mark.skipif(not (SHARED / "data/humaneval").is_dir(), reason="GSM8K test, HumanEval and MBPP are not on this machine")
@pytest.mark.parametrize("name", ["prose", "math", "code"])
def test_the_built_in_corpora_are_clean(name):
    banned = tool.evaluation_ngrams(SHARED / "data")
    assert len(banned) > 50_000
    dirty = [d.id for d in Text(path=f"builtin:{name}", section_bytes=0).all_documents() if tool.ngrams(d.text) & banned]
    assert dirty == []
