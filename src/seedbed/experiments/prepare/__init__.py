"""Corpora to prepared folders: shards, columns, orders, tokenizers."""
