"""`seedbed nca`: look at automata, generate rows of them, check them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.cli.app import nca
from seedbed.cli.options import AsJson
from seedbed.core.bounds import LARGEST_SEED, MOST_THREADS
from seedbed.core.errors import ConfigError

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
    from seedbed.nca.measures import described

    found = described(_automaton(states, grid, patch, band), rules=rules, measured=measured, seed=seed)
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
