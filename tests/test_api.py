"""The Python interface: every command is one function that takes paths as text and returns a typed result."""

import shutil
import subprocess
import sys

import pytest

import seedbed


@pytest.mark.slow
def test_importing_seedbed_costs_nothing():
    code = "import sys, seedbed; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_session_in_python(a_study, tmp_path):
    out, recipe, corpus = str(tmp_path / "study"), str(a_study / "tiny.yaml"), a_study / "corpus.txt"
    shutil.copytree(a_study / "out", out)
    found = seedbed.compare(recipe, out=out, threads=1, say=lambda line: None)
    assert found.verdict == found.data["verdict"] and seedbed.check_comparison(out) == []
    run = seedbed.run(recipe, out=str(tmp_path / "run"), arm="nca", threads=1, say=lambda line: None)
    assert seedbed.resume(str(tmp_path / "run"), say=lambda line: None).final == run.final
    assert seedbed.evaluate_text(str(run.folder), str(corpus))["bytes"] == corpus.stat().st_size
    assert len(seedbed.sample(str(run.folder), ["The "], new_tokens=2)) == 1


def test_every_name_that_is_offered_is_there():
    assert all(getattr(seedbed, name) for name in seedbed.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = seedbed.nonsense
