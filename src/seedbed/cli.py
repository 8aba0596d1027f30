"""The command line: parses, calls one function, prints. Nothing heavy is imported before a command needs it."""

import json
import os
import sys
import traceback
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed import __version__
from seedbed.core.bounds import LARGEST_SEED, LONGEST_ROW, MOST_BYTES, MOST_ROWS, MOST_THREADS, MOST_WORKERS
from seedbed.core.errors import ConfigError, InterruptedRunError, SeedbedError, is_out_of_memory
from seedbed.core.registry import ALLOW_LOCAL_CODE
from seedbed.core.speaking import LEFT, patient_streams
from seedbed.core.variables import first_rank

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: option names are never cut, however narrow the terminal
    help="Pre-train language models on less data and less compute, and say honestly whether it worked.",
)
nca = typer.Typer(no_args_is_help=True, help="Look at neural cellular automata, generate rows of them, check them.")
app.add_typer(nca, name="nca")
tokenizer = typer.Typer(no_args_is_help=True, help="Train a tokenizer on your text; hold one against your text.")
app.add_typer(tokenizer, name="tokenizer")


class OnError(StrEnum):
    """What becomes of input that cannot be read."""

    stop = "stop"
    skip = "skip"


class Duplicates(StrEnum):
    """Which of them are left out: none, equal ones, or nearly equal ones too."""

    keep = "keep"
    exact = "exact"
    near = "near"


class _State:
    debug = False
    works = False  # whether the command leaves something behind


WORKS = {"run", "compare", "tune", "map", "prepare", "column", "order", "train", "resume", "track", "export", "report", "pack"}
WORKS |= {"show", "generate"}


class Device(StrEnum):
    """Where to compute; cpu and cuda are tested."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(StrEnum):
    """Number type of the matrix products."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (seedbed list recipes).")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a setting; repeatable.")]
