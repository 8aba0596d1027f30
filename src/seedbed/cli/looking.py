"""Commands that look: at recipes, rows, runs, models, this machine."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed import __version__
from seedbed.cli.app import app
from seedbed.cli.options import (
    AsJson,
    CorpusPath,
    DataFolder,
    Device,
    DeviceOption,
    LocalCode,
    Scale,
    Sets,
    TextKey,
    allow_local_code_if,
    data_in,
    sets_of,
)
from seedbed.core.bounds import LARGEST_SEED, LONGEST_ROW, MOST_ROWS
from seedbed.core.errors import ConfigError


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
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show the rows of a step with their documents, before the run or after it."""
    allow_local_code_if(allow_local_code)
    data_in(data)
    from dataclasses import asdict, replace

    from seedbed.experiments.inspection import as_text, is_run
    from seedbed.experiments.inspection import inspect as look

    settings: dict[str, Any] = {"arm": arm, "seed": seed, "scale": scale, "sets": sets_of(set_), "corpus": corpus}
    if is_run(target):
        settings = {}
    shown = look(target, step=step, **settings)
    if row is not None:
        if row >= len(shown.rows):
            raise ConfigError(f"step {step} has {len(shown.rows)} rows, from 0 on; there is no row {row}")
        shown = replace(shown, rows=[shown.rows[row]])
    print(json.dumps(asdict(shown)) if as_json else as_text(shown))


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
    allow_local_code_if(allow_local_code)
    from seedbed.evaluate.bits_per_byte import loss_of_text
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
    allow_local_code_if(allow_local_code)
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
    data: DataFolder = None,
) -> None:
    """Check a recipe, every arm of it, without training; or hash every file of a prepared folder again."""
    allow_local_code_if(allow_local_code)
    data_in(data)
    if Path(recipe).is_dir():
        from seedbed.experiments.prepare.prepare import validate_folder

        found = validate_folder(Path(recipe))
        print(f"{recipe} is whole: {found['shards']} shards, {found['documents']:,} documents, {found['tokens']:,} tokens")
        return
    from seedbed.experiments.commands import validated

    loaded = validated(recipe, scale=scale, sets=sets_of(set_), corpus=corpus)
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
