"""`python -m seedbed` is the command `seedbed`: what lies in the folder that one stands in is not imported by it."""

import os
import sys

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if (
    not sys.flags.safe_path
    and sys.path[:1]
    and os.path.realpath(sys.path[0]) == os.path.realpath(".") != os.path.realpath(_HERE)
):
    del sys.path[0]  # put there by -m

from seedbed.cli import entry  # noqa: E402 - from now on

entry()
