"""Every part that a recipe can switch on: stopped and gone on with, with data workers, with other micro-batches, switched off.

A stage is trained in memory by the run's own engine; whole runs, their files and their processes are tested in
tests/experiments.
"""

import dataclasses

import numpy as np
import pytest
import torch

from seedbed.core.protocols import Neutral, Objective
from seedbed.core.records import Document, Keep, Progress, Role, TokenTargets
from seedbed.core.records import Loss as LossRecord
from seedbed.core.step_rows import open_in_worker, rows_in_worker
from seedbed.core.workers import worker_pool
from seedbed.engine.batches import collate
from seedbed.engine.step import Term
from seedbed.experiments.assemble import layout_free, rooms
from tests.contracts.inputs import (
    DATA_ROOMS,
    IN_THE_FORWARD,
    PARTS,
    Session,
    build,
    plan_of,
    plan_with,
    prepared_inputs,
    variants,
)


@pytest.fixture(scope="module")
def inputs(once):
    return prepared_inputs(once)


@pytest.mark.parametrize(("room", "name"), variants())
def test_stopping_and_going_on_is_exact_with_every_part(room, name, inputs, tmp_path):
    """Eight steps equal three, a stop and five: weights and moments bit for bit."""
    plan, spec = plan_with(room, name, inputs)
    whole = Session(plan, spec).train()
    first = Session(plan, spec).train(stop_after=3)
    second = Session(plan, spec).going_on(first, first.saved(tmp_path / "step-3")).train()
    assert first.losses + second.losses == whole.losses
    assert second.packed() == whole.packed()


def _nothing():
    """Begin a worker that is told later what to open."""


def _rows_of(opener, start, where):
    open_in_worker(opener)
    return rows_in_worker(start, where, [])


@pytest.fixture(scope="module")
def worker():
    """A process that was begun afresh, as a data worker is."""
    with worker_pool(1, _nothing) as pool:
        yield pool


@pytest.mark.parametrize(("room", "name"), [v for v in variants() if v[0] in DATA_ROOMS])
def test_another_process_makes_the_same_rows(room, name, inputs, worker):
    plan, spec = plan_with(room, name, inputs)
    here = Session(plan, spec)
    made = worker.submit(_rows_of, here.opener, 8, {"offset": 1, "share": 3, "seed": 0}).result()
    stream = here.built.stream
    for mine, theirs in zip(stream.rows(9, count=3, seed=0), made.rows, strict=True):
        for field in dataclasses.fields(mine):
            np.testing.assert_equal(getattr(mine, field.name), getattr(theirs, field.name))
    assert made.draws == stream.draws(8, count=4, seed=0)


