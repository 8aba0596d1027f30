"""Plan, assemble, run, compare: the only room that knows all the others.

A run, in the order of its data: recipe (YAML to one arm and seed), assemble (parts to a stage), run (stages to a run folder);
a study: study (arms x seeds), comparison (run folders to a verdict), statistics; beside them tune and catalog.
"""
