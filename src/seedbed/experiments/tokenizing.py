"""`seedbed tokenizer train | check`: a tokenizer from a user's text, and what a tokenizer makes of it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seedbed import tokenizers
from seedbed.core.records import Document
from seedbed.experiments.prepare import Preparation, documents_of, look_at
from seedbed.tokenizers.training import check_tokenizer, check_tokenizer_place, save_tokenizer, train_tokenizer


def train(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    kind: str,
    vocab_size: int,
    special_tokens: Sequence[str],
    text_key: str = "text",
) -> Path:
    """Train a tokenizer on every document of the paths and write it; see `train_tokenizer` for what is allowed.

    Raises RefusedError if `out` exists.
    """
    check_tokenizer_place(Path(out))
    texts = (d.text for d in _documents(paths, text_key=text_key, meta={}))
    made = train_tokenizer(texts, kind=kind, vocab_size=vocab_size, special_tokens=special_tokens)  # type: ignore[arg-type]
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
    for path in asked.paths:
        yield from documents_of(path, asked)
