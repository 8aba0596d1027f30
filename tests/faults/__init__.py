"""Faults that users met, each with its whole kind: what must not come back (see tests/data/faults/README.md for the first)."""
