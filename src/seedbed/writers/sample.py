"""Text sampled from a model, token by token; each sample draws from a stream of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Tokenizer
from seedbed.core.records import Batch


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A model with its tokenizer. Temperature 0 takes the likeliest token; top_k None keeps all."""

    model: Any
    tokenizer: Tokenizer
    seq_len: int
    temperature: float = 0.8
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or (self.top_k is not None and self.top_k < 1):
            raise ConfigError(f"temperature must be 0 or more and top_k 1 or more; got {self.temperature} and {self.top_k}")

    def write(self, prompts: Sequence[str], *, new_tokens: int, seed: int) -> list[str]:
        """Return the continuation of each prompt (without the prompt)."""
        return [self._one(p, number, new_tokens=new_tokens, seed=seed) for number, p in enumerate(prompts)]

    @torch.no_grad()
    def _one(self, prompt: str, number: int, *, new_tokens: int, seed: int) -> str:
        draws = stream(seed, "sample", number, prompt)
        ids = [self.tokenizer.boundary_id, *self.tokenizer.encode(prompt).tolist()]
        begun = len(ids)
        device = next(self.model.parameters()).device
        self.model.eval()
        while len(ids) < begun + new_tokens:
            shown = torch.tensor([ids[-self.seq_len :]], device=device)
            logits_V = self.model(Batch(tokens_BT=shown)).logits(positions=slice(-1, None))[0, 0].double().cpu().numpy()
            token = self._pick(logits_V, draws)
            if token == self.tokenizer.boundary_id:
                break
            ids.append(token)
        return self.tokenizer.decode(np.array(ids[begun:], dtype=np.int32))

    def _pick(self, logits_V: np.ndarray, draws: np.random.Generator) -> int:
        if self.temperature == 0:
            return int(logits_V.argmax())
        if self.top_k is not None and self.top_k < len(logits_V):
            logits_V = np.where(logits_V < np.sort(logits_V)[-self.top_k], -np.inf, logits_V)
        weights_V = np.exp((logits_V - logits_V.max()) / self.temperature)
        return int(np.searchsorted(np.cumsum(weights_V) / weights_V.sum(), draws.random(), side="right"))
