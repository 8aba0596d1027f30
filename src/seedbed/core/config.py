"""Recipes are YAML 1.2: `1e-4` is a number, `no` is a language, a key may stand once.

Reading is safe (no tags that run code), bounded in size and in aliases.
"""

import copy
import math
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from seedbed.core.errors import ConfigError, DataError, nearest

MAX_BYTES = 1_000_000
MAX_ALIASES = 100
_ONE_WORD = r"[^\s#:,&*!|>%@`\[\]{}]+"
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises DataError if the file is missing or not UTF-8, ConfigError if it is not a mapping in YAML 1.2.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot read the recipe {path}: {e.strerror}; give the path of a YAML file") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} has {len(raw)} bytes; a recipe may have {MAX_BYTES}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 at byte {e.start}; save it as UTF-8") from None
    return parse_yaml(text, name=str(path))


def parse_yaml(text: str, *, name: str) -> dict[str, Any]:
    if len(re.findall(r"(?:^|[\s\[{,:-])\*\w", text)) > MAX_ALIASES:
        raise ConfigError(f"{name} uses more than {MAX_ALIASES} aliases; write the values out")
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    try:
        loaded = yaml.load(StringIO(text))
    except YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(e, "problem", None) or e).split("\n")[0]
        raise ConfigError(f"{name} is not valid YAML 1.2{where}: {problem}; mend that line") from None
    except (RecursionError, ValueError) as e:
        raise ConfigError(f"{name} is not valid YAML 1.2: {e}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{name} must hold a mapping (`key: value` lines), got {type(loaded).__name__}")
    return loaded


def parse_value(text: str) -> Any:
    """Return a command-line value: `1e-4` a number, `null` nothing, `[a, b]` a list, `"1e-4"` a text, all as in YAML.

    What begins with none of the signs of a list, mapping or quoted text and is no single word is text as it stands, whatever
    YAML would make of ` #`, `: `, `*` or `@` in it. Raises ConfigError for a list, mapping or quoted text that does not end
    where the value ends.
    """
    name = f"the value {text!r}"
    if text.strip()[:1] in tuple("[{'\""):
        found = parse_yaml(f"value: {text}", name=name)["value"]
        last = [t for t in YAML(typ="safe", pure=True).scan(f"value: {text}") if t.start_mark.index != t.end_mark.index][-1]
        if last.end_mark.index < len(f"value: {text}".rstrip()):
            raise ConfigError(f"{name} goes on after {found!r}; put a text with such signs into quotes of its own")
        return found
    if re.fullmatch(_ONE_WORD, text.strip()) is None:
        return text if text.strip() else None
    try:
        found = parse_yaml(f"value: {text}", name=name)["value"]
    except ConfigError:
        return text
    return found if found is None or isinstance(found, bool | int | float) else text


def dump_yaml(value: Mapping[str, Any]) -> str:
    out = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    yaml.dump(dict(value), out)
    return out.getvalue()


def parse_count(value: Any) -> int:
    """Return 164000000 for "164M"; whole numbers pass. Units: k, M, B, T (powers of 1000)."""
    if isinstance(value, bool):
        raise ConfigError(f"{value!r} is not a count; write a whole number or one with k, M, B, T, such as 164M")
    if isinstance(value, int | float) and math.isfinite(value) and value == int(value):
        return int(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMBT]?)\s*", str(value))
    if match is None:
        raise ConfigError(f"{value!r} is not a count; write a whole number or one with k, M, B, T, such as 164M")
    count = float(match[1]) * _UNITS[match[2]]
    if not math.isclose(count, round(count), rel_tol=1e-12):
        raise ConfigError(f"{value!r} is not a whole count")
    return round(count)


Count = Annotated[int, BeforeValidator(parse_count)]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`; mappings merge key by key, null removes a key, all else is replaced."""
    out = dict(copy.deepcopy(base))
    for name, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(name), Mapping):
            out[name] = merged(out[name], value)
        elif value is None:
            out.pop(name, None)
        else:
            out[name] = copy.deepcopy(value)
    return out


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b.c`. In a list, elements are addressed by their `name` or their number.

    Raises ConfigError when something on the way is missing; a last key that is new in a mapping is added.
    """
    at: Any = tree
    names = path.split(".")
    for i, name in enumerate(names[:-1]):
        before, at = at, _step(at, name, path=".".join(names[: i + 1]))
        if isinstance(at, str) and isinstance(before, dict):  # a part by its bare name gets settings
            before[name] = at = {"kind": at}
    last = names[-1]
    if isinstance(at, list):
        at[_index(at, last, path=path)] = copy.deepcopy(value)
    elif isinstance(at, dict):
        at[last] = copy.deepcopy(value)
    else:
        raise ConfigError(f"{path}: {'.'.join(names[:-1])} is {at!r}, which has no settings of its own")


def _step(at: Any, name: str, *, path: str) -> Any:
    if isinstance(at, list):
        return at[_index(at, name, path=path)]
    if isinstance(at, dict) and name in at:
        return at[name]
    raise ConfigError(f"{path}: no such key; {nearest(name, at if isinstance(at, dict) else [])}")


def _index(items: list[Any], name: str, *, path: str) -> int:
    names = [i.get("name") if isinstance(i, dict) else None for i in items]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(items):
        return int(name)
    raise ConfigError(f"{path}: no element {name!r}; {nearest(name, [str(n) for n in names if n])}")
