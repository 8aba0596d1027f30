import json
import math

import pytest
import torch

from seedbed.core.errors import ConfigError, DataError, InterruptedRunError, RefusedError, RunFailedError
from seedbed.core.ledger import Ledger
from seedbed.core.records import Cost
from seedbed.engine import checkpoints as module
from seedbed.engine.batches import collate, pieces
from seedbed.engine.checkpoints import latest, load_checkpoint, newest_whole, pack, write
from seedbed.engine.precision import prepare_machine
from seedbed.engine.step import Term
from seedbed.engine.system import System
from seedbed.engine.train import Counters, Hooks, Stage, train
from seedbed.models.decoder import Decoder
from seedbed.objectives.tokens import Tokens
from seedbed.optimizers.adamw import AdamW
from seedbed.schedules.cosine import Cosine
from tests.engine.inputs import soil

MACHINE = prepare_machine(device="cpu", precision="float32", threads=1, width=0)


def _term(objective, weight=1.0):
    return Term(name=type(objective).__name__, objective=objective, weight=weight, stream="soil")


def _stage(steps=6, micro=4, rate=1e-2, clip=1.0, seed=0, **model):
    stream = soil()
    net = Decoder(num_layers=2, d_model=16, num_heads=2, **model).build(vocab_size=stream.vocab_size)
    net.initialize(seed=seed)
    optimizer = AdamW(learning_rate=rate, weight_decay=0.1).build([(net.roles[n], p) for n, p in net.named_parameters()])
    return Stage(
        name="soil",
        stream=stream,
        system=System(net),
        terms=[_term(Tokens())],
        optimizer=optimizer,
        learning_rate=rate,
        schedule=Cosine(),
        steps=steps,
        micro_batch_size=micro,
        clip_norm=clip,
        checkpoint_every=10**9,
    )


def _train(stage, *, at=None, should_stop=lambda: False, save=lambda wait: None, ledger=None):
    lines = []
    hooks = Hooks(record=lines.append, evaluate=dict, save=save, should_stop=should_stop)
    at = at or Counters(positions={"soil": 0})
    train(stage, at=at, seed=0, machine=MACHINE, ledger=ledger or Ledger(), hooks=hooks)
    return lines


def test_training_is_the_same_to_the_bit_when_repeated_and_lowers_the_loss():
    first, second = (_train(_stage(steps=30)) for _ in range(2))
    assert [x["loss_nats"] for x in first] == [x["loss_nats"] for x in second]
    assert first[-1]["loss_nats"] < first[0]["loss_nats"] - 0.3


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_the_size_of_a_micro_batch_changes_nothing_but_rounding(micro):
    """Rows count differently many targets, so a mean of means would show."""
    whole, parts = _stage(), _stage(micro=micro)
    a, b = _train(whole), _train(parts)
    assert [x["loss_nats"] for x in a] == pytest.approx([x["loss_nats"] for x in b], rel=1e-5)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-3)


def test_uneven_counts_weigh_every_target_alike():
    from dataclasses import replace

    stage = _stage()
    rows = stage.stream.rows(0, count=4, seed=0)
    rows = [
        replace(r, weights_T=r.weights_T * (i < 1 or j_mask))
        for i, (r, j_mask) in enumerate(zip(rows, [1, 0, 1, 0], strict=True))
    ]
    batch = collate(rows)
    objective = Tokens()
    count = objective.count(batch)
    whole = objective(stage.model(batch), batch=batch, context=None).sum_nats / count
    parts = sum(objective(stage.model(p), batch=p, context=None).sum_nats / count for p in pieces(batch, rows=1))
    assert float(whole.detach()) == pytest.approx(float(parts.detach()), rel=1e-6)


def test_half_then_the_other_half_is_the_whole_to_the_bit(tmp_path):
    whole = _stage(steps=8, attention_dropout=0.1)
    losses = [x["loss_nats"] for x in _train(whole)]

    first = _stage(steps=8, attention_dropout=0.1)
    at = Counters(positions={"soil": 0})
    with pytest.raises(InterruptedRunError):
        _train(first, at=at, should_stop=lambda: at.step == 3)
    write(tmp_path / "step-3", pack(first.system, first.optimizer, {"counters": vars(at)}))

    second = _stage(steps=8, attention_dropout=0.1, seed=99)
    state = load_checkpoint(tmp_path / "step-3", model=second.system, optimizer=second.optimizer)
    rest = _train(second, at=Counters(**state["counters"]))
    assert [x["loss_nats"] for x in rest] == losses[3:]
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_stage_in_front_moves_no_row():
    stream = _stage().stream
    ahead = stream.rows(0, count=4, seed=0)
    later = stream.rows(2, count=2, seed=0)
    assert all((a.tokens_T == b.tokens_T).all() for a, b in zip(ahead[2:], later, strict=True))


def test_a_loss_that_is_not_finite_stops_before_the_step():
    stage = _stage()
    with torch.no_grad():
        stage.model.head.weight.fill_(math.inf)
    before = stage.model.norm.weight.clone()
    with pytest.raises(RunFailedError, match=r"at step 1 of stage 'soil', at learning rate .*likely causes"):
        _train(stage)
    assert torch.equal(before, stage.model.norm.weight)


def test_a_step_that_asks_for_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(Tokens, "count", lambda self, batch: 0.0)
    with pytest.raises(DataError, match="asks for no token"):
        _train(_stage())


