"""A study is judged by a number, or by what a function makes of a curve on the way."""

import json

import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.run_record import RunRecord
from seedbed.experiments.study.check import check_comparison
from seedbed.experiments.study.outcomes import crossing, dip, recovery
from seedbed.experiments.study.study import compare


def _compare(recipe, out, metric, **sets):
    return compare(recipe, out=out, jobs=2, threads=1, say=lambda line: None, sets={"study.metric": metric, **sets})


def test_a_gap_that_closes_has_a_depth_and_a_time():
    curve = [(10, 2.0), (20, 2.4), (30, 2.2), (40, 2.0), (50, 1.8)]
    assert dip(curve) == pytest.approx(0.4) and recovery(curve) == 40
    again = [(10, 2.0), (20, 1.9), (30, 2.1), (40, 1.9)]
    assert recovery(again) == 40, "a value that does not last does not count"
    assert recovery(curve[:3]) == 30, "of one that does not come back its end, a lower bound"


def test_curves_cross_where_one_stays_ahead():
    one = [(10, 1.0), (20, 3.0), (30, 1.0), (40, 1.0)]
    assert crossing(one, [(t, 2.0) for t in (10, 20, 30, 40)]) == 30
    assert crossing(one[:2], [(10, 2.0), (20, 2.0)]) is None and crossing([], []) is None


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_a_study_is_judged_by_the_deepest_dip_of_what_is_watched(recipe, tmp_path):
    sets = {
        "study.arms": {"nca": {"without": "soil"}},
        "evaluate.text.watch": {"every": 1},
        "stages.text.optimizer": {"kind": "adamw", "learning_rate": 0.3},
    }
    found = compare(recipe, out=tmp_path / "out", seeds=[0], sets={"study.metric": "text.loss_nats.dip", **sets})
    data = found.data
    assert (data["metric"], data["unit"], data["better"]) == ("text.loss_nats.dip", "nats per token", "less")
    for arm, told in data["arms"].items():
        for seed, numbers in told["per_seed"].items():
            curve = RunRecord(tmp_path / "out" / arm / f"seed-{seed}").watched("text", "loss_nats", stage="text")
            assert len(curve) == 8 and numbers["loss_nats.dip"] == dip(curve)
    assert any(told["mean"] > 0 for told in data["arms"].values()), "at such a rate losses leap"
    (contrast,) = data["contrasts"]
    assert contrast["mean_nats"] is None and "nats per token" in data["verdict"]
    assert check_comparison(tmp_path / "out") == []
    file = tmp_path / "out/comparison.json"
    file.write_text(json.dumps(data | {"arms": data["arms"] | {"nca": data["arms"]["nca"] | {"mean": 9.0}}}))
    assert check_comparison(tmp_path / "out")


@pytest.mark.parametrize(
    ("metric", "sets", "said"),
    [
        ("text.loss_nats.depth", {}, "no function 'depth' of a curve; did you mean|known: dip, last, recovery"),
        ("text.loss_nats.dip", {"evaluate.text.watch": False}, "dip is read off a curve, and text is not watched"),
        ("text.dip", {}, "text has no measure 'dip'; known: bits_per_byte, loss_nats"),
        ("texts", {}, "has no evaluation 'texts'; did you mean 'text'"),
        ("rules.loss_nats", {}, "arm scratch has no evaluation 'rules'"),
        ("Text!", {}, "study.metric"),
        (
            "rules.loss_nats.last",
            {"study.arms": {}, "study.control": {"name": "nca"}, "tune": None},
            "not read on the way through stage text",
        ),
    ],
)
def test_an_outcome_that_cannot_be_read_is_refused(recipe, tmp_path, metric, sets, said):
    with pytest.raises(ConfigError, match=said):
        _compare(recipe, tmp_path / "out", metric, **sets)
    assert not (tmp_path / "out").exists()
