"""In-context pre-training in small: an order in which each document stands beside the one most like it, by a lent model.

The model is a recipe's, trained first; the artefact is made once for all arms and seeds, goes on after a kill, and is charged.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from seedbed.core.errors import ConfigError, DataError
from seedbed.engine.ranks import Ranks
from seedbed.experiments.commands import validated
from seedbed.experiments.plan.load import load
from seedbed.experiments.prepare import passes
from seedbed.experiments.prepare.artefacts import prepare_recipe
from seedbed.experiments.run import prepared
from seedbed.experiments.run.artefact_facts import unmade
from seedbed.experiments.run.prepared import make_all
from tests.rehearsal.inputs import RECIPE, final

CODE = """
from dataclasses import dataclass

import numpy as np

from seedbed.core.protocols import ColumnKind, OrderKind, Refiner
from seedbed.core.records import Drop, Keep


@dataclass(frozen=True, kw_only=True)
class Related(OrderKind):
    neutral = "an order is one"
    calls = {"reader": "embed"}

    def read(self, documents, *, lent):
        return np.stack([states.mean(0) for states in lent["reader"].embed([d.text for d in documents])])

    def arrange(self, found_N, *, seed):
        alike = found_N / np.linalg.norm(found_N, axis=1, keepdims=True)
        order, left = [0], list(range(1, len(alike)))
        while left:  # the nearest that was not read yet, as in the paper
            order.append(left.pop(int(np.argmax(alike[left] @ alike[order[-1]]))))
        return np.array(order)


@dataclass(frozen=True, kw_only=True)
class Loss(ColumnKind):
    neutral = "a column changes nothing by itself"
    calls = {"reader": "score"}

    def read(self, documents, *, lent):
        return np.array([nats.mean() for nats in lent["reader"].score([d.text for d in documents])])


@dataclass(frozen=True, kw_only=True)
class Surprising(Refiner):
    neutral = {"most_nats": 1000.0}
    calls = {"reader": "score"}
    most_nats: float = 5.6

    def __call__(self, document, *, lent):
        (nats,) = lent["reader"].score([document.text])
        return Keep() if nats.mean() <= self.most_nats else Drop("too surprising", f"{nats.mean():.2f} nats")
"""
GIVER = RECIPE[: RECIPE.index("study:")].replace("name: rehearsal", "name: giver").replace("steps: 4", "steps: 2")
ORDERED = RECIPE.replace(
    "streams:\n",
    """models: {small: {from: "recipe:GIVER"}}
prepare:
  web:
    paths: [TEXTS]
    section_bytes: 400
    valid_share: 0.1
    test_share: 0.1
    lent: {reader: {kind: own_run, model: small}}
    refine: [{kind: "MINE:Surprising", most_nats: 1000.0}]
    columns: {loss: "MINE:Loss"}
    orders:
      related: "MINE:Related"
      easy: {kind: by_column, column: loss}
