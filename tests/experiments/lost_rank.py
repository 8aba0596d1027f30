"""The command line, of which the second of several ranks kills itself after so many steps: LOST_AFTER.

Two ranks of `python -m tests.experiments.lost_rank run RECIPE ...`.
"""

import os
import signal

from seedbed import cli
from seedbed.experiments.run.signals import Signals


def main() -> None:
    steps = iter(range(1, 10**6))

    def stopped(self: object) -> bool:
        if next(steps) == int(os.environ["LOST_AFTER"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    if os.environ["RANK"] == "1":
        Signals.stopped = stopped
    cli.entry()


if __name__ == "__main__":
    main()
