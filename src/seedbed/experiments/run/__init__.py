"""A run, from its plan to its folder: run.py lays it down and executes it, stages.py goes through it, finish.py ends it."""
