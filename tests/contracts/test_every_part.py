"""One suite over every registered part of every room: found, documented, checked, and what each room promises beside."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from seedbed.core.errors import ConfigError
from seedbed.core.protocols import (
    Corpus,
    Mixture,
    Model,
    ModelKind,
    Objective,
    OptimizerKind,
    Packer,
    Prepared,
    Schedule,
    Source,
    Tokenizer,
    TokenStore,
    TrackerKind,
    View,
)
from seedbed.core.records import Draw, Key, Progress, Row
from seedbed.engine.precision import PRECISIONS
from seedbed.experiments import commands
from seedbed.experiments.assemble import layout_free, rooms
from seedbed.experiments.prepare import prepare
from seedbed.experiments.recipe import load
from seedbed.experiments.tokenizing import train

MIXED = {"weighted", "by_loss"}  # mixtures that weigh several sources
PARTS = [(room, name) for room, registry in rooms().items() for name in registry]
PROMISES = {
    "tokenizers": Tokenizer,
    "packing": Packer,
    "mixture": Mixture,
    "views": View,
    "objectives": Objective,
    "schedules": Schedule,
    "trackers": TrackerKind,
}


def _of(room):
    return [name for r, name in PARTS if r == room]


@pytest.mark.parametrize(("room", "name"), PARTS)
def test_it_is_a_frozen_dataclass_with_a_documented_module(room, name):
    part = rooms()[room].resolve(name)
    assert dataclasses.is_dataclass(part) and part.__dataclass_params__.frozen
    assert part.__module__.startswith(f"seedbed.{room}.") or part.__module__.startswith(f"seedbed.models.{room}.")
    doc = inspect.getdoc(inspect.getmodule(part))
    assert len(doc) > 40


@pytest.mark.parametrize(("room", "name"), [(r, n) for r, n in PARTS if r not in ("scorers", "writers", "models")])
def test_its_defaults_are_allowed_and_an_unknown_setting_is_not(room, name):
    registry = rooms()[room]
    assert registry.build(name) == registry.build({"kind": name})
    with pytest.raises(ConfigError, match=f"{room}.nonsense: unknown setting"):
        registry.build({"kind": name, "nonsense": 1}, path=room)


@pytest.fixture(scope="module")
def needed(tmp_path_factory):
    """What parts need that read something prepared: their settings, by room and name."""
    folder = tmp_path_factory.mktemp("needed")
    lines = "".join(json.dumps({"text": [n % 7, 3, (5 * n) % 11, n % 3] * 30}) + "\n" for n in range(60))
    (folder / "numbers.jsonl").write_text(lines)
    prepare(
        [folder / "numbers.jsonl"],
        folder / "shards",
        valid_share=0.1,
        test_share=0.1,
        duplicates="keep",
        say=lambda x: None,
    )
    train(["builtin:code"], folder / "tokenizer.json", kind="bpe", vocab_size=300, special_tokens=["<|endoftext|>"])
    return {
        ("sources", "shards"): {"path": str(folder / "shards")},
        ("tokenizers", "file"): {"path": str(folder / "tokenizer.json")},
    }


@pytest.mark.parametrize(("room", "name"), [(r, n) for r, n in PARTS if r in PROMISES])
def test_it_keeps_its_room_s_promise(room, name, needed):
    assert isinstance(rooms()[room].build({"kind": name, **needed.get((room, name), {})}), PROMISES[room])


@pytest.mark.parametrize("name", _of("sources"))
def test_a_source_or_corpus_repeats_itself_by_address(name, needed):
    spec = {"kind": name, **needed.get(("sources", name), {})}
    first, second = (rooms()["sources"].build(spec, shared={"seq_len": 80}) for _ in range(2))
    if isinstance(first, Prepared):
        first, second = (s.store(rooms()["tokenizers"].build(s.tokenizer_spec())) for s in (first, second))
        assert isinstance(first, TokenStore) and isinstance(first, Corpus)
        np.testing.assert_array_equal(first.tokens("train", 5, 900), second.tokens("train", 5, 900))
    assert first.fingerprint() == second.fingerprint()
    if isinstance(first, Corpus) and not isinstance(first, Source):
        assert [d.id for d in first.documents("test")] == [d.id for d in second.documents("test")]
        return
    rows = first.rows([5, 2, 9], seed=1, split="train")
    again = second.rows([2], seed=1, split="train")[0]
    np.testing.assert_array_equal(rows[1].tokens_T, again.tokens_T)
    assert all(len(r.tokens_T) == len(r.weights_T) == 81 for r in rows)
    assert max(r.tokens_T.max() for r in rows) < first.vocab_size
    others = [first.rows([2], seed=s, split=t)[0].tokens_T for s, t in ((2, "train"), (1, "valid"), (1, "test"))]
    assert all(not np.array_equal(again.tokens_T, o) for o in others), "other seeds and splits are other rows"
    assert again.cost.flops_run > 0, "making it is charged"


@pytest.mark.parametrize("name", _of("views"))
def test_a_view_is_a_function_of_row_and_key(name):
    view = rooms()["views"].build(name)
    row = Row(tokens_T=np.arange(30), weights_T=np.ones(30))
    key = Key(seed=0, stream="s", position=4, draw=Draw("x", 4, 0))
    one, two = view(row, key=key), view(row, key=key)
    np.testing.assert_array_equal(one.tokens_T, two.tokens_T)
    np.testing.assert_array_equal(row.tokens_T, np.arange(30))


@pytest.mark.parametrize("name", _of("schedules"))
def test_a_schedule_lies_between_zero_and_one(name):
    schedule = rooms()["schedules"].build(name)
    for steps in (1, 2, 7, 1000):
        rates = [schedule(Progress(step=s, steps=steps)) for s in range(steps)]
        assert all(0 <= r <= 1 for r in rates)
        assert steps < 7 or max(rates) > 0.4


@pytest.mark.parametrize("name", _of("mixture"))
def test_a_mixture_gives_the_same_draws_however_they_are_cut(name):
    mixture = rooms()["mixture"].build(name)
    sizes = {"a": 12, "b": 30} if name in MIXED else {"a": 12}
    if name in MIXED:
        mixture = mixture.resolved({n: {"bytes": 10.0 * size} for n, size in sizes.items()})
    whole = mixture.draws(0, count=50, sizes=sizes, seed=3)
    assert whole == [d for s in range(0, 50, 7) for d in mixture.draws(s, count=min(7, 50 - s), sizes=sizes, seed=3)]
    assert mixture.wants is None or isinstance(mixture.wants[0], str)


@pytest.mark.parametrize("name", _of("models"))
def test_a_model_gives_every_parameter_a_role_and_says_its_blocks(name):
    kind = rooms()["models"].build({"kind": name, "size": "0.1M"})
    assert isinstance(kind, ModelKind) and kind.width > 0
    model = kind.build(vocab_size=9)
    assert isinstance(model, Model) and len(model.blocks) > 0
    assert {n for n, _ in model.named_parameters()} == set(model.roles)


@pytest.mark.parametrize("name", _of("optimizers"))
def test_an_optimizer_lowers_a_loss_and_its_state_can_be_saved(name):
    kind = rooms()["optimizers"].build(name)
    assert isinstance(kind, OptimizerKind)
    assert kind.learning_rate > 0
    p = torch.nn.Parameter(torch.ones(3, 3))
    from seedbed.core.records import Role

    optimizer = kind.build([(Role("mlp", 0, "up"), p)])
    losses = []
    for _ in range(20):
        loss = (p**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def _where(source):
    """The settings by which the tiny recipe trains on a source: text in its last stage, rows in its first; its own stay."""
    if source in ("nca", "text"):
        return {}
    part = rooms()["sources"].build(source, shared={"seq_len": 32})
    return {f"streams.{'text' if isinstance(part, Corpus | Prepared) else 'soil'}.source": source}


def _variants():
    """A run for every part that a recipe can switch on: room, name, and the settings that do it."""
    paths = {
        "optimizers": "stages.text.optimizer",
        "schedules": "stages.text.schedule",
        "tokenizers": "streams.text.tokenizer",
        "packing": "streams.text.packing",
        "mixture": "streams.text.mixture",
    }
    out = [(r, n, {paths[r]: n}) for r, n in PARTS if r in paths]
    out += [("sources", n, _where(n)) for n in _of("sources")]
    out += [("precision", n, {}) for n in PRECISIONS if n != "auto"]
    out += [("views", n, {"streams.text.views": [*([] if n == "next_token" else [n]), "next_token"]}) for n in _of("views")]
    out += [("objectives", n, {"stages.text.objective": [n]}) for n in _of("objectives")]
    out += [("layers", n, {"model.layers": {"linear": n}}) for n in _of("layers")]
    out += [("models", n, {"model.kind": n}) for n in _of("models")]
    return out


DATA_ROOMS = ("sources", "tokenizers", "packing", "mixture", "views")


def _settled(room, name, sets, needed):
    if (room, name) in needed:
        sets = {path: {"kind": name, **needed[room, name]} for path in sets}
    if name == "integers":
        numbers = Path(needed["sources", "shards"]["path"]).with_name("numbers.jsonl")
        sets = sets | {"streams.text.source.path": str(numbers), "evaluate.samples": ["1 2"]}
    return sets


@pytest.mark.parametrize(("room", "name", "sets"), _variants(), ids=lambda x: x if isinstance(x, str) else "")
def test_stopping_and_going_on_is_exact_with_every_part(room, name, sets, recipe, tmp_path, monkeypatch, needed):
    """2N steps equal N steps, a stop and N steps, bit for bit; where rows are made, with another number of data workers."""
    from seedbed.core.errors import InterruptedRunError
    from seedbed.experiments import run as module
    from seedbed.experiments.run import Sitting, create, execute

    sets = _settled(room, name, sets, needed)
    precision = name if room == "precision" else None
    in_soil = name == "nca" or any(path.startswith("streams.soil") for path in sets)
    arm, half = ("nca", 9) if in_soil else ("scratch", 3)
    plan = load(recipe, sets=sets).plan(arm=arm, seed=0, threads=1, precision=precision)
    for folder in ("whole", "halves"):
        create(plan, tmp_path / folder, recipe_text="x")
    execute(tmp_path / "whole", say=lambda line: None)
    calls = iter(range(100))
    monkeypatch.setattr(module._Signals, "stopped", lambda self: next(calls) == half)
    with pytest.raises(InterruptedRunError):
        execute(tmp_path / "halves", say=lambda line: None)
    monkeypatch.undo()
    sitting = Sitting(data_workers=1) if room in DATA_ROOMS else None
    commands.resume(tmp_path / "halves", say=lambda line: None, sitting=sitting)
    for file in ("model.safetensors", "optimizer.safetensors"):
        whole, halves = ((tmp_path / f / "checkpoints/final" / file).read_bytes() for f in ("whole", "halves"))
        assert whole == halves
    final = json.loads((tmp_path / "whole/final.json").read_text())
    assert final["ledger"]["text"]["train"]["flops_run"] > 0


IN_THE_FORWARD = ("objectives", "layers", "models")


@pytest.mark.parametrize(
    ("room", "name", "sets"), [v for v in _variants() if v[0] in IN_THE_FORWARD], ids=lambda x: x if isinstance(x, str) else ""
)
def test_micro_batches_change_a_layout_free_part_by_rounding_only(room, name, sets, recipe, tmp_path):
    """And what is not layout-free says so, and is refused another layout on resume (tests/experiments/test_layout.py)."""
    plan = load(recipe, sets=sets).plan(arm="scratch", seed=0, threads=1)
    if not layout_free(plan):
        pytest.skip(f"{name} says that it is not layout-free")
    losses = []
    for size in (4, 1, 3):
        out = tmp_path / str(size)
        sets = sets | {"stages.text.micro_batch_size": size}
        commands.run(recipe, out=out, arm="scratch", sets=sets, threads=1, say=lambda line: None)
        losses.append([json.loads(x)["loss_nats"] for x in (out / "metrics.jsonl").read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("deterministic", [True, False])
def test_on_a_gpu_going_on_is_exact_if_deterministic_and_close_if_not(deterministic, recipe, tmp_path, monkeypatch):
    from seedbed.core.errors import InterruptedRunError
    from seedbed.experiments import run as module
    from seedbed.experiments.run import create, execute

    plan = load(recipe).plan(arm="nca", seed=0, device="cuda", deterministic=deterministic)
    for folder in ("whole", "halves"):
        create(plan, tmp_path / folder, recipe_text="x")
    execute(tmp_path / "whole", say=lambda line: None)
    calls = iter(range(100))
    monkeypatch.setattr(module._Signals, "stopped", lambda self: next(calls) == 9)
    with pytest.raises(InterruptedRunError):
        execute(tmp_path / "halves", say=lambda line: None)
    monkeypatch.undo()
    commands.resume(tmp_path / "halves", say=lambda line: None)
    lines = [(tmp_path / f / "metrics.jsonl").read_text().splitlines() for f in ("whole", "halves")]
    whole, halves = ([json.loads(x)["loss_nats"] for x in part] for part in lines)
    assert whole == halves if deterministic else whole == pytest.approx(halves, rel=1e-3)  # as docs/continue.md says


OFF = [
    ("z-loss of weight 0", {"stages.text.objective": [{"kind": "tokens", "z_weight": 0.0}]}),
    ("smoothing of 0", {"stages.text.objective": [{"kind": "tokens", "smoothing": 0.0}]}),
    ("a layer that is the default", {"model.layers": {"linear": "default", "attention": "default"}}),
    ("a term of weight 0", {"stages.text.objective": ["tokens", {"kind": "tokens", "weight": 0, "z_weight": 0.5}]}),
    ("nothing frozen", {"stages.text.frozen": []}),
    ("the whole batch at once", {"stages.text.micro_batch_size": 4}),
    ("no attention dropout", {"model.attention_dropout": 0.0}),
]


@pytest.mark.parametrize(("what", "sets"), OFF, ids=[o[0] for o in OFF])
def test_off_means_identical(what, sets, recipe, tmp_path):
    losses = []
    for name, changes in (("plain", {}), ("off", sets)):
        commands.run(recipe, out=tmp_path / name, sets=changes, threads=1, say=lambda line: None)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(x)["loss_nats"] for x in lines])
    assert losses[0] == losses[1]
