"""The layer that a site has when nothing else is asked for."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from seedbed.core.protocols import Neutral
from seedbed.models.layers.site import SITES, Site


@dataclass(frozen=True, kw_only=True)
class Default:
    """No settings: the transformer's own embedding, norms, attention, MLP and linear."""

    neutral: ClassVar[Neutral] = {}
    sites: ClassVar[tuple[str, ...]] = SITES
    layout_free: ClassVar[bool] = True

    def build(self, site: Site) -> nn.Module:
        return site.default()
