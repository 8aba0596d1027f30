"""Loss over whole held-out text: nats per token, perplexity, bits per byte; one item a document.

Bits per byte = nats / (ln 2 * UTF-8 bytes of the scored text); it compares across tokenizers, perplexity does not. A tokenizer
that loses text (unknown words, case, spaces) has less to predict for the same bytes: documents that it does not give back as
they were are counted, and the number is said with that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from seedbed.core.bounds import LONGEST_ROW, MOST_BYTES, check_ranges, within
from seedbed.core.config import parse_count
from seedbed.core.errors import ConfigError, DataError
from seedbed.core.protocols import Evaluator, Material, Neutral, Subject, Tokenizer
from seedbed.core.records import Array, Document, Item, Measure, Reading


def _count_or_none(value: Any) -> int | None:
    return None if value is None else parse_count(value)


@dataclass(frozen=True, kw_only=True)
class BitsPerByte(Evaluator):
    """Documents of `over`: a source of the stage's stream by name, or any corpus as a part (None: the stream's only source).

    On the way the first `valid_bytes` of the validation part are read; at the end `test_bytes` of the test part (None: all).
    `stride` scores overlapping windows that move on by so many tokens, at most a row's length (None: windows are disjoint).
    """

    neutral: ClassVar[Neutral] = "it reads losses and changes nothing"
    over: str | dict[str, Any] | None = None
    valid_bytes: Annotated[int, BeforeValidator(parse_count)] = within(1, MOST_BYTES, default=65_536)
    test_bytes: Annotated[int | None, BeforeValidator(_count_or_none)] = within(1, MOST_BYTES, default=None)
    stride: int | None = within(1, LONGEST_ROW, default=None)
    measures: ClassVar[Mapping[str, Measure]] = {
        "bits_per_byte": Measure(unit="bits per byte"),
        "loss_nats": Measure(unit="nats per token", per_token=True),
    }
    needs: ClassVar[tuple[str, ...]] = ("causal",)
    reads_test: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self)

    def unfit(self, material: Material) -> str:
        if material.tokenizer is None:
            return "its stream gives no text"
        if isinstance(self.over, str):
            try:
                material.corpus(self.over)
            except ConfigError as e:
                return str(e)
        return ""

    def check(self, material: Material, *, whole: bool) -> None:
        if self.stride is not None and self.stride > material.seq_len:
            raise ConfigError(
                f"a stride lies in 1..{material.seq_len} (the seq_len of the stream), got {self.stride}: a window further on "
                "would leave tokens out"
            )
        tokenizer, corpus = material.tokenizer, material.corpus(self.over)
        assert tokenizer is not None, "it fits the stage"
        for part in ("valid", "test") if whole else ("valid",):
            documents = corpus.documents(part)
            if not len(documents):
                raise DataError(
                    f"no document stands in the {part} part; give more documents or a larger {part}_share, or read another "
                    "corpus (`over`)"
                )
            if not any(_gives_tokens(tokenizer, d) for d in documents):
                raise DataError(f"no token comes of the {part} part; give more documents, or a tokenizer that knows their text")

    def warning(self, material: Material) -> str:
        """Say what the tokenizer loses of the validation documents."""
        tokenizer = material.tokenizer
        assert tokenizer is not None, "it fits the stage"
        documents = material.documents(self.over, "valid", most_bytes=self.valid_bytes)
        return loss_of_text({"documents": len(documents), "changed_documents": sum(changed(tokenizer, d) for d in documents)})

    def watched(self, subject: Subject) -> dict[str, float]:
        documents = subject.documents(self.over, "valid", most_bytes=self.valid_bytes)
        found = self.summary(items_of(documents, subject.score(documents, stride=self.stride)))
        return {name: found[name] for name in ("loss_nats", "bits_per_byte")}

    def read(self, subject: Subject) -> Reading:
        """Return an item a document, with 1 as `changed` if the tokenizer loses some of it."""
        documents = subject.documents(self.over, "test", most_bytes=self.test_bytes)
        items = items_of(documents, subject.score(documents, stride=self.stride), subject.tokenizer)
        lost = loss_of_text(summary(items))
        return Reading(items=items, notes=(lost,) if lost else ())

    def summary(self, items: Sequence[Item]) -> dict[str, float]:
        return summary(items)

    def tokens(self, material: Material, *, whole: bool) -> float:
        """Return about how many, by the first held-out document."""
        assert material.tokenizer is not None, "it fits the stage"
        first = material.documents(self.over, "valid", most_bytes=1)
        ids = [d.data["ids"] if "ids" in d.data else material.tokenizer.encode(d.text) for d in first]
        a_byte = sum(map(len, ids)) / max(1, sum(d.size_bytes for d in first))
        if not whole:
            return a_byte * self.valid_bytes
        size = sum(d.size_bytes for d in material.corpus(self.over).documents("test"))
        return a_byte * min(size, self.test_bytes or size)


def items_of(documents: Sequence[Document], losses: Sequence[Array], tokenizer: Tokenizer | None = None) -> list[Item]:
    """Return an item a document: nats, tokens and bytes, and with a tokenizer whether that gives the text back `changed`."""
    return [
        Item(
            id=d.id,
            group="text",
            values={"nats": float(x.sum()), "tokens": float(len(x)), "bytes": float(d.size_bytes)}
            | ({"changed": float(changed(tokenizer, d))} if tokenizer else {}),
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


def _gives_tokens(tokenizer: Tokenizer, document: Document) -> bool:
    ids = document.data.get("ids")
    return len(tokenizer.encode(document.text) if ids is None else ids) > 0


def loss_of_text(numbers: Mapping[str, Any]) -> str:
    """Return in words what a tokenizer lost of the text of a summary; "" if nothing, or if it was not measured."""
    if not numbers.get("changed_documents"):
        return ""
    return (
        f"the tokenizer gives {numbers['changed_documents']} of {numbers['documents']} documents back changed, and what it "
        "loses is not predicted: this number compares with that of no other tokenizer"
    )
