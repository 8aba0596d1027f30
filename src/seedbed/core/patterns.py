"""Patterns that address parameters by role, so that nobody depends on module paths.

`attention`, `attention.value`, `mlp@0-3`, `mlp@2`, `block@-2:` (all of the last two blocks), `norm`, `*`.
"""

import re

from seedbed.core.errors import ConfigError, nearest
from seedbed.core.records import Role

PARTS = ("embedding", "position", "attention", "mlp", "norm", "head", "memory", "frontend", "adapter", "objective", "other")
_PATTERN = re.compile(r"(?P<part>\*|[a-z_]+)(?:\.(?P<tensor>[A-Za-z0-9_.]+))?(?:@(?P<layers>-?\d+(?:-\d+|:)?))?")


def matches(pattern: str, role: Role, *, num_layers: int) -> bool:
    """Whether a role is meant by a pattern. Raises ConfigError if the pattern cannot be read."""
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        raise ConfigError(f"cannot read the role pattern {pattern!r}; write one like attention.value, mlp@0-3, block@-2: or *")
    part, tensor, layers = match["part"], match["tensor"], match["layers"]
    if part not in ("*", "block", *PARTS):
        raise ConfigError(f"no role is called {part!r} (in the pattern {pattern!r}); {nearest(part, ['block', *PARTS])}")
    if part == "block" and role.layer is None:
        return False
    if part not in ("*", "block", role.part):
        return False
    if tensor is not None and role.tensor != tensor and not role.tensor.startswith(tensor + "."):
        return False
    return layers is None or (role.layer is not None and _in_layers(layers, role.layer, num_layers))


def first_match(patterns: tuple[str, ...], role: Role, *, num_layers: int) -> str | None:
    return next((p for p in patterns if matches(p, role, num_layers=num_layers)), None)


def _in_layers(layers: str, layer: int, num_layers: int) -> bool:
    if layers.endswith(":"):
        first = int(layers[:-1])
        return layer >= (first + num_layers if first < 0 else first)
    if "-" in layers.lstrip("-"):
        low, _, high = layers.partition("-")
        return int(low) <= layer <= int(high)
    only = int(layers)
    return layer == (only + num_layers if only < 0 else only)
