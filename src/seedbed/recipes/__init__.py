"""Shipped recipes: YAML, one per paper or use."""
