"""The layer that a site has when nothing else is asked for."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from seedbed.core.protocols import Neutral
from seedbed.models.layers.site import Site


@dataclass(frozen=True, kw_only=True)
class Default:
    """No settings: the transformer's own embedding, norms, attention, MLP and linear."""

    neutral: ClassVar[Neutral] = {}

    def build(self, site: Site) -> nn.Module:
        return site.default()
