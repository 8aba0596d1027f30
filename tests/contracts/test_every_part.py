"""One suite over every registered part of every room: found, documented, checked, and what each room promises."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from seedbed.core.errors import ConfigError
from seedbed.core.protocols import (
    Corpus,
    Mixture,
    ModelKind,
    Objective,
    OptimizerKind,
    Packer,
    Prepared,
    Schedule,
    Source,
    Tokenizer,
    TokenStore,
    Tracker,
    TrackerKind,
    View,
)
from seedbed.core.records import Context, Document, Draw, Key, Progress, Role, Row, Vocabulary, blank
from seedbed.core.registry import missing
from seedbed.engine.batches import collate
from seedbed.experiments.assemble import rooms
from seedbed.models.decoder import Decoder
from seedbed.packing.store import CorpusTokens
from seedbed.sources.text import Text
from seedbed.tokenizers.bytes import Bytes
from tests.contracts.inputs import EXAMPLES, PARTS, build, example, of, prepared_inputs


@pytest.fixture(scope="module")
def inputs(once):
    return prepared_inputs(once)


@pytest.mark.parametrize(("room", "name"), PARTS)
def test_it_is_a_frozen_dataclass_with_a_documented_module(room, name):
    part = rooms()[room].resolve(name)
    assert dataclasses.is_dataclass(part) and part.__dataclass_params__.frozen
    assert part.__module__.startswith(f"seedbed.{room}.") or part.__module__.startswith(f"seedbed.models.{room}.")
    doc = inspect.getdoc(inspect.getmodule(part))
    assert len(doc) > 40


@pytest.mark.parametrize(("room", "name"), PARTS)
def test_its_settings_are_allowed_and_an_unknown_one_is_not(room, name, inputs):
    assert build(room, name, inputs) == build(room, name, inputs)
    with pytest.raises(ConfigError, match="nonsense: unknown setting"):
        build(room, name, inputs, nonsense=1)


def test_every_example_is_of_a_part():
    assert {(f.parent.name, f.stem) for f in EXAMPLES.rglob("*.yaml")} <= set(PARTS)


# --- sources and corpora


@pytest.mark.parametrize("name", of("sources"))
def test_a_source_or_corpus_repeats_itself_by_address(name, inputs):
    first, second = (build("sources", name, inputs, shared={"seq_len": 80}) for _ in range(2))
    if isinstance(first, Prepared):
        first, second = (s.store(rooms()["tokenizers"].build(s.tokenizer_spec())) for s in (first, second))
        _keeps_a_store_s_promise(first)
        np.testing.assert_array_equal(first.tokens("train", 5, 900), second.tokens("train", 5, 900))
    assert first.fingerprint() == second.fingerprint()
    if isinstance(first, Corpus) and not isinstance(first, Source):
        sides = {split: first.documents(split) for split in ("train", "valid", "test")}
        assert all(isinstance(d, Document) and d.text and d.size_bytes > 0 for some in sides.values() for d in list(some)[:3])
        assert [d.id for d in sides["test"]] == [d.id for d in second.documents("test")]
        ids = [d.id for some in sides.values() for d in some]
        assert len(set(ids)) == len(ids), "a document stands on one side"
        return
    rows = first.rows([5, 2, 9], seed=1, split="train")
    again = second.rows([2], seed=1, split="train")[0]
    np.testing.assert_array_equal(rows[1].tokens_T, again.tokens_T)
    assert all(len(r.tokens_T) == len(r.weights_T) == 81 for r in rows)
    assert max(r.tokens_T.max() for r in rows) < first.vocab_size and first.size("train") is None
    others = [first.rows([2], seed=s, split=t)[0].tokens_T for s, t in ((2, "train"), (1, "valid"), (1, "test"))]
    assert all(not np.array_equal(again.tokens_T, o) for o in others), "other seeds and splits are other rows"
    assert again.cost.flops_run > 0, "making it is charged"


def _keeps_a_store_s_promise(store):
    assert isinstance(store, TokenStore)
    for split in ("train", "valid", "test"):
        offsets = store.offsets(split)
        everything = store.tokens(split, 0, int(offsets[-1]))
        assert everything.dtype == np.int32 and len(everything) == offsets[-1] and everything.max() < store.vocab_size
        assert (everything[offsets[:-1]] == store.boundary_id).all() and store.size_bytes(split) > 0
        assert store.document(split, 0).size_bytes > 0
        np.testing.assert_array_equal(store.tokens(split, 3, 9), everything[3:9])


# --- tokenizers, packing, views, mixtures


@pytest.mark.parametrize("name", of("tokenizers"))
def test_a_tokenizer_gives_a_text_back_and_keeps_its_boundary_to_itself(name, inputs):
    tokenizer = build("tokenizers", name, inputs)
    assert isinstance(tokenizer, Tokenizer)
    texts = ["3 17 4", "0", "255 255"]
    together = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, together, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
        assert tokenizer.boundary_id not in ids and tokenizer.decode(ids) == text
        assert tokenizer.decode(np.concatenate([[tokenizer.boundary_id], ids])) == text
    assert 0 <= tokenizer.boundary_id < tokenizer.vocab_size
    assert tokenizer.fingerprint() == build("tokenizers", name, inputs).fingerprint() != ""


@pytest.mark.parametrize("name", of("packing"))
@pytest.mark.parametrize("reset", [False, True])
def test_a_packing_asks_for_every_token_of_the_text_it_keeps_once(name, reset, inputs):
    store = CorpusTokens(corpus=Text(path=str(inputs / "corpus.txt"), section_bytes=100), tokenizer=Bytes())
    packer = build("packing", name, inputs, shared={"seq_len": 128}, reset_positions=reset)
    assert isinstance(packer, Packer)
    source, again = packer.pack(store), packer.pack(store)
    assert isinstance(source, Source) and source.vocab_size == 257 and source.fingerprint() == again.fingerprint()
    report = source.report("train")
    rows = source.rows(range(source.size("train")), seed=0, split="train")
    np.testing.assert_array_equal(rows[2].tokens_T, again.rows([2], seed=5, split="train")[0].tokens_T)
    assert all(len(r.tokens_T) == len(r.weights_T) == len(r.documents_T) == 129 for r in rows)
    assert all((r.positions_TA is not None) is reset for r in rows)
    assert report["rows"] == len(rows) and report["asked"] == sum(float(r.weights_T[1:].sum()) for r in rows)
    assert report["asked"] <= report["tokens"] and 0 <= report["padding_share"] < 1 and 0 <= report["cropped_share"] < 1


@pytest.mark.parametrize(("room", "name"), [(r, n) for r, n in PARTS if rooms()[r].promises])
def test_a_part_has_all_that_its_protocol_asks_for(room, name):
    assert missing(rooms()[room].resolve(name), rooms()[room].protocol()) == []


def test_a_part_from_elsewhere_that_lacks_something_is_told_what_and_where_to_read(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Half:\n    keeps_order = True\n")
    monkeypatch.setenv("SEEDBED_ALLOW_LOCAL_CODE", "1")
    with pytest.raises(ConfigError, match=r"it lacks __call__, asks_next, spare, .*core\.protocols\.View.*CONTRIBUTING"):
        rooms()["views"].build(f"{file}:Half")


@pytest.mark.parametrize("name", of("views"))
def test_a_view_is_a_function_of_row_and_key(name):
    view = rooms()["views"].build(name)
    assert isinstance(view, View) and isinstance(view.keeps_order, bool)
    row = Row(tokens_T=np.arange(30), weights_T=np.ones(30))
    key = Key(seed=0, stream="s", position=4, draw=Draw("x", 4, 0))
    given = {
        "key": key,
        "vocabulary": Vocabulary(size=40, spare=tuple(range(40, 40 + view.spare))),
        "progress": Progress(step=1, steps=0),
    }
    one, two = view(row, **given), view(row, **given)
    np.testing.assert_array_equal(one.tokens_T, two.tokens_T)
    np.testing.assert_array_equal(row.tokens_T, np.arange(30))
    shown = one.tokens_T
    assert view.keeps_order is bool((np.diff(shown) == 1).all()), "what it says of order is so"


@pytest.mark.parametrize("name", of("mixture"))
def test_a_mixture_gives_the_same_draws_however_they_are_cut(name):
    mixture = rooms()["mixture"].build(name)
    assert isinstance(mixture, Mixture)
    sizes = {"a": 12, "b": 30} if mixture.weighted else {"a": 12}
    if mixture.weighted:
        mixture = mixture.resolved({n: {"bytes": 10.0 * size} for n, size in sizes.items()})
    whole = mixture.draws(0, count=50, sizes=sizes, seed=3)
    assert whole == [d for s in range(0, 50, 7) for d in mixture.draws(s, count=min(7, 50 - s), sizes=sizes, seed=3)]
    assert all(d.source in sizes and 0 <= d.index < sizes[d.source] and d.epoch >= 0 for d in whole)
    assert mixture.draws(0, count=50, sizes=sizes, seed=4) != whole
    assert mixture.wants is None or (isinstance(mixture.wants[0], str) and mixture.wants[1] > 0)


# --- models, objectives, schedules, optimizers


@pytest.mark.parametrize("name", of("models"))
def test_a_model_gives_every_parameter_a_role_says_its_blocks_and_its_cost(name, inputs):
    kind = build("models", name, inputs)
    assert isinstance(kind, ModelKind) and kind.width > 0 and isinstance(kind.layout_free, bool)
    model = kind.build(vocab_size=9)
    assert len(model.blocks) > 0 and model.vocab_size == 9
    assert {n for n, _ in model.named_parameters()} == set(model.roles)
    model.initialize(seed=0)
    first = [p.detach().clone() for p in model.parameters()]
    model.initialize(seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))
    one, two = (model.cost(blank(rows=rows, seq_len=8)) for rows in (1, 2))
    assert 0 < one.flops_ideal <= one.flops_run and two.flops_run == pytest.approx(2 * one.flops_run)
    outputs = model(_batch())
    assert outputs.logits().shape == (2, 7, 9)
    assert kind.stepper(model) is not None


def _batch():
    rows = [Row(tokens_T=np.arange(7), targets_T=np.arange(1, 8), weights_T=np.arange(7) > n) for n in range(2)]
    return collate([dataclasses.replace(r, weights_T=r.weights_T.astype(np.float32)) for r in rows])


@pytest.mark.parametrize("name", of("objectives"))
def test_an_objective_counts_before_the_forward_what_its_sum_is_over(name):
    objective = rooms()["objectives"].build(name)
    assert isinstance(objective, Objective) and isinstance(objective.layout_free, bool)
    model = Decoder(num_layers=1, d_model=8, num_heads=2).build(vocab_size=9)
    model.initialize(seed=0)
    batch = _batch()
    assert objective.count(batch) == 11 and objective.count(batch.map(lambda x: x[:1])) == 6
    context = Context(model=model, progress=Progress(step=0, steps=1), draws=lambda name: torch.Generator())
    loss = objective(model(batch), batch=batch, context=context)
    assert loss.sum_nats.ndim == 0 and bool(torch.isfinite(loss.sum_nats)) and loss.sum_nats.requires_grad
    halves = [
        objective(model(b), batch=b, context=context).sum_nats for b in (batch.map(lambda x: x[:1]), batch.map(lambda x: x[1:]))
    ]
    if objective.layout_free:
        torch.testing.assert_close(sum(halves), loss.sum_nats, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", of("schedules"))
def test_a_schedule_lies_between_zero_and_one(name):
    schedule = rooms()["schedules"].build(name)
    assert isinstance(schedule, Schedule)
    for steps in (1, 2, 7, 1000):
        rates = [schedule(Progress(step=s, steps=steps)) for s in range(steps)]
        assert all(0 <= r <= 1 for r in rates)
        assert steps < 7 or max(rates) > 0.4


@pytest.mark.parametrize("name", of("optimizers"))
def test_an_optimizer_lowers_a_loss_and_its_state_can_be_saved(name):
    kind = rooms()["optimizers"].build(name)
    assert isinstance(kind, OptimizerKind)
    assert kind.learning_rate > 0
    p = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = kind.build([(Role("mlp", 0, "up"), p)])
    losses = []
    for _ in range(20):
        loss = (p**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert set(optimizer.state) == {p} and all(isinstance(k, str) for k in optimizer.state[p])


# --- trackers (their services are really written to and read back in tests/trackers)


@pytest.mark.parametrize("name", of("trackers"))
def test_a_tracker_opens_records_and_closes(name, inputs, tmp_path):
    kind = rooms()["trackers"].build(name)
    assert isinstance(kind, TrackerKind)
    if example("trackers", name, inputs).get("service"):
        pytest.skip("starts a service's own processes: tests/trackers does it")
    pytest.importorskip(name, reason="seedbed[track]")
    kind.check()
    tracker = kind.open(folder=tmp_path, name="a", facts={"name": "a"}, from_step=0)
    assert isinstance(tracker, Tracker) and tracker.held_step == 0 and str(tmp_path) in tracker.where
    tracker.record({"stage": "text", "step": 1, "run_step": 1, "loss_nats": 2.0})
    tracker.close()
    assert any(f.is_file() and f.stat().st_size for f in Path(tmp_path).rglob("*"))
