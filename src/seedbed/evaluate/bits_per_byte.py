"""Loss over whole held-out text: nats per token, perplexity, bits per byte; one item a document.

Bits per byte = nats / (ln 2 * UTF-8 bytes of the scored text); it compares across tokenizers, perplexity does not. A tokenizer
that loses text (unknown words, case, spaces) has less to predict for the same bytes: documents that it does not give back as
they were are counted, and the number is said with that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import ClassVar

from seedbed.core.errors import DataError
from seedbed.core.protocols import Neutral, Scorer, Tokenizer
from seedbed.core.records import Document, Item


@dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """No settings: all of every document is scored, every byte once."""

    neutral: ClassVar[Neutral] = "it reads losses and changes nothing"

    def __call__(self, scorer: Scorer, documents: Sequence[Document]) -> list[Item]:
        """Return one item a document with its nats, tokens and bytes, and 1 as `changed` if its tokenizer loses some of it."""
        losses = scorer.score([d.data.get("ids", d.text) for d in documents])
        return [
            Item(
                id=d.id,
                group="text",
                values={
                    "nats": float(x.sum()),
                    "tokens": float(len(x)),
                    "bytes": float(d.size_bytes),
                    "changed": float(changed(scorer.tokenizer, d)),
                },
            )
            for d, x in zip(documents, losses, strict=True)
        ]


def summary(items: Sequence[Item]) -> dict[str, float]:
    """Return loss_nats (per token), perplexity, bits_per_byte, tokens and bytes over all items together.

    And how many documents the tokenizer gives back `changed`, of how many, where that was measured.
    Raises DataError if there is no token to read a loss of.
    """
    nats, tokens, size = (sum(i.values[name] for i in items) for name in ("nats", "tokens", "bytes"))
    if not tokens or not size:
        raise DataError(
            f"the {len(items)} document(s) to evaluate give {int(tokens)} tokens of {int(size)} bytes, so there is no loss to "
            "read; give text that the tokenizer knows"
        )
    measured = all("changed" in i.values for i in items)
    counts = {"documents": len(items), "changed_documents": int(sum(i.values["changed"] for i in items))} if measured else {}
    return {
        "loss_nats": nats / tokens,
        "perplexity": exp(min(nats / tokens, 700)),
        "bits_per_byte": nats / log(2) / size,
        "tokens": int(tokens),
        "bytes": int(size),
        **counts,
    }


def changed(tokenizer: Tokenizer, document: Document) -> bool:
    """Return whether a tokenizer does not give a document's text back as it was."""
    known = document.data.get("changed")  # of documents that were tokenized beforehand
    return tokenizer.decode(tokenizer.encode(document.text)) != document.text if known is None else bool(known)
