"""Texts to losses, states or classes: what is lent to parts that prepare."""

from seedbed.core.registry import Registry

parts = Registry("scorers", {"own_run": "seedbed.scorers.own_run:OwnRun"}, promises="seedbed.core.protocols:HelperKind")
