"""Rehearsals run a user's own code, in this process."""

import pytest
import scipy.stats  # noqa: F401  # which the first verdict imports, as it does the page: no case is charged for that

import seedbed.report.page  # noqa: F401
from tests.rehearsal.inputs import RECIPE, Rehearsal


@pytest.fixture
def rehearse(tmp_path, corpus, monkeypatch, runs_here):
    """Give a function (code, recipe) that lays a method out in a folder of its own."""
    monkeypatch.setenv("SEEDBED_ALLOW_LOCAL_CODE", "1")
    return lambda code, recipe=RECIPE: Rehearsal(tmp_path, corpus, code, recipe)
