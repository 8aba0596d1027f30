"""Commands that train, go on with what was trained, or hand it on."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.cli.app import app
from seedbed.cli.options import (
    AsJson,
    Compile,
    CorpusPath,
    DataFolder,
    DataWorkers,
    Device,
    DeviceOption,
    DryRun,
    Jobs,
    LocalCode,
    Out,
    PrecisionOption,
    PrintConfig,
    RecipeArgument,
    Recompute,
    Scale,
    Sets,
    Shard,
    Track,
    allow_local_code_if,
    data_in,
    sets_of,
)
from seedbed.core.bounds import LARGEST_SEED, MOST_ROWS, MOST_THREADS
from seedbed.core.errors import ConfigError
from seedbed.core.variables import first_rank


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
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train one arm of a recipe with one seed."""
    allow_local_code_if(allow_local_code)
    data_in(data)
    from seedbed.experiments import commands

    settings: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "scale": scale,
        "sets": sets_of(set_),
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
        print_estimate(commands.plan_run(recipe, **settings), as_json=as_json)
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
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Run a study: every arm with every seed, then one verdict. A study that was stopped goes on."""
    allow_local_code_if(allow_local_code)
    data_in(data)
    if check is not None:
        _check(check, as_json=as_json)
        return
    if recipe is None:
        raise ConfigError("compare needs a recipe (or --check FOLDER); `seedbed list recipes` shows the shipped ones")
    settings: dict[str, Any] = {
        **{"scale": scale, "sets": sets_of(set_), "corpus": corpus},
        **{"device": device.value, "precision": precision.value if precision else None},
    }
    if print_config or dry_run:
        _show_arms(recipe, settings, as_yaml=print_config)
        return
    given = [f"--scale {scale}" if scale else "", f"--seeds {seeds}" if seeds else "", "--aa" if aa else ""]
    given += [f"--set {item}" for item in set_ or []] + [f"--corpus {corpus}" if corpus else ""]
    given += [f"--threads {threads}" if threads else ""]
    settings |= {"out": out, "data_workers": data_workers or 0, "track": track or ()}
    settings |= {"seeds": seeds, "jobs": jobs, "threads": threads, "aa": aa}
    settings["command"] = " ".join(["seedbed compare", recipe, *[g for g in given if g], f"--jobs {jobs}"])
    _run_study(recipe, settings, as_json=as_json)


def _show_arms(recipe: str, settings: dict[str, Any], *, as_yaml: bool) -> None:
    """Print every arm as it is resolved, or what it takes."""
    from seedbed.experiments.plan.load import load

    loaded = load(recipe, **{k: settings[k] for k in ("scale", "sets", "corpus")})
    for name in loaded.arms:
        plan = loaded.plan(arm=name, seed=loaded.seeds[0], device=settings["device"], precision=settings["precision"])
        if as_yaml:
            print(f"--- # arm {name}\n{plan.to_yaml()}", end="")
        else:
            print(f"arm {name}")
            print_estimate(plan, as_json=False)


def _run_study(recipe: str, settings: dict[str, Any], *, as_json: bool) -> None:
    from seedbed.experiments import console
    from seedbed.experiments.plan.load import load
    from seedbed.experiments.study import study

    loaded = load(recipe, **{k: settings[k] for k in ("scale", "sets", "corpus")})
    shown = console.Console(loaded, **{k: settings[k] for k in ("jobs", "threads", "seeds", "aa", "device", "precision")})
    try:
        found = study.compare(recipe, watch=shown.watch, ready=shown.announce, **settings)
    finally:
        shown.close()
    shown.conclude(found)
    if as_json:
        print(json.dumps(found.data))


def _check(folder: Path, *, as_json: bool) -> None:
    from seedbed.experiments.study.check import check_comparison

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
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Run the recipe's `tune:` grid: on validation data, on seeds of its own, as many trials for every arm."""
    allow_local_code_if(allow_local_code)
    data_in(data)
    from seedbed.experiments import console
    from seedbed.experiments.study.tune import tune as search

    lines = console.Lines()
    found = search(recipe, out=out, scale=scale, sets=sets_of(set_), jobs=jobs, device=device.value, watch=lines.watch)
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
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train stage 0 on every setting of the recipe's `map:` block: which automata can this model learn?"""
    allow_local_code_if(allow_local_code)
    data_in(data)
    from seedbed.experiments import console
    from seedbed.experiments.study.learnability import learnability_map, table

    lines = console.Lines()
    found = learnability_map(
        recipe, out=out, scale=scale, sets=sets_of(set_), jobs=jobs, device=device.value, watch=lines.watch
    )
    print(table(found.data))
    print(f"record: {found.folder / 'map.json'}")
    if as_json:
        print(json.dumps(found.data))


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
    allow_local_code_if(allow_local_code)
    from seedbed.experiments import commands, console
    from seedbed.experiments.run.layout import Session
    from seedbed.experiments.study.comparison import Comparison

    session = Session(
        threads=threads,
        micro_batch_size=micro_batch_size,
        data_workers=data_workers,
        shard=shard,
        inexact=inexact,
        track=tuple(track or ()),
    )
    found = commands.resume(folder, jobs=jobs, watch=console.Lines().watch, weights=_weights(weights), session=session)
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
    from seedbed.experiments.run.tracking import track as send

    send(folder, to)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write; never overwritten.")],
    to: Annotated[str, typer.Option(help="hf (opens with transformers), or safetensors (opens with seedbed).")] = "hf",
    as_json: AsJson = False,
) -> None:
    """Write a run's model as a folder that other tools open, with a card of what it is."""
    from dataclasses import asdict

    from seedbed.experiments.export.export import export as write

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
    from seedbed.experiments.study.pack import pack as write

    folder = write(study, out=out)
    print(f"packed: {folder} ({sum(f.stat().st_size for f in folder.iterdir()):,} bytes)")


def print_estimate(plan: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    from seedbed.experiments.estimate.estimate import EIGHT, SHARED_FROM, estimate

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
