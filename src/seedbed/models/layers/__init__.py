"""Replaceable layers. A layer's `build(site)` returns the module for one place of the model (see `site.py`)."""

from seedbed.core.registry import Registry

parts = Registry("layers", {"default": "seedbed.models.layers.default:Default"}, promises="seedbed.models.layers.site:Layer")
