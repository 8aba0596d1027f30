"""The command line: each command parses, calls one function and prints. Nothing heavy is imported before one needs it."""

from seedbed.cli import training, data, looking, automata  # noqa: F401, I001 - commands, in the order of --help
from seedbed.cli.app import app, entry

__all__ = ["app", "entry"]
