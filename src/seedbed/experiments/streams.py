"""Streams, built as a plan says: sources, tokenizer, packing, mixture and views put together.

Nothing here needs torch, so a data worker starts without it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from seedbed import mixture, packing, sources, tokenizers, views
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Corpus, Mixture, Packer, Prepared, Source, Tokenizer, TokenStore, View
from seedbed.core.registry import missing
from seedbed.core.stream import Stream
from seedbed.experiments.plan.specs import StreamSpec
from seedbed.packing.store import CorpusTokens, Ordered
from seedbed.sources.shards import ShardStore

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class BuiltStream:
    """A stream with what it was made of, for evaluation, fingerprints and pages."""

    stream: Stream
    corpora: Mapping[str, Corpus]  # of text streams, by source
    tokenizer: Tokenizer | None
    tokenizer_part: Mapping[str, Any]  # as a recipe names it; empty without one
    opened: dict[str, Any] = field(default_factory=dict, repr=False)  # what evaluations have read beside it, by what names it

    @property
    def source(self) -> Source:
        """The source of a stream that has one."""
        (source,) = self.stream.sources.values()
        return source

    def fingerprint(self) -> str:
        """Return a hash of all data that the stream can draw from."""
        prints = {name: source.fingerprint() for name, source in self.stream.sources.items()}
        return next(iter(prints.values())) if len(prints) == 1 else sha256(json.dumps(prints).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class StreamParts:
    """What a stream is made of, as settings: nothing is read yet."""

    sources: Mapping[str, Any]
    tokenizer: Tokenizer | None
    packing: Packer
    mixture: Mixture
    views: list[View]

    @property
    def give_text(self) -> bool:
        """Whether its rows are made of documents, so that held-out text can be read with its tokenizer."""
        return all(isinstance(source, Corpus | Prepared) for source in self.sources.values())


def stream_parts(name: str, spec: StreamSpec) -> StreamParts:
    """Return the parts of a stream. Raises ConfigError, with the path in the recipe, for what does not fit."""
    path, shared = f"streams.{name}", {"seq_len": spec.seq_len}
    one = spec.source is not None
    return StreamParts(
        sources={
            source: sources.parts.build(part, path=f"{path}.source" if one else f"{path}.sources.{source}", shared=shared)
            for source, part in spec.named_sources.items()
        },
        tokenizer=None if spec.tokenizer is None else tokenizers.parts.build(spec.tokenizer, path=f"{path}.tokenizer"),
        packing=packing.parts.once(spec.packing, path=f"{path}.packing", shared=shared),
        mixture=mixture.parts.once(spec.mixture, path=f"{path}.mixture", shared=shared),
        views=[views.parts.once(view, path=f"{path}.views.{i}") for i, view in enumerate(spec.views)],
    )


def build_stream(name: str, spec: StreamSpec, *, device: "torch.device | None" = None) -> BuiltStream:
    """Return a stream; on a GPU, rows that a source makes are made there, with the same bytes.

    Raises ConfigError or DataError for parts that do not fit each other or lack data.
    """
    path, parts = f"streams.{name}", stream_parts(name, spec)
    made, corpora, given = {}, {}, parts.tokenizer
    part_given: Mapping[str, Any] = {}
    if given is not None and spec.tokenizer is not None:
        given.fingerprint()  # raises what its files have to say
        part_given = {"kind": spec.tokenizer} if isinstance(spec.tokenizer, str) else spec.tokenizer
    tokenizer = None
    for source_name, source in parts.sources.items():
        at = f"{path}.source" if spec.source is not None else f"{path}.sources.{source_name}"
        if isinstance(source, Corpus | Prepared):
            tokenizer = _fitting(given, source, before=tokenizer, path=at)
            if isinstance(source, Prepared):
                part_given = part_given or source.tokenizer_spec()
            corpora[source_name], store = _opened(source, tokenizer)
            source = parts.packing.pack(store)
        elif given is not None:
            raise ConfigError(f"{path}.tokenizer: the source {source_name!r} gives tokens already; leave the tokenizer out")
        else:
            source = _rows(source, path=at) if device is None else _rows(source, path=at).on(device)
        made[source_name] = source
    vocabularies = {source_name: source.vocab_size for source_name, source in made.items()}
    if len(set(vocabularies.values())) > 1 or (corpora and len(corpora) < len(made)):
        raise ConfigError(f"{path}.sources: rows of one stream share one vocabulary; got {vocabularies} tokens")
    try:
        mixed = parts.mixture.resolved({n: _amounts(s, corpora.get(n)) for n, s in made.items()})
    except ConfigError as e:
        raise ConfigError(f"{path}.mixture: {e}") from None
    stream = Stream(
        name=name,
        sources=made,
        mixture=mixed,
        views=parts.views,
        seq_len=spec.seq_len,
        batch_size=spec.batch_size,
        vocab_size=next(iter(vocabularies.values())) + sum(view.spare for view in parts.views),
        boundary_id=None if tokenizer is None else tokenizer.boundary_id,
        tokenizer=tokenizer,
    )
    return BuiltStream(stream=stream, corpora=corpora, tokenizer=tokenizer, tokenizer_part=part_given)


def _rows(source: Any, *, path: str) -> Source:
    """Return a source of rows. Raises ConfigError for a part that gives neither rows nor documents."""
    lacking = missing(type(source), Source)
    if lacking:
        raise ConfigError(
            f"{path}: {type(source).__name__} lacks {', '.join(lacking)}; a source of rows derives from seedbed.core.protocols."
            "Source, which brings what is usual, one of documents from Corpus (see CONTRIBUTING.md)"
        )
    found: Source = source
    return found


def _fitting(given: Tokenizer | None, source: Any, *, before: Tokenizer | None, path: str) -> Tokenizer:
    """Return the tokenizer of a text source: the recipe's, or a prepared folder's own. A stream has one."""
    if given is not None:
        return given
    if not isinstance(source, Prepared):
        raise ConfigError(f"{path}: this source gives documents, so the stream needs a tokenizer, such as bytes")
    own: Tokenizer = tokenizers.parts.build(source.tokenizer_spec(), path=f"{path}.tokenizer")
    if before is not None and own.fingerprint() != before.fingerprint():
        raise ConfigError(
            f"{path}: it was prepared with another tokenizer than the stream's other sources; prepare them with one"
        )
    return own


def _opened(source: Any, tokenizer: Tokenizer) -> tuple[Corpus, TokenStore]:
    """Return a text source as a corpus to evaluate on and as ids to pack."""
    if not isinstance(source, Prepared):
        return source, CorpusTokens(corpus=source, tokenizer=tokenizer)
    store = source.store(tokenizer)
    return store, (Ordered(store=store, orders=store.orders) if store.orders else store)


def _amounts(source: Source, corpus: Corpus | None) -> dict[str, float]:
    """How much a source has to train on: rows, and of text bytes and seconds; nothing if it never ends."""
    rows = source.size("train")
    if rows is None:
        return {}
    store = source.packed_from()
    known = {"rows": float(rows)}
    if store is not None:
        known["bytes"] = float(store.size_bytes("train"))
        if isinstance(corpus, ShardStore):
            known["seconds"] = corpus.seconds("train")
    return known


def open_stream(name: str, spec: StreamSpec) -> Stream:
    """Return a stream, for a data worker."""
    return build_stream(name, spec).stream
