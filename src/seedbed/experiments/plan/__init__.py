"""A recipe to the plan of one run: read (load.py), changed by an arm (arms.py), checked (specs.py), settled (run_plan.py)."""
