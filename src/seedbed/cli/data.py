"""Commands that prepare text: folders of shards, their columns and orders, tokenizers."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.cli.app import app, tokenizer
from seedbed.cli.options import (
    AsJson,
    DataFolder,
    Duplicates,
    LocalCode,
    OnError,
    Scale,
    Sets,
    TextKey,
    allow_local_code_if,
    data_in,
    sets_of,
)
from seedbed.core.bounds import LARGEST_SEED, MOST_BYTES, MOST_WORKERS
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


Workers = Annotated[
    int, typer.Option(help="Processes side by side; the bytes are the same for any number.", min=1, max=MOST_WORKERS)
]

Share = Annotated[float, typer.Option(help="Of documents, chosen by their content.", min=0, max=1)]

Against = Annotated[
    list[str] | None, typer.Option(help="Another corpus or prepared folder: what it holds is left out; repeatable.")
]

Decontaminated = Annotated[
    list[str] | None, typer.Option(help="An evaluation set: what shares 13 words in a row with it is left out; repeatable.")
]

SectionBytes = Annotated[
    int, typer.Option(help="Cut longer documents at empty lines into sections of this size; 0: never.", min=0, max=MOST_BYTES)
]


Repeated = Annotated[Duplicates, typer.Option(help="keep: leave none out; exact: equal texts; near: similar ones too.")]


@app.command()
def prepare(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs, builtin:NAME or hub:NAME; or one recipe.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder for the shards; never overwritten. An interrupted one goes on.")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="bytes, integers:VOCABULARY, or a tokenizer.json.")] = "bytes",
    boundary: Boundary = None,
    workers: Workers = 1,
    on_error: Annotated[OnError, typer.Option(help="Stop at input that cannot be read, or leave it out.")] = OnError.stop,
    text_key: TextKey = "text",
    meta: Meta = None,
    section_bytes: SectionBytes = 0,
    valid_share: Share = 0.01,
    test_share: Share = 0.01,
    duplicates: Annotated[
        Duplicates, typer.Option(help="keep: leave none out; exact: equal texts; near: similar ones too.")
    ] = (Duplicates.exact),
    threshold: Annotated[float, typer.Option(help="Similarity (estimated Jaccard) of near duplicates.", min=0, max=1)] = 0.8,
    against: Against = None,
    decontaminate: Decontaminated = None,
    least_bytes: Annotated[int, typer.Option(help="Shorter documents are left out.", min=0, max=MOST_BYTES)] = 1,
    most_bytes: Annotated[int | None, typer.Option(help="Longer documents are left out.", min=1, max=MOST_BYTES)] = None,
    document_bytes: Annotated[int, typer.Option(help="A longer document is bad input.", min=1, max=MOST_BYTES)] = 2**26,
    file_bytes: Annotated[int, typer.Option(help="A file that unpacks to more is bad input.", min=1, max=MOST_BYTES)] = 2**36,
    shard_tokens: Annotated[int, typer.Option(help="Tokens of a shard, at most.", min=1, max=2**40)] = 2**27,
    licence: Annotated[str, typer.Option(help="A note for the manifest.")] = "",
    scale: Scale = None,
    set_: Sets = None,
    allow_local_code: LocalCode = False,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Turn files into shards that a run reads by address; without --out, make what a recipe's `prepare` block says."""
    allow_local_code_if(allow_local_code)
    data_in(data)
    if out is None:
        _refuse_options(ctx, "a recipe (its `prepare` block says these)", allowed=("paths", "workers", *_OF_RECIPES))
        _prepare_recipe(paths, workers=workers, scale=scale, sets=sets_of(set_), as_json=as_json)
        return
    if len(paths) == 1 and _is_recipe(paths[0]):
        raise ConfigError("a recipe takes no --out: what it makes lies in prepared/, or where SEEDBED_PREPARED says")
    _refuse_options(ctx, "files", allowed=[p.name for p in ctx.command.params if p.name not in ("scale", "set_")])
    settings = {name: value for name, value in locals().items() if name in _AS_THEY_ARE}
    settings |= {"on_error": on_error.value, "duplicates": duplicates.value, "meta": _meta(meta)}
    settings |= {"against": tuple(against or ()), "decontaminate": tuple(decontaminate or ())}
    _prepare_files(paths, out, workers=workers, settings=settings, as_json=as_json)


_OF_RECIPES = ("scale", "set_", "allow_local_code", "data", "as_json")


def _refuse_options(ctx: typer.Context, what: str, *, allowed: Sequence[str | None]) -> None:
    """Raise ConfigError for an option that was given and means nothing here."""
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if option.name not in (*allowed, "out") and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{option.opts[0]} means nothing for {what}; leave it out")


_AS_THEY_ARE = (
    *("tokenizer", "boundary", "text_key", "section_bytes", "valid_share", "test_share", "threshold", "least_bytes"),
    *("most_bytes", "document_bytes", "file_bytes", "shard_tokens", "licence"),
)


def _prepare_files(paths: list[str], out: Path, *, workers: int, settings: dict[str, Any], as_json: bool) -> None:
    from seedbed.experiments.prepare.prepare import prepare as make

    try:
        found = make(paths, out, workers=workers, say=partial(print, flush=True), **settings)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"interrupted; what was done is kept in {out}: run the same command again to go on") from None
    print(f"manifest: {found.folder / 'manifest.json'}")
    if as_json:
        print(json.dumps(found.manifest))


def _is_recipe(path: str) -> bool:
    return path.endswith((".yaml", ".yml"))


def _prepare_recipe(paths: list[str], *, workers: int, scale: str | None, sets: dict[str, Any], as_json: bool) -> None:
    from seedbed.experiments.plan.load import shipped
    from seedbed.experiments.prepare.artefacts import prepare_recipe

    if len(paths) != 1 or not (_is_recipe(paths[0]) or paths[0] in shipped()):
        raise ConfigError(
            f"prepare needs --out FOLDER for files, or one recipe (a .yaml file); got {' '.join(paths)} and no --out"
        )
    say = partial(print, flush=True)
    try:
        made = prepare_recipe(paths[0], workers=workers, say=say, scale=scale, sets=sets)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; what was done is kept: run the same command again to go on") from None
    for folder in made:
        print(f"made: {folder}")
    if as_json:
        print(json.dumps([json.loads((folder / "artefact.json").read_text()) for folder in made]))


PartName = Annotated[str, typer.Argument(help="A part, see `seedbed list parts`; or ./file.py:Class.")]

PartSettings = Annotated[list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="The part's settings.")]

Folder = Annotated[Path, typer.Argument(help="A prepared folder.")]


@app.command()
def column(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The column's name.")],
    kind: PartName,
    settings: PartSettings = None,
    allow_local_code: LocalCode = False,
) -> None:
    """Give prepared documents a further value each: a score, a label, their duplicate cluster."""
    allow_local_code_if(allow_local_code)
    from seedbed.experiments.prepare.passes import make_column

    print(f"column: {make_column(folder, name, {'kind': kind, **sets_of(settings)})}")


@app.command()
def order(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The order's name.")],
    kind: PartName,
    settings: PartSettings = None,
    seed: Annotated[int, typer.Option(help="Names its random draws.", min=0, max=LARGEST_SEED)] = 0,
    allow_local_code: LocalCode = False,
) -> None:
    """Put the training documents of a prepared folder in order, for `source: {kind: shards, order: NAME}`."""
    allow_local_code_if(allow_local_code)
    from seedbed.experiments.prepare.passes import make_order

    print(f"order: {make_order(folder, name, {'kind': kind, **sets_of(settings)}, seed=seed)}")


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
