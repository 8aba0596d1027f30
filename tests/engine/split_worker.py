"""One of several ranks that train a small model in every way of placing it; test_split.py starts them.

Four ranks of `python -m tests.engine.split_worker FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from seedbed.core.ledger import Ledger
from seedbed.engine.checkpoints import load_checkpoint
from seedbed.engine.feed import Feed
from seedbed.engine.held_out import row_nats
from seedbed.engine.placement import place, reading
from seedbed.engine.precision import prepare_machine
from seedbed.engine.ranks import join_ranks
from seedbed.engine.saving import Saver
from seedbed.engine.step import Term
from seedbed.engine.system import System
from seedbed.engine.train import Counters, Hooks, Stage, train
from seedbed.models.decoder import Decoder
from seedbed.objectives.tokens import Tokens
from seedbed.optimizers.adamw import AdamW
from seedbed.schedules.cosine import Cosine
from tests.engine.inputs import soil

STEPS, SAVED_AT, RATE = 6, 3, 1e-2
WAYS = {
    "whole": {"shard": "none"},
    "all": {"shard": "all"},
    "two": {"shard": "2"},
    "micro": {"shard": "all", "micro": 1},
    "recompute": {"shard": "all", "recompute": True},
    "tied": {"shard": "all", "tied_embeddings": True},
    "frozen": {"shard": "all", "frozen": True},
    "bfloat16": {"shard": "all", "precision": "bfloat16"},
}


def built(*, ranks=None, shard="none", micro=8, recompute=False, frozen=False, precision="float32", **model):
    """Return a stage on its machine: 8 rows a step, of which the model's targets differ in number from row to row."""
    machine = prepare_machine(
        device="cpu", precision=precision, threads=1, width=0, ranks=ranks, shard=shard, recompute=recompute
    )
    stream = soil(batch_size=8)
    net = Decoder(num_layers=2, d_model=16, num_heads=2, **model).build(vocab_size=stream.vocab_size)
    net.initialize(seed=0)
    system = System(net)
    place(system, machine)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not (frozen and net.roles[name].part == "mlp"))
    trained = [(net.roles[n], p) for n, p in net.named_parameters() if p.requires_grad]
    stage = Stage(
        name="soil",
        stream=stream,
        system=system,
        terms=[Term(name="tokens", objective=Tokens(), stream="soil")],
        optimizer=AdamW(learning_rate=RATE, weight_decay=0.1).build(trained),
        learning_rate=RATE,
        schedule=Cosine(),
        steps=STEPS,
        micro_batch_size=micro,
        clip_norm=0.5,
        evaluates_after=lambda step: step % SAVED_AT == 0 or step == STEPS,
        checkpoint_every=SAVED_AT,
    )
    return stage, machine


def trained(stage, machine, *, at=None, save=lambda wait: None):
    """Return losses and gradient norms of the rest of a stage, and at every third step a validation loss."""
    lines = []
    at = at or Counters(positions={"soil": 0})

    def evaluate():
        rows = stage.stream.rows(0, count=4, seed=0, split="valid")
        with reading(stage.system, machine):
            return {"valid_loss_nats": float(row_nats(stage.model, rows, machine=machine).mean())}

    hooks = Hooks(record=lines.append, evaluate=evaluate, save=save, should_stop=lambda: False)
    with Feed(stage.stream, seed=0, ranks=machine.ranks, pinned=machine.device.type == "cuda") as feed:
        train(stage, at=at, seed=0, machine=machine, ledger=Ledger(), hooks=hooks, feeds={"soil": feed})
    return [[line[k] for k in ("loss_nats", "gradient_norm", "valid_loss_nats") if k in line] for line in lines]


def main(folder: Path) -> None:
    ranks = join_ranks()
    found = {}
    for name, settings in WAYS.items():
        stage, machine = built(ranks=ranks, **settings)
        found[name] = trained(stage, machine)
    found["messages"] = {micro: _messages(ranks, micro) for micro in (1, 2)}

    stage, machine = built(ranks=ranks, shard="all")
    at = Counters(positions={"soil": 0})
    after = []
    with Saver(ranks) as saver:
        saver.prepare(stage.system)

        def save(wait):
            state = {"counters": vars(at)}
            path = folder / f"step-{at.step}"
            saver(path, system=stage.system, optimizer=stage.optimizer, state=state, after=lambda: after.append(path.name))

        trained(stage, machine, at=at, save=save)
    ranks.wait()
    found["saved"] = after
    for name, settings in {"again on all": {"shard": "all"}, "again on two": {"shard": "2"}, "again whole": {}}.items():
        stage, machine = built(ranks=ranks, **settings)
        state = load_checkpoint(folder / f"step-{SAVED_AT}", model=stage.system, optimizer=stage.optimizer)
        found[name] = trained(stage, machine, at=Counters(**state["counters"]))
    if ranks.first:
        (folder / "found.json").write_text(json.dumps(found))
    ranks.wait()
    dist.destroy_process_group()


def _messages(ranks, micro):
    """Return how often gradients are summed in one step of so many rows at a time."""
    stage, machine = built(ranks=ranks, shard="all", micro=micro)
    calls = []
    real = {n: getattr(dist, n) for n in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(dist, n)}  # by version
    for name, function in real.items():
        setattr(dist, name, lambda *given, function=function, **named: calls.append(1) or function(*given, **named))
    try:
        trained(stage, machine, at=Counters(positions={"soil": 0}, step=STEPS - 1))
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
    return len(calls)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
