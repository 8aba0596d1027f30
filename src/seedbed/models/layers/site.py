"""A site: one place of the model that a layer may fill. Sites: embedding, block_norms (the pair), attention, mlp, linear."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from seedbed.core.records import Role

SITES = ("embedding", "block_norms", "attention", "mlp", "linear")


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a layer gets to know: where it stands, its sizes, the default for this place, and its siblings."""

    name: str
    role: Role
    num_layers: int
    sizes: Mapping[str, Any]  # of a linear: in_features, out_features, bias; of the others: the model's sizes
    default: Callable[[], nn.Module]  # builds what stands here if nothing else is asked for
    siblings: Mapping[str, nn.Module]


class Layer(Protocol):
    """Settings of a layer."""

    def build(self, site: Site) -> nn.Module: ...
