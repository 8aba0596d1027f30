"""`seedbed tokenizer train | check`: a tokenizer from a user's text, and what a tokenizer makes of it."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from seedbed import tokenizers
from seedbed.core.deaf import listening
from seedbed.core.errors import InterruptedRunError
from seedbed.core.records import Document
from seedbed.experiments.prepare.inputs import documents_of, look_at
from seedbed.experiments.prepare.preparation import Preparation
from seedbed.tokenizers.training import check_tokenizer, check_tokenizer_place, save_tokenizer, train_tokenizer

_TOLD_SECONDS = 10.0


class _Reading:
    """Texts on their way into a trainer, counted; they end when they are stopped."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts, self._started = texts, time.monotonic()
        self._documents = self._bytes = 0
        self._done = self._stopped = False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if self._stopped:
                raise InterruptedRunError("interrupted while reading; nothing was written")
            self._documents += 1
            self._bytes += len(text.encode("utf-8", "surrogatepass"))
            yield text
        self._done = True

    def stop(self) -> None:
        self._stopped = True

    def so_far(self) -> str:
        seconds = time.monotonic() - self._started
        doing = "learning pieces of" if self._done else "reading:"
        return f"  {doing} {self._documents:,} documents, {self._bytes / 2**20:,.1f} MiB; {seconds:.0f} s"


def train(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    kind: str,
    vocab_size: int,
    special_tokens: Sequence[str],
    text_key: str = "text",
    say: Callable[[str], None] = print,
) -> Path:
    """Train a tokenizer on every document of the paths and write it; see `train_tokenizer` for what is allowed.

    Raises RefusedError if `out` exists.
    """
    check_tokenizer_place(Path(out))
    reading = _Reading(d.text for d in _documents(paths, text_key=text_key, meta={}))
    made = listening(
        partial(train_tokenizer, reading, kind=kind, vocab_size=vocab_size, special_tokens=special_tokens),  # type: ignore[arg-type]
        tell=lambda: say(reading.so_far()),
        every=_TOLD_SECONDS,
        stop=reading.stop,
    )
    save_tokenizer(made, Path(out), boundary=special_tokens[0])
    return Path(out)


def check(
    tokenizer: str,
    paths: Sequence[str | Path],
    *,
    boundary: str | None = None,
    text_key: str = "text",
    meta: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what a tokenizer ("bytes" or a file) makes of the documents of the paths, ready for JSON."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    part = Preparation(paths=("-",), tokenizer=tokenizer, boundary=boundary).tokenizer_part
    found = check_tokenizer(
        tokenizers.parts.build(part, path="tokenizer"), _documents(paths, text_key=text_key, meta=meta or {})
    )
    return asdict(found)


def _documents(paths: Sequence[str | Path], *, text_key: str, meta: Mapping[str, str]) -> Iterator[Document]:
    asked = Preparation(paths=tuple(map(str, paths)), text_key=text_key, meta=dict(meta))
    look_at(asked)
    return (document for path in asked.paths for document in documents_of(path, asked))
