"""Commands that prepare text: folders of shards, their columns and orders, tokenizers."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.cli.app import app, tokenizer
from seedbed.cli.options import AsJson, Duplicates, OnError, TextKey
from seedbed.core.bounds import MOST_BYTES, MOST_WORKERS
from seedbed.core.errors import ConfigError, InterruptedRunError

Paths = Annotated[list[str], typer.Argument(help="Files, folders, globs, builtin:NAME or hub:NAME.")]

Boundary = Annotated[
    str | None, typer.Option(help="Of a tokenizer.json: the special token in front of documents, unless the file names one.")
]

Meta = Annotated[
    list[str] | None, typer.Option("--meta", metavar="NAME=KEY", help="Keep a record's KEY as NAME, such as language=lang.")
]


def _meta(given: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in given or []]
    if any(not (name and equals and key) for name, equals, key in pairs):
        raise ConfigError(f"--meta takes NAME=KEY, got {given}")
    return {name: key for name, _, key in pairs}


@app.command()
def prepare(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="The folder for the shards; never overwritten. An interrupted one goes on.")],
    tokenizer: Annotated[str, typer.Option(help="bytes, integers:VOCABULARY, or a tokenizer.json.")] = "bytes",
    boundary: Boundary = None,
    workers: Annotated[
        int, typer.Option(help="Processes side by side; the bytes are the same for any number.", min=1, max=MOST_WORKERS)
    ] = 1,
    on_error: Annotated[
        OnError, typer.Option(help="Stop at input that cannot be read, or leave it out and say so.")
    ] = OnError.stop,
    text_key: TextKey = "text",
    meta: Meta = None,
    section_bytes: Annotated[
        int,
        typer.Option(help="Cut longer documents at empty lines into sections of this size; 0: never.", min=0, max=MOST_BYTES),
    ] = 0,
    valid_share: Annotated[float, typer.Option(help="Of documents, chosen by their content.", min=0, max=1)] = 0.01,
    test_share: Annotated[float, typer.Option(help="Of documents, chosen by their content.", min=0, max=1)] = 0.01,
    duplicates: Annotated[
        Duplicates, typer.Option(help="keep: leave none out; exact: equal texts; near: similar ones too.")
    ] = Duplicates.exact,
    threshold: Annotated[float, typer.Option(help="Similarity (estimated Jaccard) of near duplicates.", min=0, max=1)] = 0.8,
    against: Annotated[
        list[str] | None, typer.Option(help="Another corpus or prepared folder: what it holds is left out; repeatable.")
    ] = None,
    decontaminate: Annotated[
        list[str] | None, typer.Option(help="An evaluation set: what shares 13 words in a row with it is left out; repeatable.")
    ] = None,
    least_bytes: Annotated[int, typer.Option(help="Shorter documents are left out.", min=0, max=MOST_BYTES)] = 1,
    most_bytes: Annotated[int | None, typer.Option(help="Longer documents are left out.", min=1, max=MOST_BYTES)] = None,
    document_bytes: Annotated[int, typer.Option(help="A longer document is bad input.", min=1, max=MOST_BYTES)] = 2**26,
    file_bytes: Annotated[int, typer.Option(help="A file that unpacks to more is bad input.", min=1, max=MOST_BYTES)] = 2**36,
    shard_tokens: Annotated[int, typer.Option(help="Tokens of a shard, at most.", min=1, max=2**40)] = 2**27,
    licence: Annotated[str, typer.Option(help="A note for the manifest.")] = "",
    as_json: AsJson = False,
) -> None:
    """Turn files into shards that a run reads by address."""
    from seedbed.experiments.prepare.prepare import prepare as make

    try:
        found = make(
            paths,
            out,
            workers=workers,
            say=partial(print, flush=True),
            tokenizer=tokenizer,
            boundary=boundary,
            on_error=on_error.value,
            text_key=text_key,
            meta=_meta(meta),
            section_bytes=section_bytes,
            valid_share=valid_share,
            test_share=test_share,
            duplicates=duplicates.value,
            threshold=threshold,
            against=tuple(against or ()),
            decontaminate=tuple(decontaminate or ()),
            least_bytes=least_bytes,
            most_bytes=most_bytes,
            document_bytes=document_bytes,
            file_bytes=file_bytes,
            shard_tokens=shard_tokens,
            licence=licence,
        )
    except KeyboardInterrupt:
        raise InterruptedRunError(f"interrupted; what was done is kept in {out}: run the same command again to go on") from None
    print(f"manifest: {found.folder / 'manifest.json'}")
    if as_json:
        print(json.dumps(found.manifest))


@app.command()
def column(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")],
    name: Annotated[str, typer.Argument(help="The column's name.")],
    file: Annotated[
        Path | None, typer.Option(help='Lines {"id": ..., "value": number or label}, one for each document.')
    ] = None,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Label each document with the earliest it nearly repeats.")
    ] = False,
    threshold: Annotated[float, typer.Option(help="Similarity of near duplicates.", min=0, max=1)] = 0.8,
) -> None:
    """Give prepared documents a further value each: a score or label from a file, or their duplicate cluster."""
    from seedbed.experiments.prepare import columns

    if (file is None) == (not near_duplicates):
        raise ConfigError("column needs one of --file FILE and --near-duplicates")
    if file is not None:
        print(f"column: {columns.column_from_file(folder, name, file)}")
    else:
        print(f"column: {columns.column_of_duplicates(folder, name, threshold=threshold)}")


@app.command()
def order(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")],
    name: Annotated[str, typer.Argument(help="The order's name.")],
    by: Annotated[str, typer.Option(help="A column of the folder.")],
    descending: Annotated[bool, typer.Option("--descending", help="Largest value first.")] = False,
) -> None:
    """Put the training documents of a prepared folder in order, for `source: {kind: shards, order: NAME}`."""
    from seedbed.experiments.prepare.columns import order_by

    print(f"order: {order_by(folder, name, column=by, descending=descending)}")


@tokenizer.command()
def train(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="The tokenizer.json to write, or a folder for it; never overwritten.")],
    kind: Annotated[str, typer.Option(help="bpe, unigram or wordpiece, all on bytes and without loss.")] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Ids, the 256 bytes and special tokens included.", min=1, max=2**24)] = 8192,
    special: Annotated[
        list[str] | None, typer.Option(help="A special token; the first stands in front of documents. [<|endoftext|>]")
    ] = None,
    text_key: TextKey = "text",
    meta: Meta = None,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer on your text and hold it against that text."""
    from seedbed.experiments.prepare.tokenizing import check
    from seedbed.experiments.prepare.tokenizing import train as learn

    kept = _meta(meta)
    specials = special or ["<|endoftext|>"]
    told = partial(print, file=sys.stderr, flush=True)
    learn(paths, out, kind=kind, vocab_size=vocab_size, special_tokens=specials, text_key=text_key, say=told)
    _print_tokenizer_report(check(str(out), paths, text_key=text_key, meta=kept), as_json=as_json)


@tokenizer.command(name="check")
def check_(
    file: Annotated[str, typer.Argument(help="bytes, or a tokenizer.json or its folder.")],
    paths: Paths,
    boundary: Boundary = None,
    text_key: TextKey = "text",
    meta: Meta = None,
    as_json: AsJson = False,
) -> None:
    """Hold a tokenizer against your text: what is lost, bytes a token, tokens a word by language, pieces never used."""
    from seedbed.experiments.prepare.tokenizing import check

    found = check(file, paths, boundary=boundary, text_key=text_key, meta=_meta(meta))
    _print_tokenizer_report(found, as_json=as_json)
    if found["lossless_documents"] < found["documents"]:
        raise typer.Exit(1)


def _print_tokenizer_report(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
