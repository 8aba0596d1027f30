"""What a model says about held-out rows of a stream: losses, likeliest tokens. Nothing is trained.

Letters: B rows of a batch, R rows, T positions, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from seedbed.core.records import Batch, Row, TokenTargets
from seedbed.engine.batches import collate
from seedbed.engine.precision import Machine

_BATCH_TOKENS = 2048


@torch.no_grad()
def row_nats(model: Any, rows: list[Row], *, machine: Machine) -> Float[np.ndarray, "R T"]:
    """Return the loss of every target of the rows, in nats, whatever it weighs."""
    model.eval()
    losses = []
    step = max(1, _BATCH_TOKENS // len(rows[0].tokens_T))
    for start in range(0, len(rows), step):
        batch = machine.fetched(collate(rows[start : start + step]))
        asked = TokenTargets(ids_BT=batch.targets_BT, weights_BT=torch.ones_like(batch.weights_BT))
        losses.append(model(batch).token_loss(asked).nll_BT.cpu().numpy())
    return np.concatenate(losses)


def likeliest(model: Any, *, machine: Machine, below: int) -> Callable[[Int[np.ndarray, "R T"], int], Int[np.ndarray, "R n"]]:
    """Return a function (tokens_RT, n): the likeliest token with an id under `below` after each of the last n tokens."""

    @torch.no_grad()
    def choose(tokens_RT: Int[np.ndarray, "R T"], last: int) -> Int[np.ndarray, "R n"]:
        model.eval()
        found = []
        step = max(1, _BATCH_TOKENS // tokens_RT.shape[1])
        for start in range(0, len(tokens_RT), step):
            tokens_BT = torch.from_numpy(np.asarray(tokens_RT[start : start + step], dtype=np.int64)).to(machine.device)
            logits_BTV = model(Batch(tokens_BT=tokens_BT)).logits(positions=slice(tokens_RT.shape[1] - last, None))
            found.append(logits_BTV[..., :below].argmax(-1).cpu().numpy())
        return np.concatenate(found)

    return choose


@torch.no_grad()
def outputs_on(model: Any, rows: list[Row], *, machine: Machine, taps: tuple[str, ...] = ()) -> tuple[Batch, Any]:
    """Return rows as one batch where the model computes, and the model's outputs on it."""
    model.eval()
    batch = machine.fetched(collate(rows))
    return batch, model(batch, taps=taps)
