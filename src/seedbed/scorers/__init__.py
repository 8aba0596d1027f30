"""Texts to losses in nats, token by token."""

from seedbed.core.registry import Registry

parts = Registry("scorers", {"own_run": "seedbed.scorers.own_run:OwnRun"})
