"""Old weights to a new model: what is kept, re-initialized, re-drawn."""

from seedbed.core.registry import Registry

parts = Registry("transfer", {"rules": "seedbed.transfer.rules:Rules"}, promises="seedbed.core.protocols:Transfer")
