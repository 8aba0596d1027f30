"""Whole runs by a covering array: few runs of the tiny recipe switch on every part that a recipe can, one of every room each.

Each is run as a user runs it, stopped in the middle and gone on with, to the numbers of the undisturbed run.
"""

import itertools

import pytest

from seedbed.core.errors import InterruptedRunError
from seedbed.experiments.plan.run_plan import read_plan
from seedbed.experiments.run.run import create, execute
from seedbed.experiments.run.signals import Signals
from tests.contracts.inputs import covering, plan_of, prepared_inputs, variants
from tests.rehearsal.inputs import final, numbers


@pytest.fixture(scope="module")
def inputs(once):
    return prepared_inputs(once)


def test_few_runs_switch_on_every_part_once(inputs):
    runs = covering(inputs)
    assert len(runs) <= 6 < len(variants())


@pytest.mark.slow
def test_every_run_ends_and_goes_on_to_the_bit(inputs, tmp_path, monkeypatch):
    for number, sets in enumerate(covering(inputs)):
        plan, _ = plan_of(sets, inputs, stream="soil")  # both of its stages
        whole, stopped = tmp_path / f"{number}-whole", tmp_path / f"{number}-stopped"
        for folder in (whole, stopped):
            create(plan, folder, recipe_text="x")
        execute(whole, say=lambda line: None)
        with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
            patch.setattr(Signals, "stopped", lambda self, calls=itertools.count(1): next(calls) == 9)
            execute(stopped, say=lambda line: None)
        execute(stopped, say=lambda line: None)
        assert numbers(whole) == numbers(stopped) and len(numbers(whole)) == 14, sets
        told = final(whole)
        assert told["status"] == "done" and set(told["evaluations"]) == {"text", "rules"}, sets
        assert told["evaluations"] == final(stopped)["evaluations"]
        assert read_plan(whole).fingerprint() == plan.fingerprint()
