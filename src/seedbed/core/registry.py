"""Rooms list their parts by name; a part's file is imported when the part is first used.

A user's own part needs no fork: an entry point in the group `seedbed.<room>`, or (with --allow-local-code) `kind:
./my_file.py:Class` in a recipe.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic

from seedbed.core.errors import ConfigError, DataError, SeedbedError, nearest

ALLOW_LOCAL_CODE = "SEEDBED_ALLOW_LOCAL_CODE"  # set by --allow-local-code, so that workers of a study inherit it


@cache
def _published(room: str) -> dict[str, str]:
    """Return the parts of other packages; finding them reads the metadata of every installed package, so once."""
    return {point.name: point.value for point in entry_points(group=f"seedbed.{room}")}


@contextmanager
def _others_code(what: str) -> Iterator[None]:
    """Whatever goes wrong in code that is not ours is told with its place, as something that its author can mend."""
    try:
        yield
    except Exception as e:
        raise ConfigError(f"{what} cannot be loaded ({type(e).__name__}: {e}); mend it, or take it away") from e


@contextmanager
def calling(part: Any, on: str) -> Iterator[None]:
    """Whatever goes wrong while a part reads data is told with its name, what it read, and where in its file it was."""
    try:
        yield
    except (SeedbedError, OSError, MemoryError):
        raise
    except Exception as e:
        frames = traceback.extract_tb(e.__traceback__)
        own = [f for f in frames if f.filename == getattr(sys.modules[type(part).__module__], "__file__", "")] or frames
        raise ConfigError(
            f"{type(part).__name__} failed on {on}: {type(e).__name__}: {e} ({own[-1].filename}, line {own[-1].lineno}); mend "
            "it there (what it is lent, it names under `calls`)"
        ) from e


def _module_of(file: Path) -> ModuleType:
    """Return the module of a file as it stands now. Not through an import: that would believe the bytecode of an earlier text
    which has the same length and the same second, and would write bytecode beside a user's file."""
    module = ModuleType(f"local code {file.resolve()}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look up annotations that are text
    exec(compile(file.read_bytes(), file, "exec", dont_inherit=True), vars(module))  # the user allowed it
    return module


def _a_part(found: Any) -> type:
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise TypeError(f"it is {found!r:.60}, and a part is a frozen dataclass of settings")
    return found


def missing(part: type, protocol: type) -> list[str]:
    """Return the names that a protocol asks for and a part has not, neither as method nor as setting.

    What a part has of the protocol itself counts only if there is something in it.
    """
    bases = [base for base in protocol.__mro__ if _is_protocol(base)]
    asked = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    asked = {name for name in asked if not name.startswith("_") or name == "__call__"}
    there = {f.name for f in dataclasses.fields(part)}
    for base in part.__mro__:
        there |= set(vars(base)) - (_unwritten(base) if _is_protocol(base) else set())
    return sorted(asked - there)


def _is_protocol(base: type) -> bool:
    return getattr(base, "_is_protocol", False) and base.__name__ != "Protocol"


@cache
def _unwritten(protocol: type) -> set[str]:
    """Return the names of a protocol's methods whose body is `...`."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(protocol))).body
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {m.name for m in methods if all(isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant) for x in m.body)}


class Registry:
    """The parts of one room: `name -> "module:Class"`, where Class is a frozen dataclass of settings.

    `promises` names the protocol ("module:Class") that all of them fulfil; parts from elsewhere are held against it.
    """

    def __init__(self, room: str, parts: Mapping[str, str], *, promises: str = "") -> None:
        self.room, self.promises = room, promises
        self._parts = dict(parts)
        self._built: dict[str, Any] = {}

    def protocol(self) -> type | None:
        """Return the protocol of the room's parts, if it has one."""
        module, _, name = self.promises.partition(":")
        return getattr(importlib.import_module(module), name) if self.promises else None

    def _checked(self, part: type) -> type:
        protocol = self.protocol()
        lacking = missing(part, protocol) if protocol else []
        if lacking:
            raise TypeError(
                f"it lacks {', '.join(lacking)}, which every part of {self.room} has; derive it from "
                f"{self.promises.replace(':', '.')}, which brings what is usual, and write the rest (see CONTRIBUTING.md)"
            )
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def _known(self) -> dict[str, str]:
        return {**_published(self.room), **self._parts}

    def resolve(self, kind: str) -> type:
        """Return the class of a part. Raises ConfigError for an unknown name, with the nearest right ones, and for code that
        cannot be loaded."""
        if ".py:" in kind:
            return self._local(kind)
        known = self._parts if kind in self._parts else self._known()
        if kind not in known:
            raise ConfigError(f"{self.room} has no part {kind!r}; {nearest(kind, known)}")
        module, _, name = known[kind].partition(":")
        if kind in self._parts:
            return getattr(importlib.import_module(module), name)
        with _others_code(f"the part {self.room}.{kind} of the installed package {module.split('.')[0]}"):
            return self._checked(_a_part(getattr(importlib.import_module(module), name)))

    def defaults(self, kind: str) -> dict[str, Any]:
        """Return the settings of a part that have a default, ready for JSON."""
        return defaults_of(self.resolve(kind))

    def check_local(self, kind: str) -> None:
        """Raise ConfigError if code from a file may not be run, DataError if it is not there."""
        if os.environ.get(ALLOW_LOCAL_CODE) != "1":
            raise ConfigError(f"{kind!r} would run code from a file; pass --allow-local-code if you trust that file")
        file = kind.rpartition(":")[0]
        if not Path(file).is_file():
            raise DataError(f"the part {kind!r} names the file {file!r}, which is not there; give its path")

    def _local(self, kind: str) -> type:
        self.check_local(kind)
        file, _, name = kind.rpartition(":")
        with _others_code(file):
            module = _module_of(Path(file))
        if not hasattr(module, name):
            raise ConfigError(f"{file} defines no {name!r}; {nearest(name, [n for n in vars(module) if n[0] != '_'])}")
        with _others_code(f"{name} in {file}"):
            return self._checked(_a_part(getattr(module, name)))

    def once(self, spec: str | Mapping[str, Any], *, path: str, shared: Mapping[str, Any] | None = None) -> Any:
        """Return what `build` does, the same object for the same settings and code: for parts that hold no data."""
        key = json.dumps([spec, code_of(spec), dict(shared or {})])
        if key not in self._built:
            self._built[key] = self.build(spec, path=path, shared=shared)
        return self._built[key]

    def build(self, spec: str | Mapping[str, Any], *, path: str = "", shared: Mapping[str, Any] | None = None) -> Any:
        """Return the part that a recipe asks for: a name, or a mapping with `kind` and settings.

        `shared` are sizes of the parent (such as seq_len); each goes to the field of that name, if there is one.
        Raises ConfigError with the path in the recipe for an unknown part, an unknown or ill-typed setting.
        """
        settings = {"kind": spec} if isinstance(spec, str) else dict(spec)
        if not isinstance(settings.get("kind"), str):
            raise ConfigError(f"{path}: needs `kind`, one of: {', '.join(self)}")
        try:
            part = self.resolve(settings.pop("kind"))
        except ConfigError as e:
            raise ConfigError(f"{path}.kind: {e}") from None
        names = [f.name for f in dataclasses.fields(part) if f.init]
        given = {**{k: v for k, v in (shared or {}).items() if k in names}, **settings}
        return validated(part, given, path=path, names=names)


def defaults_of(settings: type) -> dict[str, Any]:
    """Return the settings of a dataclass that have a default, ready for JSON."""
    found = {}
    for f in dataclasses.fields(settings):
        made = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.init and made is not dataclasses.MISSING:
            found[f.name] = json.loads(json.dumps(made, default=dataclasses.asdict))
    return found


def code_of(parts: Any) -> dict[str, str]:
    """Return the SHA-256 of every file of code that parts, somewhere in `parts`, come from."""
    if isinstance(parts, Mapping):
        parts = [*parts.values()]
    if isinstance(parts, str):
        file = Path(parts.rpartition(":")[0])
        return {str(file): sha256(file.read_bytes()).hexdigest()} if ".py:" in parts and file.is_file() else {}
    found: dict[str, str] = {}
    for part in parts if isinstance(parts, list | tuple) else ():
        found |= code_of(part)
    return found


def validated(part: type, given: Mapping[str, Any], *, path: str, names: list[str]) -> Any:
    """Return `part(**given)` after a strict check of types; errors name the path in the recipe."""
    for name in given:
        if name not in names:
            raise ConfigError(f"{path}.{name}: unknown setting; {nearest(name, names)}")
    try:
        return _reader(part).validate_json(as_json(given, path=path), strict=True)
    except pydantic.ValidationError as e:
        raise ConfigError(explain(e, path=path)) from None


@cache
def _reader(part: type) -> pydantic.TypeAdapter:
    """Return what reads a part's settings; making it takes longer than reading."""
    return pydantic.TypeAdapter(part)


def as_json(value: Any, *, path: str) -> str:
    """Return settings as JSON, on which pydantic is strict. Raises ConfigError for what JSON cannot hold, such as a date."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{path or 'the recipe'} holds a value that is neither number, text, list nor mapping: {e}") from None


def explain(error: pydantic.ValidationError, *, path: str) -> str:
    """Return pydantic's findings as one line each, with the full path in the recipe."""
    lines = []
    for found in error.errors():
        at = ".".join([path, *map(str, found["loc"])]).strip(".")
        given = "" if found["type"] in ("missing", "value_error") else f" (given: {found['input']!r})"
        lines.append(f"{at}: {found['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(lines)
