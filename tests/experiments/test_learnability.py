import json

import pytest

from seedbed.core.errors import ConfigError, RefusedError
from seedbed.experiments.study.learnability import learnability_map


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_a_map_measures_every_setting_and_goes_on_where_it_stopped(tmp_path):
    sets = {"map.blocks": {"tiny": {"grid": {"streams.soil.source.states": [2, 3]}}}}
    found = learnability_map("nca-map", out=tmp_path / "map", scale="smoke", sets=sets)
    assert [s["source"]["states"] for s in found.data["settings"]] == ["2", "3"]
    for s in found.data["settings"]:
        assert s["below_nats"] == pytest.approx(min(s["floors_nats"].values()) - s["loss_nats"])
        assert s["below_on_the_way"][-1][1] == pytest.approx(s["below_nats"]), "the last look is the record"
        assert len(s["floors_nats"]) == 6 and len(s["below_by_frame"]) >= 3
        assert s["seq_len"] >= 128 and 0 <= s["greedy"]["frame"] <= s["greedy"]["cell"] <= 1
    assert "| 3 | 6 |" in (tmp_path / "map" / "map.md").read_text()
    assert "<svg" in (tmp_path / "map" / "figures" / "learnability.svg").read_text()
    before = (tmp_path / "map" / "tiny-0" / "seed-0" / "final.json").stat().st_mtime_ns
    again = learnability_map("nca-map", out=tmp_path / "map", scale="smoke", sets=sets)
    assert (tmp_path / "map" / "tiny-0" / "seed-0" / "final.json").stat().st_mtime_ns == before
    assert json.dumps(again.data["settings"]) == json.dumps(found.data["settings"])
    with pytest.raises(RefusedError, match="another search"):
        learnability_map("nca-map", out=tmp_path / "map", scale="smoke", sets={**sets, "map.tokens_per_step": 1024})


def test_a_recipe_without_a_map_says_so(tmp_path):
    with pytest.raises(ConfigError, match="has no `map:` block"):
        learnability_map("nca-demo", out=tmp_path / "map")
