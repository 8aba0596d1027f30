"""Loss over whole held-out text: nats per token, perplexity, bits per byte; one item a document.

Bits per byte = nats / (ln 2 * UTF-8 bytes of the scored text); it compares across tokenizers, perplexity does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import ClassVar

from seedbed.core.protocols import Neutral, Scorer
from seedbed.core.records import Document, Item


@dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """No settings: all of every document is scored, every byte once."""

    neutral: ClassVar[Neutral] = "it reads losses and changes nothing"

    def __call__(self, scorer: Scorer, documents: Sequence[Document]) -> list[Item]:
        """Return one item a document with its nats, tokens and bytes."""
        losses = scorer.score([d.data.get("ids", d.text) for d in documents])
        return [
            Item(
                id=d.id,
                group="text",
                values={"nats": float(x.sum()), "tokens": float(len(x)), "bytes": float(d.size_bytes)},
            )
            for d, x in zip(documents, losses, strict=True)
        ]


def summary(items: Sequence[Item]) -> dict[str, float]:
    """Return loss_nats (per token), perplexity, bits_per_byte, tokens and bytes over all items together."""
    nats, tokens, size = (sum(i.values[name] for i in items) for name in ("nats", "tokens", "bytes"))
    return {
        "loss_nats": nats / tokens,
        "perplexity": exp(min(nats / tokens, 700)),
        "bits_per_byte": nats / log(2) / size,
        "tokens": int(tokens),
        "bytes": int(size),
    }