def test_clipping_bounds_the_step_and_the_norm_is_logged_before():
    lines = _train(_stage(steps=1, clip=1e-9))
    assert lines[0]["gradient_norm"] > 1e-3


def test_the_ledger_counts_tokens_by_source_and_the_making_of_rows():
    ledger = Ledger()
    stage = _stage(steps=3)
    _train(stage, ledger=ledger)
    saved = ledger.to_json()["soil"]
    assert saved["tokens"] == {"nca": 3 * 4 * 24}
    made = sum(r.cost.flops_run for r in stage.stream.rows(0, count=12, seed=0))
    assert saved["generate"]["flops_run"] == made > 0
    batch = collate(stage.stream.rows(0, count=4, seed=0))
    assert saved["train"]["flops_run"] == pytest.approx(3 * 3 * stage.model.cost(batch).flops_run)


def test_a_term_of_weight_zero_is_not_computed(monkeypatch):
    class Never(Tokens):
        def __call__(self, outputs, *, batch, context):
            raise AssertionError("computed")

    from dataclasses import replace

    plain = [x["loss_nats"] for x in _train(_stage())]
    beside = [x["loss_nats"] for x in _train(replace(_stage(), terms=[_term(Tokens()), _term(Never(), weight=0.0)]))]
    assert plain == beside


def _saved(tmp_path):
    stage = _stage(steps=2)
    _train(stage)
    write(tmp_path / "step-00000002", pack(stage.system, stage.optimizer, {"counters": {}}))
    return stage, tmp_path / "step-00000002"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_harmed_checkpoint_is_named(tmp_path, name, harm):
    stage, folder = _saved(tmp_path)
    raw = bytearray((folder / name).read_bytes())
    if harm == "flip":
        raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw if harm == "flip" else raw[:-9])
    if harm == "remove":
        (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        load_checkpoint(folder, model=stage.system, optimizer=stage.optimizer)


def test_a_checkpoint_of_another_model_or_format_is_refused(tmp_path):
    _, folder = _saved(tmp_path)
    with pytest.raises(DataError, match="does not fit this model"):
        load_checkpoint(folder, model=_stage(attention_bias=True).model)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(RefusedError, match="format 99.*go on with the version"):
        load_checkpoint(folder, model=_stage().model)
    with pytest.raises(RefusedError, match="format 99"):
        newest_whole(folder.parent, say=print)
    assert folder.is_dir(), "of another format is not harmed"


def test_an_error_of_reading_harms_no_checkpoint(tmp_path, monkeypatch):
    _, folder = _saved(tmp_path)

    def unreadable(*given):
        raise PermissionError(13, "Permission denied", str(folder))

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(module, "file_digest", unreadable)
        newest_whole(folder.parent, say=print)
    assert newest_whole(folder.parent, say=print)[0] == folder


def test_the_newest_checkpoint_is_found(tmp_path):
    assert latest(tmp_path) is None
    for name in ("step-00000002", "step-00000010", ".step-00000011.tmp"):
        (tmp_path / name).mkdir()
    assert latest(tmp_path).name == "step-00000010"


def test_bfloat16_is_close_to_float32_and_devices_that_are_not_there_are_refused():
    machine = prepare_machine(device="cpu", precision="bfloat16", threads=1, width=0)
    stage = _stage(steps=3)
    lines = []
    hooks = Hooks(record=lines.append, evaluate=dict, save=lambda wait: None, should_stop=lambda: False)
    train(stage, at=Counters(positions={"soil": 0}), seed=0, machine=machine, ledger=Ledger(), hooks=hooks)
    assert [x["loss_nats"] for x in lines] == pytest.approx([x["loss_nats"] for x in _train(_stage(steps=3))], abs=0.02)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            prepare_machine(device="cuda", precision="auto", threads=1, width=0)


def test_a_processor_computes_deterministically_and_fills_no_new_memory():
    prepare_machine(device="cpu", precision="float32", threads=1, width=0)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.empty(1000).isnan().all(), "torch marks new memory with it"


def test_the_ledger_gets_what_an_optimizer_s_step_costs():
    from dataclasses import replace

    plain, dear = Ledger(), Ledger()
    _train(_stage(steps=3), ledger=plain)
    _train(replace(_stage(steps=3), step_cost=Cost(flops_run=1000.0, flops_ideal=500.0)), ledger=dear)
    one, two = (ledger.to_json()["soil"]["train"] for ledger in (plain, dear))
    assert two["flops_run"] == one["flops_run"] + 3000 and two["flops_ideal"] == one["flops_ideal"] + 1500
    assert two["positions"] == one["positions"]


def test_objectives_meet_the_head_in_the_number_type_of_the_run():
    from dataclasses import replace

    seen = []

    class Noted(Tokens):
        def __call__(self, outputs, *, batch, context):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().__call__(outputs, batch=batch, context=context)

    for precision in ("float32", "bfloat16"):
        machine = prepare_machine(device="cpu", precision=precision, threads=1, width=0)
        stage = replace(_stage(steps=1), terms=[_term(Noted())])
        hooks = Hooks(record=lambda line: None, evaluate=dict, save=lambda wait: None, should_stop=lambda: False)
        train(stage, at=Counters(positions={"soil": 0}), seed=0, machine=machine, ledger=Ledger(), hooks=hooks)
    assert seen == [False, True]
