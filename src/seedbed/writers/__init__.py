"""Prompts to text."""

from seedbed.core.registry import Registry

parts = Registry("writers", {"sample": "seedbed.writers.sample:Sample"})
