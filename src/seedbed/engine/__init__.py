"""The training loop, precision, checkpoints. Knows no source, no model and no objective by name."""
