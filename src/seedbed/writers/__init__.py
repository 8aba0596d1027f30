"""Prompts to continuations, by sampling from a model."""

from seedbed.core.registry import Registry

parts = Registry("writers", {"sample": "seedbed.writers.sample:Sample"}, promises="seedbed.core.protocols:WriterKind")