@pytest.mark.parametrize(("room", "name"), [v for v in variants() if v[0] in IN_THE_FORWARD])
def test_micro_batches_change_a_layout_free_part_by_rounding_only(room, name, inputs):
    """And what is not layout-free says so, and is refused another layout on resume (tests/experiments/test_layout.py)."""
    if not layout_free(plan_with(room, name, inputs)[0]):
        pytest.skip(f"{name} says that it is not layout-free")
    losses = []
    for size in (4, 1, 3):
        losses.append(Session(*plan_with(room, name, inputs, **{"stages.text.micro_batch_size": size})).train().losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("deterministic", [True, False])
def test_on_a_gpu_going_on_is_exact_if_deterministic_and_close_if_not(deterministic, inputs, tmp_path):
    plan, spec = plan_of({}, inputs)
    plan = plan.model_copy(update={"device": "cuda", "deterministic": deterministic})
    whole = Session(plan, spec).train()
    first = Session(plan, spec).train(stop_after=3)
    second = Session(plan, spec).going_on(first, first.saved(tmp_path / "step-3")).train()
    both = first.losses + second.losses
    assert both == whole.losses if deterministic else both == pytest.approx(whole.losses, rel=1e-3)  # as docs/continue.md says


# --- off means identical


def _neutral(room, name):
    return rooms()[room].resolve(name).neutral


NEUTRAL = [(r, n) for r, n in PARTS if not isinstance(_neutral(r, n), str)]


@pytest.mark.parametrize(("room", "name"), PARTS)
def test_every_part_states_its_neutral_settings_or_why_it_has_none(room, name):
    stated: Neutral = _neutral(room, name)
    assert (
        stated if isinstance(stated, str) else set(stated) <= {f.name for f in dataclasses.fields(rooms()[room].resolve(name))}
    )


@pytest.mark.parametrize(("room", "name"), NEUTRAL)
def test_off_means_identical(room, name, inputs):
    """At its neutral settings a part gives its control's results to the bit; the control is another computation."""
    given, control = CONTROLS[room](name, inputs)
    assert len(given) > 0 and all(_same(a, b) for a, b in zip(given, control, strict=True))


def _same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


class PlainTokens(Objective):
    """Next-token loss and nothing else."""

    layout_free = True

    def count(self, batch):
        return float((batch.weights_BT).sum())

    def __call__(self, outputs, *, batch, context):
        loss = outputs.token_loss(TokenTargets(ids_BT=batch.targets_BT, weights_BT=batch.weights_BT))
        return LossRecord(sum_nats=loss.sum_nats)


def _objective(name, inputs):
    sessions = [Session(*plan_of({}, inputs)) for _ in range(2)]
    parts = build("objectives", name, inputs, **_neutral("objectives", name)), PlainTokens()
    for session, part in zip(sessions, parts, strict=True):
        session.stage = dataclasses.replace(session.stage, terms=[Term(name="tokens", objective=part, stream="text")])
    return [s.train().losses for s in sessions]


def _layer(name, inputs):
    """In the place of every linear, beside a model without any layer named."""
    spec = {"kind": name, **_neutral("layers", name)}
    return [Session(*plan_of({"model.layers": layers}, inputs)).train().losses for layers in ({"linear": spec}, {})]


def _schedule(name, inputs):
    schedule = build("schedules", name, inputs, **_neutral("schedules", name))
    return [schedule(Progress(step=s, steps=50)) for s in range(50)], [1.0] * 50


def _optimizer(name, inputs):
    """Without decay AdamW is Adam, here torch's."""
    kind = build("optimizers", name, inputs, **_neutral("optimizers", name))
    values = []
    for adam in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        settings = {"lr": kind.learning_rate, "betas": kind.betas, "eps": kind.eps}
        optimizer = torch.optim.Adam([p], fused=True, **settings) if adam else kind.build([(Role("mlp", 0, "up"), p)])
        for step in range(5):
            p.grad = torch.sin(p.detach() * (step + 1))
            optimizer.step()
        values.append([p.detach()])
    return values


def _mixture(name, inputs):
    """A mixture that does not heed what it is told, beside one that is told nothing."""
    sizes = {"a": 12, "b": 30}
    amounts = {n: {"bytes": 10.0 * size} for n, size in sizes.items()}
    history = [Session.told("loss_nats", position, sizes) for position in (256, 512)]
    flat = [dataclasses.replace(told, values=dict.fromkeys(sizes, 1.0)) for told in history]
    some = {"window": 64, "every": 256}
    heeding = build("mixture", name, inputs, **some, **_neutral("mixture", name)).resolved(amounts)
    draws = [heeding.draws(0, count=600, sizes=sizes, seed=3, history=told) for told in (history, flat)]
    return draws[0], draws[1]


def _model(name, inputs):
    """Trained as it is read: nothing is drawn inside."""
    plan, spec = plan_with("models", name, inputs, **{f"model.{k}": v for k, v in _neutral("models", name).items()})
    session = Session(plan, spec)
    model, batch = session.stage.model, collate(session.built.stream.rows(0, count=4, seed=0))
    torch.manual_seed(1)
    return [[m(batch).hidden_BTD.detach()] for m in (model.train(), model.eval())]


def _curate(name, inputs):
    part = build("curate", name, inputs, **_neutral("curate", name)).opened(lambda path: [])
    return [part(Document(id="x", text=text), lent={}) for text in ("", "a", "b" * 10**6)], [Keep()] * 3


def _transfer(name, inputs):
    plan, spec = plan_of({}, inputs)
    old, new = (Session(plan, spec).stage.model for _ in range(2))
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()
    part = build("transfer", name, inputs, **_neutral("transfer", name))
    part(dict(new.named_parameters()), roles=new.roles, old={new.roles[n]: p for n, p in old.named_parameters()}, seed=0)
    return [list(m.parameters()) for m in (new, old)]


CONTROLS = {
    "objectives": _objective,
    "layers": _layer,
    "schedules": _schedule,
    "optimizers": _optimizer,
    "mixture": _mixture,
    "models": _model,
    "curate": _curate,
    "transfer": _transfer,
}


def test_a_term_of_weight_zero_is_not_computed(inputs):
    terms = [["tokens"], ["tokens", {"kind": "tokens", "weight": 0, "z_weight": 0.5}]]
    losses = [Session(*plan_of({"stages.text.objective": t}, inputs)).train().losses for t in terms]
    assert losses[0] == losses[1]
