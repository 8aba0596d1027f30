"""A tree held against a schema: what does not fit is told with its path in the recipe, and the nearest right name."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from seedbed.core.errors import ConfigError, nearest
from seedbed.core.registry import as_json, explain


def checked_as(model: Any, tree: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate_json(as_json(tree, path=""), strict=True)
    except ValidationError as e:
        unknown = [f for f in e.errors() if f["type"] == "extra_forbidden"]
        if unknown:
            path = ".".join(map(str, unknown[0]["loc"]))
            fields = _fields_at(model, tree, unknown[0]["loc"])
            raise ConfigError(f"{path}: unknown key; {nearest(str(unknown[0]['loc'][-1]), fields)}") from None
        raise ConfigError(explain(e, path="")) from None


def _fields_at(model: Any, tree: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed beside an unknown one: walk down the schema along its path."""
    schema = model.model_json_schema(by_alias=True)
    at: Any = schema
    for step in loc[:-1]:
        at = _resolved(at, schema)
        if isinstance(step, int):
            at = at.get("items", {})
        else:
            at = at.get("properties", {}).get(step) or at.get("additionalProperties", {})
    return list(_resolved(at, schema).get("properties", {}))


def _resolved(at: Any, schema: Any) -> Any:
    for option in at.get("anyOf", []):
        if "$ref" in option:
            at = option
    return schema["$defs"][at["$ref"].rsplit("/", 1)[1]] if "$ref" in at else at
