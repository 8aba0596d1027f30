"""Outputs and batch to a sum in nats."""

from seedbed.core.registry import Registry

parts = Registry("objectives", {"tokens": "seedbed.objectives.tokens:Tokens"}, promises="seedbed.core.protocols:Objective")
