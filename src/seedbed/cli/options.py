"""Options and arguments that several commands have."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.core.bounds import MOST_WORKERS
from seedbed.core.errors import ConfigError
from seedbed.core.places import DATA_FOLDERS
from seedbed.core.registry import ALLOW_LOCAL_CODE


class OnError(StrEnum):
    """What becomes of input that cannot be read."""

    stop = "stop"
    skip = "skip"


class Duplicates(StrEnum):
    """Which of them are left out: none, equal ones, or nearly equal ones too."""

    keep = "keep"
    exact = "exact"
    near = "near"


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

DataFolder = Annotated[
    Path | None, typer.Option("--data", help="A folder of data sets: data:NAME/... in a recipe is looked up here first.")
]
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


def sets_of(given: list[str] | None) -> dict[str, Any]:
    from seedbed.core.config import parse_value

    out = {}
    for item in given or []:
        path, equals, value = item.partition("=")
        if not equals or not path:
            raise ConfigError(f"settings are given as NAME=VALUE, such as path=good.jsonl (--set: A.B=VALUE); got {item!r}")
        out[path] = parse_value(value)
    return out


def data_in(folder: Path | None) -> None:
    """Look data sets up in a folder before those that SEEDBED_DATA names; workers of a study inherit it."""
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"--data {folder}: there is no such folder; give one that holds a folder for each data set")
        os.environ[DATA_FOLDERS] = os.pathsep.join(filter(None, [str(folder.absolute()), os.environ.get(DATA_FOLDERS)]))


def allow_local_code_if(allowed: bool) -> None:
    if allowed:
        os.environ[ALLOW_LOCAL_CODE] = "1"


TextKey = Annotated[str, typer.Option("--text-key", help="Where records (.jsonl, .json, .csv, .parquet) hold their text.")]
