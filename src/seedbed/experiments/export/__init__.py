"""A run's model as a folder that others open, with its tokenizer and its card."""
