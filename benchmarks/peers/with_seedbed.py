"""A contender of benchmarks/train.py: ours, the training loop of a run with its ledger and its metrics.jsonl.

Left out are evaluations and checkpoints, as with the others.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from turns import Turns, read_job, read_rows

from seedbed.core.ledger import Ledger
from seedbed.core.records import Row
from seedbed.core.stream import Stream
from seedbed.engine.feed import Feed
from seedbed.engine.placement import place
from seedbed.engine.precision import prepare_machine
from seedbed.engine.step import Term
from seedbed.engine.system import System
from seedbed.engine.train import Counters, Hooks, Stage, train
from seedbed.experiments.run.journal import Metrics
from seedbed.mixture.epochs import Epochs
from seedbed.models.decoder import Decoder
from seedbed.models.hugging_face import llama_name
from seedbed.objectives.tokens import Tokens
from seedbed.optimizers.adamw import AdamW
from seedbed.schedules.warmup import Warmup
from seedbed.views.next_token import NextToken


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of the file, in their order; each field is filled that the packing "concatenate" fills."""

    tokens: np.ndarray
    vocab_size: int

    def size(self, split: str) -> int:
        return len(self.tokens)

    def rows(self, indices: Sequence[int], *, seed: int, split: str) -> list[Row]:
        length = self.tokens.shape[1]
        return [
            Row(
                tokens_T=np.array(self.tokens[i]),
                weights_T=np.ones(length, dtype=np.float32),
                documents_T=np.zeros(length, dtype=np.int32),
            )
            for i in indices
        ]

    def fingerprint(self) -> str:
        return "benchmark"


def main() -> None:
    job = read_job()
    turns = Turns(job)
    from safetensors.torch import load_file

    machine = prepare_machine(
        device=job.device,
        precision="bfloat16" if job.bfloat16 else "float32",
        threads=job.threads,
        width=job.d_model,
        compiled=job.compiled,
    )
    settings = {name: getattr(job, name) for name in ("num_layers", "d_model", "num_heads", "d_ff", "rope_base", "norm_eps")}
    model = Decoder(**settings).build(vocab_size=job.vocab_size)
    weights = load_file(job.weights)
    model.load_state_dict({name: weights[llama_name(role)] for name, role in model.roles.items()})
    system = System(model)
    place(system, machine)
    optimizer = AdamW(learning_rate=job.learning_rate, betas=tuple(job.betas), eps=job.eps)
    stream = Stream(
        name="text",
        sources={"rows": Rows(tokens=read_rows(job), vocab_size=job.vocab_size)},
        mixture=Epochs(shuffle=False),
        views=[NextToken()],
        seq_len=job.seq_len,
        batch_size=job.batch_size,
        vocab_size=job.vocab_size,
    )
    stage = Stage(
        name="train",
        stream=stream,
        system=system,
        terms=[Term(name="tokens", objective=Tokens(), stream="text")],
        optimizer=optimizer.build([(model.roles[name], p) for name, p in model.named_parameters()]),
        learning_rate=job.learning_rate,
        schedule=Warmup(share=0.0),
        steps=job.steps,
        micro_batch_size=job.batch_size,
        clip_norm=job.clip_norm,
        checkpoint_every=job.steps + 1,
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder) / "metrics.jsonl", keep=0, say=print)

        def record(line: dict[str, Any]) -> None:
            metrics(line)
            turns.step_done(line["loss_nats"])

        hooks = Hooks(record=record, evaluate=dict, save=lambda wait: None, should_stop=lambda: False)
        turns.ready(parameters=sum(p.numel() for p in model.parameters()))
        at = Counters(positions={"text": 0})
        with Feed(stream, seed=0, pinned=machine.device.type == "cuda") as feed:
            train(stage, at=at, seed=0, machine=machine, ledger=Ledger(), hooks=hooks, feeds={"text": feed})


if __name__ == "__main__":
    main()
