"""A study: every arm with every seed, side by side (study.py), from whose records a comparison is derived (comparison.py)."""
