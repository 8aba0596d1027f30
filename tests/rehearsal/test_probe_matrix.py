"""A probe matrix: which data help which evaluation, tried by short branches that leave the run as it is."""

import pytest

from seedbed.core.errors import ConfigError, DataError
from seedbed.experiments.run.probes import probe_matrix
from seedbed.report.page import write_page
from tests.rehearsal.inputs import final, numbers

PROBES = """
probes:
  skills:
    at: text
    stage: {name: tune, stream: text, budget: {steps: 2}, evaluations: 1}
    candidates: {same: {}, other: {stream: more}, longer: {budget.steps: 3}}
    evaluate:
      text: {kind: bits_per_byte, over: {kind: text, path: CORPUS, section_bytes: 400, test_share: 0.1}, test_bytes: 500}
"""


@pytest.fixture
def probed(rehearse, corpus):
    method = rehearse("")
    text = method.recipe.read_text().split("study:")[0]
    method.recipe.write_text(text + PROBES.replace("CORPUS", str(corpus)))
    return method


@pytest.mark.slow
def test_candidates_are_tried_by_branches_and_make_a_matrix(probed, monkeypatch):
    whole = probed.is_exact(monkeypatch, judged=False)
    found = probe_matrix(whole, "skills")
    assert found.candidates == ("same", "other", "longer") and found.outcomes == ("text.bits_per_byte", "text.loss_nats")
    assert found.better == ("less", "less") and found.units[0] == "bits per byte"
    said = final(whole)
    for candidate, row in zip(found.candidates, found.values, strict=True):
        told = said["branches"][f"skills-{candidate}"]["evaluations"]["text"]["numbers"]
        assert row == (told["bits_per_byte"], told["loss_nats"])
    assert len(set(found.values)) == 3, "other rows, and more steps, come to other numbers"
    assert found.trunk[0] == said["evaluations"]["text"]["numbers"]["bits_per_byte"]
    assert [len(numbers(whole / f"branches/skills-{c}")) for c in found.candidates] == [2, 2, 3]
    plain = probed.run("plain", sets={"probes": {}})
    assert numbers(plain) == numbers(whole), "the trunk is the run without probes, bit for bit"
    with pytest.raises(ConfigError, match="no probe 'skill'; did you mean 'skills'"):
        probe_matrix(whole, "skill")
    (whole / "final.json").unlink()
    with pytest.raises(DataError, match="has not ended"):
        probe_matrix(whole, "skills")


@pytest.mark.pages
@pytest.mark.slow
def test_the_page_shows_the_matrix(probed):
    html = write_page(probed.run("run")).read_text()
    assert "Probe skills" in html and html.count("<td>other</td>") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{stream: more}", "{stream: mor}", "branches.skills-other.stages.tune.stream: no stream 'mor'; did you mean 'more'"),
        ("at: text", "at: txt", "branches.skills-same.at: no stage 'txt'; did you mean 'text'"),
        ("{budget.steps: 3}", "{budgt.steps: 3}", "budgt: no such key"),
        ("{same: {}, other: {stream: more}, longer: {budget.steps: 3}}", "{}", "probes.skills.candidates"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(probed, old, new, said):
    text = probed.recipe.read_text()
    assert old in text
    probed.recipe.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        probed.plan()
