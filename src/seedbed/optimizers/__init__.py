"""Optimizers by name."""

from seedbed.core.registry import Registry

parts = Registry("optimizers", {"adamw": "seedbed.optimizers.adamw:AdamW"})