streams:
""",
).replace(
    "source: {kind: text, path: CORPUS, section_bytes: 400, valid_share: 0.1, test_share: 0.1}\n    tokenizer: bytes",
    'source: {kind: shards, path: "prepared:web"}\n    mixture: {kind: epochs, shuffle: false}',
    1,
)


@pytest.fixture
def ordered(rehearse, tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("SEEDBED_PREPARED", str(tmp_path / "prepared"))
    (tmp_path / "giver.yaml").write_text(GIVER.replace("CORPUS", str(corpus)))
    words = corpus.read_text().split()
    lines = (json.dumps({"text": " ".join(words[i : i + 40])}) + "\n" for i in range(0, min(len(words), 1200), 40))
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    recipe = ORDERED.replace("GIVER", str(tmp_path / "giver.yaml")).replace("TEXTS", str(tmp_path / "texts.jsonl"))
    method = rehearse(CODE, recipe)
    return method.sets(**{"streams.text.source.order": "related"})


def _quiet(line):
    pass


@pytest.mark.slow
def test_a_study_over_an_order_is_prepared_trained_and_judged(ordered, monkeypatch):
    whole = ordered.is_exact(monkeypatch)
    (folder,) = (Path(ordered.folder) / "prepared").glob("web-*")
    made = json.loads((folder / "artefact.json").read_text())
    order_N = np.fromfile(folder / "orders/related/train.bin", "<i8")
    assert sorted(order_N) == list(range(len(order_N))) and list(order_N) != sorted(order_N)
    assert not (folder / ".passes/order-related").exists()
    for arm in ("plain", "method"):
        told = final(whole.parents[1] / f"{arm}/seed-1")
        assert told["prepared"] == {"web": {"cost": "charged", "manifest": made["manifest"]}}
        line = told["ledger"]["text"]["prepare"]
        assert line["flops_run"] == made["cost"]["flops_run"] > 0 and line["seconds"] == made["cost"]["seconds"] > 0
    (giver,) = (Path(ordered.folder) / "prepared").glob(".web-*/givers/giver-*")
    trained = sum(line["flops_run"] for line in final(giver)["ledger"]["text"].values() if "flops_run" in line)
    assert made["cost"]["flops_run"] > trained, "its training, and what reading the documents took"


@pytest.mark.slow
def test_an_artefact_goes_on_after_a_kill_and_is_made_once(ordered, monkeypatch):
    prepare_recipe(ordered.recipe, say=_quiet)
    (folder,) = (Path(ordered.folder) / "prepared").glob("web-*")
    whole = {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*.bin")}
    said = []
    prepare_recipe(ordered.recipe, say=said.append)
    assert said == [], "what is there is not made again"
    monkeypatch.setenv("SEEDBED_PREPARED", str(ordered.folder / "again"))
    monkeypatch.setattr(passes, "_AT_ONCE", 8)
    for after in (1, 2):  # in the column's second pass, then in the order's first
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(passes, "spent", _stopping(passes.spent, after=after))
            prepare_recipe(ordered.recipe, say=_quiet)
    prepare_recipe(ordered.recipe, say=_quiet)
    (again,) = (Path(ordered.folder) / "again").glob("web-*")
    assert {f.relative_to(again): f.read_bytes() for f in again.rglob("*.bin")}.keys() == whole.keys()
    orders = [np.fromfile(place / "orders/easy/train.bin", "<i8") for place in (folder, again)]
    assert np.array_equal(*orders)


def _stopping(real, *, after):
    calls = iter(range(1000))

    def spent(lent):
        if next(calls) == after:
            raise KeyboardInterrupt
        return real(lent)

    return spent


def test_what_does_not_fit_is_found_by_validate_before_anything_is_made(ordered):
    for old, new, said in (
        ("paths: [", 'paths: ["nowhere", ', "nowhere"),
        ("kind: own_run, model: small", "kind: own_run, model: smal", "no model 'smal' under `models`; did you mean 'small'"),
        ("lent: {reader", "lent: {leader", "calls 'reader', which is not under `lent`; did you mean 'leader'"),
        ("    lent:", "    license: CC0\n    lent:", "prepare.web.license: unknown setting; did you mean 'licence'"),
        ('"related"', '"relatd"', "prepared:web: its block makes no order 'relatd'; did you mean 'related'"),
        ("    orders:", "    order:", "prepare.web.order: unknown setting; did you mean 'orders'"),
        ("columns: {loss:", "columns: {of: {kind: from_file, path: nowhere.jsonl}, loss:", "nowhere.jsonl"),
        ("prepared:web", "prepared:wbe", "no 'wbe' under `prepare`; did you mean 'web'"),
        ("column: loss", "column: los", "orders.easy: it reads the column 'los', .* did you mean 'loss'"),
        ("column: loss", "colum: loss", "did you mean 'column'"),
    ):
        text = ordered.recipe.read_text()
        assert old in text
        ordered.recipe.write_text(text.replace(old, new, 1))
        with pytest.raises((ConfigError, DataError), match=said):
            validated(ordered.recipe)
        ordered.recipe.write_text(text)
    giver, whole = ordered.folder / "giver.yaml", (ordered.folder / "giver.yaml").read_text()
    giver.write_text(whole.replace("    tokenizer: bytes\n", ""))
    with pytest.raises(ConfigError, match="prepare.web.lent: recipe:.*giver.yaml: streams.text.source: .* needs a tokenizer"):
        validated(ordered.recipe)
    giver.write_text(whole)
    validated(ordered.recipe)
    assert unmade(load(ordered.recipe).plan(arm="method", seed=0)) and not (ordered.folder / "prepared").exists()


def test_another_setting_is_another_artefact(ordered):
    def folder(**sets):
        return load(ordered.recipe, sets=sets).plan(arm="plain", seed=0).prepare["web"].folder

    first = folder()
    assert first == folder(**{"prepare.web.charged": False, "prepare.web.duplicates": "exact", "models.small.charged": False})
    assert first == folder(**{"models.other": {"from": "run:x"}}), "which nothing of it reads"
    (mine := ordered.folder / "mine.py").write_text(mine.read_text() + "# another text")
    assert len({first, folder(), folder(**{"prepare.web.section_bytes": 300}), folder(**{"prepare.web.seed": 1})}) == 4


@pytest.mark.slow
def test_what_it_was_made_from_may_go_but_not_change(ordered, tmp_path, monkeypatch):
    few = {"prepare.web.refine": []}
    prepare_recipe(ordered.recipe, say=_quiet, sets=few)
    (folder,) = (tmp_path / "prepared").glob("web-*")
    giver, texts = tmp_path / "giver.yaml", tmp_path / "texts.jsonl"
    first = json.loads((folder / "artefact.json").read_text())["lent"]
    giver.write_text(giver.read_text().replace("steps: 2", "steps: 3"))
    with pytest.raises(DataError, match=r"recipe:.*giver.yaml changed since .*web-.* was made from it .*; remove"):
        prepare_recipe(ordered.recipe, say=_quiet, sets=few)
    shutil.rmtree(folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(passes, "spent", _stopping(passes.spent, after=0))
        prepare_recipe(ordered.recipe, say=_quiet, sets=few)
    lines, written = texts.read_text(), texts.stat().st_mtime_ns
    texts.write_text(lines + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(DataError, match=r"texts.jsonl changed since"):  # shards of the old lines are there
        prepare_recipe(ordered.recipe, say=_quiet, sets=few)
    texts.write_text(lines)
    os.utime(texts, ns=(written, written))
    prepare_recipe(ordered.recipe, say=_quiet, sets=few)
    assert json.loads((folder / "artefact.json").read_text())["lent"] != first, "the model of three steps"
    assert not (folder / passes.WORK).exists()
    texts.unlink()
    assert prepare_recipe(ordered.recipe, say=_quiet, sets=few) == [folder], "what is gone is not needed"


def test_only_who_reads_an_artefact_waits_and_pays_for_it(ordered):
    sets = {
        "prepare.more": {"paths": [str(ordered.folder / "texts.jsonl")]},
        "streams.more.source": {"kind": "shards", "path": "prepared:more"},
    }
    loaded = load(ordered.recipe, sets={**sets, "study.arms": {"method": {"stages.text.stream": "more"}}})
    plans = {arm: loaded.plan(arm=arm, seed=0) for arm in loaded.arms}
    assert {arm: list(plan.prepare) for arm, plan in plans.items()} == {"plain": ["web"], "method": ["more"]}


def test_a_model_that_leads_back_to_its_artefact_is_refused(ordered, tmp_path):
    text = ordered.recipe.read_text()
    ordered.recipe.write_text(text.replace(str(tmp_path / "giver.yaml"), str(ordered.recipe)))
    with pytest.raises(ConfigError, match="a recipe takes a model from itself"):
        validated(ordered.recipe)
    ordered.recipe.write_text(text.replace("columns: {loss:", "columns: {kind:"))
    with pytest.raises(ConfigError, match="prepare.web.columns.kind.*give another name"):
        validated(ordered.recipe)


def test_a_giver_and_its_taker_that_read_one_artefact_pay_for_it_once(ordered, tmp_path):
    plain = ordered.recipe.read_text()
    for cut in ("    lent:", "    refine:", "    columns:", "    orders:", "      related:", "      easy:", "models:"):
        plain = "".join(line for line in plain.splitlines(keepends=True) if not line.startswith(cut))
    (tmp_path / "shared.yaml").write_text(plain.split("study:")[0].replace("name: rehearsal", "name: shared"))
    weights = f"evaluations: 1, weights: {{from: 'recipe:{tmp_path / 'shared.yaml'}', fresh: []}}}}"
    ordered.recipe.write_text(plain.split("study:")[0].replace("evaluations: 1}", weights))
    make_all([ordered.plan(arm="run")], say=_quiet)
    told = final(ordered.run("taker", arm="run"))
    (giver,) = (ordered.folder / "taker/givers").iterdir()
    spent = [line for name, line in final(giver)["ledger"]["text"].items() if name != "tokens"]
    ledger = told["ledger"]["text"]
    assert ledger["prepare"] == final(giver)["ledger"]["text"]["prepare"] and ledger["prepare"]["seconds"] > 0
    rest = sum(line["seconds"] for line in spent) - ledger["prepare"]["seconds"]
    assert ledger["givers"]["seconds"] == pytest.approx(rest, abs=1e-9)


def test_several_ranks_do_not_wait_for_one_that_prepares(ordered, monkeypatch):
    monkeypatch.setattr(prepared, "join_ranks", lambda: Ranks(size=2))
    with pytest.raises(DataError, match="is not made yet.*seedbed prepare RECIPE"):
        make_all([ordered.plan()], say=_quiet)