Scale = Annotated[str | None, typer.Option(help="A scale of the recipe, such as smoke.")]
CorpusPath = Annotated[str | None, typer.Option("--corpus", help="Your own text: a file, a folder or a glob.")]
Out = Annotated[Path | None, typer.Option(help="The run or study folder itself; never overwritten.")]
Jobs = Annotated[int, typer.Option(help="Runs side by side.", min=1, max=MOST_WORKERS)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON last.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
PrecisionOption = Annotated[Precision | None, typer.Option(help="Number type; the recipe's, unless said.")]
LocalCode = Annotated[bool, typer.Option("--allow-local-code", help="Let `kind: ./file.py:Class` run that file.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")]
Track = Annotated[
    list[str] | None, typer.Option("--track", help="Let tensorboard, wandb or trackio follow metrics.jsonl; repeatable.")
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Compile the model's blocks; on a GPU only, unless said.")
]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Make a block's inner states again in the backward pass: less memory, slower.")
]
Shard = Annotated[
    str | None, typer.Option(metavar="none|all|N", help="Under torchrun: split weights and moments over all or N ranks.")
]
DataWorkers = Annotated[
    int | None, typer.Option(help="Processes that make rows ahead; changes no row.", min=0, max=MOST_WORKERS)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything, print time, memory and tokens, and stop.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"seedbed {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    _State.debug = debug
    _State.works = any(word in WORKS for word in sys.argv[1:3])


def entry() -> None:
    """Run the command line; errors are one paragraph on standard error, with the exit code of their kind.

    Where standard output fails on the way, a command goes on with its work; a reader that left (`| head`) is no fault, anything
    else ends in exit code 1.
    """
    out, err = patient_streams()
    code = _ended()
    out.flush()
    if out.failed is not None and out.failed.errno not in LEFT:
        _complain(
            f"could not write to standard output: {out.failed.strerror}; what the command does beside is done, its words are "
            "lost: mend that and ask again"
        )
        code = code or 1
    elif out.failed is not None and _State.works:
        _complain("nobody read on, and the command went on to its end all the same")
    err.flush()
    sys.exit(code)


def _ended() -> int:
    """Run the command and return its exit code."""
    code: Any
    try:
        for word in sys.argv[1:]:
            _whole_text("an argument", word)
        code = app(standalone_mode=False)
        if code == InterruptedRunError.exit_code:  # the parser's own way of ending at Ctrl-C, which is silent
            _complain("interrupted; nothing more was written")
    except SeedbedError as e:
        _complain(str(e))
        code = e.exit_code
    except typer.TyperException as e:  # usage errors of the parser
        said = e.format_message() if hasattr(e, "format_message") else str(e)
        _complain(f"{said.rstrip('.')}; `seedbed COMMAND --help` shows what is allowed".replace("\n", " "))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; nothing more was written")
        code = 130
    except OSError as e:
        _complain(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}; mend that and try again")
        code = 1
    except Exception as e:
        if is_out_of_memory(e):
            _complain("memory is used up; ask for less at a time, or take a larger machine (--dry-run tells what a run takes)")
            return 1
        # a fault of ours: still one paragraph, the traceback on request
        _complain(f"internal error, {type(e).__name__}: {e}; please report it with the output of `seedbed --debug ...`")
        code = 1
    return code or 0


def _whole_text(what: str, text: str) -> None:
    """Raise ConfigError for what is not UTF-8, or unknown to the locale, in anything but the name of a file that is there."""
    try:
        text.encode()
    except UnicodeEncodeError:
        if os.path.lexists(text):
            return
        raw = os.fsencode(text)
    else:
        return
    try:
        said = raw.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{what} is not UTF-8: {raw!r}; give it in UTF-8") from None
    raise ConfigError(
        f"{what} has characters that the locale's encoding, {sys.getfilesystemencoding()}, does not know: {said!r}; set "
        "PYTHONUTF8=1, or a locale of UTF-8, and run it again"
    )


def _complain(message: str) -> None:
    if _State.debug:
        traceback.print_exc()
    print(f"seedbed: {message}", file=sys.stderr)


def _sets(given: list[str] | None) -> dict[str, Any]:
    from seedbed.core.config import parse_value

    out = {}
    for item in given or []:
        path, equals, value = item.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set takes A.B=VALUE, got {item!r}")
        out[path] = parse_value(value)
    return out


def _local_code(allowed: bool) -> None:
    if allowed:
        os.environ[ALLOW_LOCAL_CODE] = "1"


@app.command()
def run(
    recipe: RecipeArgument,
    arm: Annotated[str | None, typer.Option(help="An arm of the study; the control, unless said.")] = None,
    seed: Annotated[int, typer.Option(help="Names every random draw.", min=0, max=LARGEST_SEED)] = 0,
    out: Out = None,
    scale: Scale = None,
    set_: Sets = None,
    corpus: CorpusPath = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads; all, unless said.", min=1, max=MOST_THREADS)] = None,
    data_workers: DataWorkers = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="On a GPU: exact to the bit, and slower.")] = False,
    compiled: Compile = None,
    recompute: Recompute = False,
    shard: Shard = None,
    track: Track = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Train one arm of a recipe with one seed."""
    _local_code(allow_local_code)
    from seedbed.experiments import commands

    settings: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "scale": scale,
        "sets": _sets(set_),
        "corpus": corpus,
        "device": device.value,
        "precision": precision.value if precision else None,
        "threads": threads,
        "data_workers": data_workers or 0,
        "deterministic": deterministic,
        "compiled": compiled,
        "recompute": recompute,
        "shard": shard or "none",
    }
    if print_config:
        print(commands.plan_run(recipe, **settings).to_yaml(), end="")
        return
    if dry_run:
        _print_estimate(commands.plan_run(recipe, **settings), as_json=as_json)
        return
    result = commands.run(recipe, out=out, say=partial(print, flush=True), track=track or (), **settings)
    if not first_rank():
        return  # of several ranks the first speaks
    print(f"page: {result.folder / 'report.html'}")
    if as_json:
        print(json.dumps(result.final))


@app.command()
def compare(
    recipe: Annotated[str | None, typer.Argument(help="A recipe file, or the name of a shipped one.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-4; the recipe's, unless said.")] = None,
    jobs: Jobs = 1,
    threads: Annotated[
        int | None, typer.Option(help="Of each run; shared out evenly, unless said.", min=1, max=MOST_THREADS)
    ] = None,
    out: Out = None,
    scale: Scale = None,
    set_: Sets = None,
    corpus: CorpusPath = None,
    data_workers: DataWorkers = None,
    track: Track = None,
    aa: Annotated[bool, typer.Option("--aa", help="The control against itself: the noise floor.")] = False,
    check: Annotated[Path | None, typer.Option(help="Derive every number of a study folder again; trains nothing.")] = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Run a study: every arm with every seed, then one verdict. A study that was stopped goes on."""
    _local_code(allow_local_code)
    if check is not None:
        _check(check, as_json=as_json)
        return
    if recipe is None:
        raise ConfigError("compare needs a recipe (or --check FOLDER); `seedbed list recipes` shows the shipped ones")
    from seedbed.experiments import console, study
    from seedbed.experiments.recipe import load

    sets = _sets(set_)
    chosen: dict[str, Any] = {"device": device.value, "precision": precision.value if precision else None}
    loaded = load(recipe, scale=scale, sets=sets, corpus=corpus)
    if print_config:
        for name in loaded.arms:
            print(f"--- # arm {name}\n{loaded.plan(arm=name, seed=loaded.seeds[0], **chosen).to_yaml()}", end="")
        return
    if dry_run:
        for name in loaded.arms:
            print(f"arm {name}")
            _print_estimate(loaded.plan(arm=name, seed=loaded.seeds[0], **chosen), as_json=False)
        return
    given = [f"--scale {scale}" if scale else "", f"--seeds {seeds}" if seeds else "", "--aa" if aa else ""]
    given += [f"--set {item}" for item in set_ or []] + [f"--corpus {corpus}" if corpus else ""]
    given += [f"--threads {threads}" if threads else ""]
    shown = console.Console(loaded, jobs=jobs, threads=threads, seeds=seeds, aa=aa, **chosen)
    try:
        found = study.compare(
            recipe,
            out=out,
            scale=scale,
            sets=sets,
            corpus=corpus,
            seeds=seeds,
            jobs=jobs,
            threads=threads,
            aa=aa,
            data_workers=data_workers or 0,
            track=track or (),
            watch=shown.watch,
            ready=shown.announce,
            command=" ".join(["seedbed compare", recipe, *[g for g in given if g], f"--jobs {jobs}"]),
            **chosen,
        )
    finally:
        shown.close()
    shown.conclude(found)
    if as_json:
        print(json.dumps(found.data))


