"""Ids of documents to rows of seq_len."""

from seedbed.core.registry import Registry

parts = Registry("packing", {"concatenate": "seedbed.packing.concatenate:Concatenate"})
