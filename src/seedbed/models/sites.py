"""The places of a model and what fills them: layers by pattern, roles on every module, first values by role."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.patterns import first_match
from seedbed.core.records import Role
from seedbed.core.roles import with_role
from seedbed.models.layers import parts as layer_parts
from seedbed.models.layers.site import SITES, Site
from seedbed.models.products import Linear
from seedbed.models.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A layer and the places of its site that it fills."""

    layer: Any
    at: tuple[str, ...] = ("*",)

    def fills(self, role: Role, *, num_layers: int) -> bool:
        return first_match(self.at, role, num_layers=num_layers) is not None


def _choice(site: str, spec: str | Mapping[str, Any], *, path: str) -> Choice:
    settings = {"kind": spec} if isinstance(spec, str) else dict(spec)
    at = settings.pop("at", ["*"])
    at = [at] if isinstance(at, str) else at
    if not (isinstance(at, list) and at and all(isinstance(pattern, str) for pattern in at)):
        raise ConfigError(f"{path}.at: takes role patterns, such as [mlp, attention.value@0-1]; got {at!r}")
    for pattern in at:
        first_match((pattern,), Role("other"), num_layers=1)  # refuses what cannot be read
    layer = layer_parts.build(settings, path=path)
    if site not in layer.sites:
        raise ConfigError(f"{path}: {settings['kind']} fills {' or '.join(layer.sites)}, not {site}")
    return Choice(layer=layer, at=tuple(at))


def chosen(layers: Mapping[str, Any]) -> dict[str, list[Choice]]:
    """Return the layers of every site that has others than its own. Raises ConfigError for what does not fit there."""
    found = {}
    for site, given in layers.items():
        if site not in SITES:
            raise ConfigError(f"no site {site!r}; {nearest(site, SITES)}")
        several = isinstance(given, list)
        found[site] = [
            _choice(site, spec, path=f"model.layers.{site}{f'.{i}' if several else ''}")
            for i, spec in enumerate(given if isinstance(given, list) else [given])
        ]
    return found


class Builder:
    """Fills the sites of a model, each with the layer that the settings ask for, and leaves a role on every leaf."""

    def __init__(self, config: Shape, *, vocab_size: int) -> None:
        self.config, self.vocab_size, self.num_layers = config, vocab_size, config.num_layers
        self._layers = chosen(config.layers)

    def embedding(self) -> nn.Module:
        return self._filled("embedding", Role("embedding"), lambda: nn.Embedding(self.vocab_size, self.config.width))

    def attention(self, layer: int, default: Callable[[], nn.Module]) -> nn.Module:
        return self._filled("attention", Role("attention", layer), default)

    def mlp(self, layer: int, default: Callable[[], nn.Module]) -> nn.Module:
        return self._filled("mlp", Role("mlp", layer), default)

    def linear(self, role: Role, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        sizes = {"in_features": in_features, "out_features": out_features, "bias": bias}

        def default() -> nn.Module:
            return Linear(in_features, out_features, bias=bias)

        return default_with_role(role, default) if role.part == "head" else self._filled("linear", role, default, sizes=sizes)

    def norm(self, role: Role, *, width: int | None = None) -> nn.Module:
        return default_with_role(role, lambda: nn.RMSNorm(width or self.config.width, eps=self.config.norm_eps))

    def block_norms(self, layer: int, siblings: Mapping[str, nn.Module]) -> nn.ModuleList:
        def default() -> nn.Module:
            return nn.ModuleList([self.norm(Role("norm", layer, "attention")), self.norm(Role("norm", layer, "mlp"))])

        pair = self._filled("block_norms", Role("norm", layer), default, siblings=siblings)
        if not (isinstance(pair, nn.ModuleList) and len(pair) == 2):
            raise ConfigError("a block_norms layer must build a ModuleList of two: before attention, before the MLP")
        return pair

    def _filled(
        self,
        name: str,
        role: Role,
        default: Callable[[], nn.Module],
        *,
        sizes: Mapping[str, Any] | None = None,
        siblings: Mapping[str, nn.Module] | None = None,
    ) -> nn.Module:
        c = self.config
        sizes = sizes or {"d_model": c.width, "num_heads": c.num_heads, "d_ff": c.d_ff, "vocab_size": self.vocab_size}
        site = Site(name=name, role=role, num_layers=self.num_layers, sizes=sizes, default=default, siblings=siblings or {})
        chosen = (c.layer for c in self._layers.get(name, []) if c.fills(role, num_layers=self.num_layers))
        layer = next(chosen, None)
        return default_with_role(role, default if layer is None else lambda: layer.build(site))


def default_with_role(role: Role, build: Callable[[], nn.Module]) -> nn.Module:
    made: nn.Module = with_role(build(), role)
    return made


def draws_of(seed: int, name: str, role: str, what: str) -> np.random.Generator:
    """Return the generator of first values that a layer states."""
    return stream(seed, name, role, what)


def fill(parameter: Tensor, role: Role, *, seed: int, name: str, std: float) -> None:
    """Matrices are normal, gains (one-dimensional weights) one, biases zero."""
    if role.tensor.endswith("bias"):
        parameter.zero_()
    elif parameter.ndim < 2:
        parameter.fill_(1.0)
    else:
        draws = stream(seed, name, str(role)).standard_normal(tuple(parameter.shape), dtype="float32")
        parameter.copy_(torch.from_numpy(draws) * std)
