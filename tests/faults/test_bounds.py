"""Numbers: each has both bounds, is finite, and is looked at before anything is made. And sizes that no machine has."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Mapping

import pytest
from typer.models import ParameterInfo

from seedbed.cli import app
from seedbed.core.bounds import range_of
from seedbed.core.errors import ConfigError
from seedbed.experiments.assemble import rooms
from seedbed.experiments.estimate import memory
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import Recipe
from seedbed.experiments.prepare.preparation import Preparation
from seedbed.mixture.weighted import WEIGHT
from tests.command_line import fails, seedbed

REQUIRED = {"Decoder": {"size": "0.1M"}}
OWN_CHECKS = {
    "weights": WEIGHT,
    "schedule": WEIGHT,
}  # weights of a mixture: looked at by check_weights, as in `resume --weights`
PARTS = [(room, name) for room, registry in rooms().items() for name in registry]


def holds_numbers(kind, among=(int, float)):
    """Whether a type is, or holds, whole or real numbers."""
    if typing.get_origin(kind) is typing.Literal:
        return False
    inner = typing.get_args(kind)
    return any(holds_numbers(k, among) for k in inner) if inner else kind in among


def numbers_of(part):
    hints = typing.get_type_hints(part)
    return [f for f in dataclasses.fields(part) if f.init and holds_numbers(hints[f.name])]


@pytest.mark.parametrize(("room", "name"), [*PARTS, ("experiments", "Preparation")], ids=str)
def test_every_number_of_a_part_has_a_range_and_is_refused_outside(room, name):
    part = Preparation if room == "experiments" else rooms()[room].resolve(name)
    for field in numbers_of(part):
        allowed = range_of(field) or OWN_CHECKS.get(field.name)
        assert allowed is not None, f"{room}.{name}.{field.name} is a number without a range"
        hint = typing.get_type_hints(part)[field.name]
        whole = not holds_numbers(hint, (float,))
        step = 1 if whole else max(abs(allowed.low), 1) * 1e-9
        above = allowed.high + (1 if whole else abs(allowed.high) * 1e-9)
        for outside in (allowed.low - step, above, *(() if whole else (math.nan, math.inf, -math.inf))):
            with pytest.raises(ConfigError, match="weights" if field.name in OWN_CHECKS else field.name):
                _given(part, room, field, hint, outside)


def _given(part, room, field, hint, value):
    held = {typing.get_origin(h) for h in (hint, *typing.get_args(hint))} & {tuple, list, dict, Mapping}
    wrapped = value
    if field.name == "schedule":
        wrapped = [[0, {"a": value}]]
    elif held:
        wrapped = {"factor": float(value)} if held & {dict, Mapping} else held.pop()([value, value])
    more = {"paths": ("x",)} if part is Preparation else REQUIRED.get(part.__name__, {})
    return part(**{**more, field.name: wrapped})


def numeric_schemas(schema, at=""):
    """Every number of a JSON schema, with its path."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield at, schema
        for key, inner in schema.items():
            yield from numeric_schemas(inner, f"{at}.{key}")
    elif isinstance(schema, list):
        for inner in schema:
            yield from numeric_schemas(inner, at)


@pytest.mark.parametrize("model", [Recipe, RunPlan], ids=lambda m: m.__name__)
def test_every_number_of_a_recipe_and_of_a_plan_has_both_bounds(model):
    found = list(numeric_schemas(model.model_json_schema()))
    assert len(found) > 20
    free = [
        at
        for at, schema in found
        if not schema.keys() & {"minimum", "exclusiveMinimum", "ge"}
        or not schema.keys() & {"maximum", "exclusiveMaximum", "le"}
    ]
    assert free == []


def options(group=app, path="seedbed"):
    """Every number of every command: its path, and what says its bounds."""
    for command in group.registered_commands:
        name = f"{path} {command.name or command.callback.__name__}"
        for option in inspect.signature(command.callback, eval_str=True).parameters.values():
            if holds_numbers(option.annotation):
                said = [m for m in getattr(option.annotation, "__metadata__", ()) if isinstance(m, ParameterInfo)]
                yield f"{name} {option.name}", *(said or [option.default])
    for inner in group.registered_groups:
        yield from options(inner.typer_instance, f"{path} {inner.name}")


def test_every_number_of_the_command_line_has_both_bounds():
    found = list(options())
    assert len(found) > 40
    assert [name for name, said in found if said.min is None or said.max is None] == []


@pytest.mark.parametrize(
    "change",
    [
        "streams.text.batch_size=16777216",  # rows of a step, on a machine of 8 GiB
        "model.d_model=1048576",  # weights
        "model.d_ff=16777216",
        "streams.text.seq_len=16777216",
        "streams.text.seq_len=0",
        "stages.text.budget.steps=0",
        "stages.text.optimizer.learning_rate=.nan",
        "stages.text.optimizer.learning_rate=.inf",
        "samples.tokens=10000000000",
        "evaluate.text.stride=33",
    ],
)
def test_a_size_that_cannot_be_is_refused_before_there_is_a_folder(recipe, tmp_path, change, monkeypatch):
    monkeypatch.setattr(memory, "memory_bytes", lambda: 2.0**33)
    done = seedbed("run", recipe, "--set", change, "--out", tmp_path / "R")
    done.failed(3 if change == "streams.text.seq_len=16777216" else 2)  # there is no such text, as it is
    assert not (tmp_path / "R").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, ["nca", "generate", "--rows", 99999999999, "--out", "OUT"]),
        (2, ["nca", "generate", "--rows", 1, "--frames", 10**7, "--out", "OUT"]),
        (2, ["nca", "stats", "--rules", 10**12]),
        (2, ["nca", "show", "--grid", 10**6, "--out", "OUT.png"]),
        (2, ["compare", "nca-demo", "--seeds", "0-99999999999", "--out", "OUT"]),
        (2, ["compare", "nca-demo", "--seeds", "5-3", "--out", "OUT"]),
        (2, ["compare", "nca-demo", "--seeds", "-1", "--out", "OUT"]),
        (2, ["compare", "nca-demo", "--jobs", 10**9, "--out", "OUT"]),
        (2, ["prepare", "builtin:prose", "--workers", 10**9, "--out", "OUT"]),
        (2, ["tokenizer", "train", "builtin:prose", "--vocab-size", 10**12, "--out", "OUT"]),
    ],
    ids=lambda x: " ".join(map(str, x[:3])) if isinstance(x, list) else str(x),
)
def test_absurd_sizes_are_refused_at_once(tmp_path, code, words):
    fails(code, *words, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