def _check(folder: Path, *, as_json: bool) -> None:
    from seedbed.experiments.comparison import check_comparison

    differences = check_comparison(folder)
    if as_json:
        print(json.dumps({"ok": not differences, "differences": differences}))
    elif differences:
        print("\n".join(differences))
    else:
        print(f"every number in {folder / 'comparison.json'} follows from the run folders")
    if differences:
        raise typer.Exit(1)


@app.command()
def tune(
    recipe: RecipeArgument,
    jobs: Jobs = 1,
    out: Out = None,
    scale: Scale = None,
    set_: Sets = None,
    device: DeviceOption = Device.auto,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Run the recipe's `tune:` grid: on validation data, on seeds of its own, as many trials for every arm."""
    _local_code(allow_local_code)
    from seedbed.experiments import console
    from seedbed.experiments.tune import tune as search

    lines = console.Lines()
    found = search(recipe, out=out, scale=scale, sets=_sets(set_), jobs=jobs, device=device.value, watch=lines.watch)
    for arm, best in found.data["best"].items():
        print(f"{arm}: {best}")
    print(f"record: {found.folder / 'tuning.json'}")
    if as_json:
        print(json.dumps(found.data))


@app.command(name="map")
def map_(
    recipe: RecipeArgument = "nca-map",
    jobs: Jobs = 1,
    out: Out = None,
    scale: Scale = None,
    set_: Sets = None,
    device: DeviceOption = Device.auto,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Train stage 0 on every setting of the recipe's `map:` block: which automata can this model learn?"""
    _local_code(allow_local_code)
    from seedbed.experiments import console
    from seedbed.experiments.learnability import learnability_map, table

    lines = console.Lines()
    found = learnability_map(recipe, out=out, scale=scale, sets=_sets(set_), jobs=jobs, device=device.value, watch=lines.watch)
    print(table(found.data))
    print(f"record: {found.folder / 'map.json'}")
    if as_json:
        print(json.dumps(found.data))


Paths = Annotated[list[str], typer.Argument(help="Files, folders, globs, builtin:NAME or hub:NAME.")]
TextKey = Annotated[str, typer.Option("--text-key", help="Where records (.jsonl, .json, .csv, .parquet) hold their text.")]
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
    from seedbed.experiments.prepare import prepare as make

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
    from seedbed.experiments import columns

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
    from seedbed.experiments.columns import order_by

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
    from seedbed.experiments.tokenizing import check
    from seedbed.experiments.tokenizing import train as learn

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
    from seedbed.experiments.tokenizing import check

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


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(help="A run folder, a recipe file, or the name of a shipped one.")],
    step: Annotated[int, typer.Option(help="A step of the run, from 1 on.", min=1, max=10**12)],
    arm: Annotated[str | None, typer.Option(help="An arm of the recipe's study; the control, unless said.")] = None,
    seed: Annotated[int, typer.Option(help="Of a recipe: the run's seed.", min=0, max=LARGEST_SEED)] = 0,
    row: Annotated[
        int | None, typer.Option(help="One row of the step, from 0 on; all, unless said.", min=0, max=MOST_ROWS)
    ] = None,
    scale: Scale = None,
    set_: Sets = None,
    corpus: CorpusPath = None,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Show the rows of a step with their documents, before the run or after it."""
    _local_code(allow_local_code)
    from dataclasses import asdict, replace

    from seedbed.experiments.inspection import as_text, is_run
    from seedbed.experiments.inspection import inspect as look

    settings: dict[str, Any] = {"arm": arm, "seed": seed, "scale": scale, "sets": _sets(set_), "corpus": corpus}
    if is_run(target):
        settings = {}
    shown = look(target, step=step, **settings)
    if row is not None:
        if row >= len(shown.rows):
            raise ConfigError(f"step {step} has {len(shown.rows)} rows, from 0 on; there is no row {row}")
        shown = replace(shown, rows=[shown.rows[row]])
    print(json.dumps(asdict(shown)) if as_json else as_text(shown))


def _weights(given: list[str] | None) -> dict[str, dict[str, float]]:
    """Return {"text": {"code": 0.5, "prose": 0.5}} for ["text:code=0.5,prose=0.5"]."""
    out: dict[str, dict[str, float]] = {}
    for item in given or []:
        stream, colon, pairs = item.partition(":")
        try:
            out[stream] = {name: float(value) for name, value in (pair.split("=") for pair in pairs.split(","))}
        except ValueError:
            colon = ""
        if not colon:
            raise ConfigError(f"--weights takes STREAM:SOURCE=WEIGHT,SOURCE=WEIGHT, got {item!r}")
    return out


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A run or study folder.")],
    jobs: Jobs = 1,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="STREAM:A=0.7,B=0.3", help="Other weights for a run's mixture from here on; repeatable."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of a run: other than it was begun with.", min=1, max=MOST_THREADS)
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Of a run: rows at a time, in every stage.", min=1, max=MOST_ROWS)
    ] = None,
    data_workers: DataWorkers = None,
    shard: Shard = None,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="Allow another layout where it changes draws, so exactness is lost.")
    ] = False,
    track: Track = None,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run or a study where it stopped, with everything as it was."""
    _local_code(allow_local_code)
    from seedbed.experiments import commands, console
    from seedbed.experiments.comparison import Comparison
    from seedbed.experiments.layout import Sitting

    sitting = Sitting(
        threads=threads,
        micro_batch_size=micro_batch_size,
        data_workers=data_workers,
        shard=shard,
        inexact=inexact,
        track=tuple(track or ()),
    )
    found = commands.resume(folder, jobs=jobs, watch=console.Lines().watch, weights=_weights(weights), sitting=sitting)
    if not first_rank():
        return
    if isinstance(found, Comparison):
        print(f"verdict: {found.verdict}")
    print(f"page: {found.folder / 'report.html'}")
    if as_json:
        print(json.dumps(found.data if isinstance(found, Comparison) else found.final))


@app.command()
def track(
    folder: Annotated[Path, typer.Argument(help="A run folder, finished or not.")],
    to: Annotated[list[str], typer.Option(help="tensorboard, wandb or trackio; repeatable.")],
) -> None:
    """Send a run's metrics.jsonl to a service."""
    from seedbed.experiments.tracking import track as send

    send(folder, to)


@app.command()
def diff(
    one: Annotated[Path, typer.Argument(help="A run folder.")],
    other: Annotated[Path, typer.Argument(help="Another run folder.")],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two runs: recipe, data, code, environment, layout, numbers."""
    from dataclasses import asdict

    from seedbed.experiments import difference

    found = difference.diff(one, other)
    print(json.dumps(asdict(found), default=str) if as_json else difference.as_text(found))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write; never overwritten.")],
    to: Annotated[str, typer.Option(help="hf (opens with transformers), or safetensors (opens with seedbed).")] = "hf",
    as_json: AsJson = False,
) -> None:
    """Write a run's model as a folder that other tools open, with a card of what it is."""
    from dataclasses import asdict

    from seedbed.experiments.export import export as write

    found = write(folder, out, to=to)
    if as_json:
        print(json.dumps(asdict(found), default=str))
        return
    for name, value in asdict(found).items():
        print("\n".join(f"note: {note}" for note in value) if name == "notes" else f"{name}: {value}")


@app.command()
def pack(
    study: Annotated[Path, typer.Argument(help="The folder of a finished study.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write; never overwritten. [STUDY-packed]")] = None,
) -> None:
    """Write a study's whole record, without weights, as a small folder to commit or to send."""
    from seedbed.experiments.pack import pack as write

    folder = write(study, out=out)
    print(f"packed: {folder} ({sum(f.stat().st_size for f in folder.iterdir()):,} bytes)")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A finished run or study folder.")]) -> None:
    """Write report.html (and its figures) of a folder anew."""
    from seedbed.report.page import write_page

    print(f"page: {write_page(folder)}")


@app.command(name="eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    text: Annotated[
        str, typer.Option(help="A file, folder, glob or prepared folder, builtin:NAME or hub:NAME; every byte is scored once.")
    ],
    text_key: TextKey = "text",
    stride: Annotated[
        int | None, typer.Option(help="Step of overlapping windows; disjoint, unless said.", min=1, max=LONGEST_ROW)
    ] = None,
    device: DeviceOption = Device.auto,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Loss of a run's model over a text: nats per token, perplexity, bits per byte."""
    _local_code(allow_local_code)
    from seedbed.core.run_record import loss_of_text
    from seedbed.experiments.commands import evaluate_text

    found = evaluate_text(folder, text, text_key=text_key, device=device.value, stride=stride)
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    if lost := loss_of_text(found):
        print(f"note: {lost}")


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What the text begins with; repeatable.")] = None,
    tokens: Annotated[int, typer.Option(help="New tokens.", min=1, max=10**7)] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0, max=1000)] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.", min=1, max=2**31)] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens whose probabilities come to this.", min=0, max=1)
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"End before this text (\n and \t are understood); repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Continuations of each prompt.", min=1, max=10**6)] = 1,
    seed: Annotated[int, typer.Option(help="Names the draws.", min=0, max=LARGEST_SEED)] = 0,
    device: DeviceOption = Device.auto,
    allow_local_code: LocalCode = False,
    as_json: AsJson = False,
) -> None:
    """Text sampled from a run's model."""
    _local_code(allow_local_code)
    from seedbed.experiments.commands import sample as write

    prompts = prompt or [""]
    texts = write(
        folder,
        prompts,
        new_tokens=tokens,
        samples=samples,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=[text.replace(r"\n", "\n").replace(r"\t", "\t") for text in stop or []],
        device=device.value,
    )
    begun = [p for p in prompts for _ in range(samples)]
    if as_json:
        print(json.dumps([{"prompt": p, "text": t} for p, t in zip(begun, texts, strict=True)]))
        return
    for number, (first, text) in enumerate(zip(begun, texts, strict=True)):
        print(f"--- sample {number % samples + 1} of {samples}\n{first}{text}" if samples > 1 else first + text)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="parts, recipes or runs")] = "recipes",
    folder: Annotated[Path, typer.Option(help="Where runs are looked for.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show what there is: parts, recipes or runs."""
    from dataclasses import asdict

    from seedbed.experiments import catalog

    if what == "parts":
        rows = [asdict(p) for p in catalog.parts()]
        lines = [f"{r['room'] + '.' + r['name']:28} {r['summary']}" for r in rows]
    elif what == "recipes":
        rows = [dict(r) for r in catalog.recipes()]
        lines = [f"{r['name']:28} {r['title']}" for r in rows]
    elif what == "runs":
        rows = catalog.runs(folder)
        lines = [f"{r['folder']:50} {r['status']}" for r in rows]
    else:
        raise ConfigError(f"list shows parts, recipes or runs; got {what!r}")
    print(json.dumps(rows) if as_json else "\n".join(lines) or f"none in {folder}")


@app.command()
def explain(name: Annotated[str, typer.Argument(help="A part or a recipe.")]) -> None:
    """Say what a part or a recipe is."""
    from seedbed.experiments.catalog import explain as text

    print(text(name))


@app.command()
def validate(
    recipe: Annotated[str, typer.Argument(help="A recipe file, the name of a shipped one, or a prepared folder.")],
    scale: Scale = None,
    set_: Sets = None,
    corpus: CorpusPath = None,
    allow_local_code: LocalCode = False,
) -> None:
    """Check a recipe, every arm of it, without training; or hash every file of a prepared folder again."""
    _local_code(allow_local_code)
    if Path(recipe).is_dir():
        from seedbed.experiments.prepare import validate_folder

        found = validate_folder(Path(recipe))
        print(f"{recipe} is whole: {found['shards']} shards, {found['documents']:,} documents, {found['tokens']:,} tokens")
        return
    from seedbed.experiments.assemble import check_parts
    from seedbed.experiments.recipe import load
    from seedbed.experiments.streams import build_stream

    loaded = load(recipe, scale=scale, sets=_sets(set_), corpus=corpus)
    for arm in loaded.arms:
        plan = loaded.plan(arm=arm, seed=0)
        check_parts(plan)
        for name, spec in plan.streams.items():
            build_stream(name, spec)
    print(f"{loaded.recipe.name} is valid; arms: {', '.join(loaded.arms)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has and whether the generator gives its known answers here."""
    import torch

    from seedbed.core.compiled import kept_in
    from seedbed.experiments.environment import environment
    from seedbed.nca.golden import golden_rows

    facts = environment()
    golden = golden_rows()
    found = {
        "ok": all(golden.values()),
        "seedbed": __version__,
        **{k: facts[k] for k in ("python", "system", "processor", "processors_available", "cpu_capability", "products")},
        "torch": facts["packages"]["torch"],
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "compiled_code": str(
            kept_in() or "not kept, so every process compiles anew; NUMBA_CACHE_DIR may name a folder to write into"
        ),
        "golden_rows": golden,
    }
    if as_json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    if not found["ok"]:
        raise typer.Exit(1)


def _print_estimate(plan: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    from seedbed.experiments.estimate import EIGHT, SHARED_FROM, estimate

    found = estimate(plan)
    for s in found:
        print(f"  stage {s.stage}: {s.steps:,} steps, {s.tokens:,} tokens, {s.parameters:,} parameters")
        waits = ", most of it waiting for rows" if s.data_seconds >= s.step_seconds else ""
        print(f"    time: about {_span(s.seconds)}; {s.step_seconds:.3g} s a step ({s.how}){waits}")
        places = (("memory", s.parts_mib, s.limit_mib), ("beside the GPU", s.host_parts_mib, s.host_limit_mib))
        for where, parts, limit in places:
            if parts:
                of = "" if limit is None else f" of {limit:,.0f} there are"
                listed = ", ".join(f"{name} {mib:,.0f}" for name, mib in parts.items() if mib >= 0.5)
                print(f"    {where}: {sum(parts.values()):,.0f} MiB at its peak{of} ({listed})")
        if s.parameters >= SHARED_FROM:
            print(f"    split over {EIGHT} ranks with --shard all: {s.sharded_mib:,.0f} MiB on each")
        if s.helps:
            print(f"    that is more than this machine has; what helps: {'; '.join(s.helps)}")
    if as_json:
        print(json.dumps([{**asdict(s), "memory_mib": s.memory_mib, "host_mib": s.host_mib} for s in found]))


def _span(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


States = Annotated[int, typer.Option(help="Cell states.", min=2, max=256)]
Grid = Annotated[int, typer.Option(help="Side of the torus, in cells.", min=3, max=256)]
Patch = Annotated[int, typer.Option(help="Side of a patch, in cells; divides the grid.", min=1, max=256)]
Band = Annotated[str | None, typer.Option(metavar="LO-HI", help="Raw gzip ratios to accept, such as 0.5-1.0.")]
Seed = Annotated[int, typer.Option(help="Names every draw.", min=0, max=LARGEST_SEED)]


def _automaton(states: int, grid: int, patch: int, band: str | None, **more: Any) -> Any:
    from seedbed.nca import Automaton

    if band is not None:
        low, dash, high = band.partition("-")
        try:
            more["band"] = (float(low), float(high))
        except ValueError:
            raise ConfigError(f"--band takes LO-HI such as 0.5-1.0, got {band!r}") from None
        if not dash:
            raise ConfigError(f"--band takes LO-HI such as 0.5-1.0, got {band!r}")
    return Automaton(states=states, grid=grid, patch=patch, **more)


@nca.command()
def show(
    out: Annotated[Path | None, typer.Option(help="The picture to write; .gif makes an animation. [nca.png]")] = None,
    states: States = 10,
    grid: Grid = 12,
    patch: Patch = 2,
    band: Band = None,
    rows: Annotated[int, typer.Option(help="Rules; of each band, for a gallery.", min=1, max=64)] = 6,
    frames: Annotated[int, typer.Option(help="Frames of each.", min=1, max=64)] = 10,
    gallery: Annotated[bool, typer.Option("--gallery", help="Bands from simple to complex, one below the other.")] = False,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Print colored blocks; a picture only if --out is given.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Draw roll-outs of random rules: a PNG, an animated GIF, or blocks in the terminal."""
    from dataclasses import replace

    from seedbed.core.durable import check_place, write_whole
    from seedbed.nca import drawing

    automaton = _automaton(states, grid, patch, band)
    if out is None and not terminal:
        out = Path("nca.png")
    if out is not None and out.suffix not in (".png", ".gif"):
        raise ConfigError(f"--out must end in .png or .gif, got {str(out)!r}")
    if out is not None:
        check_place(out)
    if gallery and band is not None:
        raise ConfigError("--gallery shows all bands; leave out --band")
    bands = [automaton.band]
    if gallery:
        automaton = replace(automaton, band_of="normalized")
        bands = [(low, low + 0.2) for low in (0.0, 0.2, 0.4, 0.6, 0.8)]
    shown = []
    for low, high in bands:
        chosen = replace(automaton, band=(low, high))
        made = [chosen.rollout(i, frames=frames, seed=seed) for i in range(rows)]
        shown += [r.frames_FGG for r in made]
        name = f"{low:.1f} to {high:.1f} of the ceiling, " if gallery else ""
        print(f"{name}gzip ratios from top to bottom: {', '.join(f'{r.ratio:.3f}' for r in made)}")
        if terminal:
            print("\n".join(drawing.blocks(r.frames_FGG, states=states) for r in made))
    if out is not None:
        animated = out.suffix == ".gif"
        picture = drawing.gif(shown, states=states) if animated else drawing.png(drawing.strips(shown, states=states))
        write_whole(out, picture, over=False)
        print(f"picture: {out}")


@nca.command()
def stats(
    states: States = 10,
    grid: Grid = 12,
    patch: Patch = 2,
    band: Band = None,
    rules: Annotated[int, typer.Option(help="How many random rules to look at.", min=1, max=10**7)] = 1000,
    measured: Annotated[
        int, typer.Option(help="Of how many entropy, mutual information and damage are taken.", min=1, max=10**6)
    ] = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Gzip ratios of random rules: quantiles, shares, ceiling, and how many a band accepts; what else the rules do."""
    from dataclasses import replace

    import numpy as np

    from seedbed.nca import measures

    automaton = _automaton(states, grid, patch, band)
    survey = automaton.survey(rules, seed=seed)
    free = replace(automaton, band=(0.0, 2.0))
    behavior: dict[str, list[float]] = {"entropy_bits": [], "mutual_information_bits": [], "damage": []}
    for i in range(min(rules, measured)):
        world = free.rollout(i, frames=10, seed=seed).frames_FGG
        behavior["entropy_bits"].append(measures.entropy_bits(world, states=states))
        behavior["mutual_information_bits"].append(measures.mutual_information_bits(world, states=states))
        behavior["damage"].append(measures.damage(free, i, seed=seed))
    edges = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 10]
    shares = np.histogram(survey.ratios, edges)[0] / rules
    found = {
        "rules": rules,
        "quantiles": {str(q): float(np.quantile(survey.ratios, q)) for q in survey.quantiles},
        "shares": dict(zip(["0-.1", ".1-.2", ".2-.3", ".3-.4", ".4-.5", ".5+"], map(float, shares), strict=True)),
        "ceiling": survey.ceiling,
        "quantiles_normalized": {str(q): float(np.quantile(survey.ratios, q)) / survey.ceiling for q in survey.quantiles},
        "band": list(survey.band),
        "acceptance": survey.acceptance,
        **{k: {str(q): float(np.quantile(v, q)) for q in survey.quantiles} for k, v in behavior.items()},
    }
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        shown = ", ".join(f"{k}: {v:.3f}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name}: {shown}")


@nca.command()
def generate(
    rows: Annotated[int, typer.Option(help="Roll-outs, one a row.", min=1, max=2**40)],
    out: Annotated[Path, typer.Option(help="The .npy file to write: int32, rows x tokens.")],
    states: States = 10,
    grid: Grid = 12,
    patch: Patch = 2,
    band: Band = None,
    seed: Seed = 0,
    frames: Annotated[
        int | None, typer.Option(help="Whole frames a row; enough for 1,025 tokens, unless said.", min=1, max=10**6)
    ] = None,
    start: Annotated[int, typer.Option(help="Index of the first row.", min=0, max=2**62)] = 0,
    split: Annotated[str, typer.Option(help="train, valid or test: their rules are disjoint.")] = "train",
    threads: Annotated[int, typer.Option(help="Changes nothing but the speed.", min=1, max=MOST_THREADS)] = 1,
    as_json: AsJson = False,
) -> None:
    """Write tokens of roll-outs whose rules lie inside the band; the same bytes on every machine."""
    from dataclasses import asdict

    from seedbed.nca.automaton import SPLITS
    from seedbed.nca.rows_file import write_rows

    if split not in SPLITS:
        raise ConfigError(f"--split must be one of {', '.join(SPLITS)}; got {split!r}")
    automaton = _automaton(states, grid, patch, band)
    frames = frames or -(-1025 // automaton.patches.frame_tokens)
    found = asdict(write_rows(automaton, out, rows, frames=frames, seed=seed, split=split, start=start, threads=threads))
    print(json.dumps(found) if as_json else "\n".join(f"{k}: {v}" for k, v in found.items()))


@nca.command(name="check")
def check_vectors(file: Annotated[Path, typer.Argument(help="An .npz of reference vectors.")], as_json: AsJson = False) -> None:
    """Hold a file of reference vectors against our generator; exit 1 if a bar is missed."""
    from dataclasses import asdict

    from seedbed.nca.check import check

    found = check(file)
    facts = {**asdict(found), "ok": found.ok}
    print(json.dumps(facts) if as_json else "\n".join(f"{k}: {v}" for k, v in facts.items()))
    if not found.ok:
        raise typer.Exit(1)


if __name__ == "__main__":
    entry()
