"""Run `seedbed.experiments.run.worker` or the command line, and die by SIGKILL in the n-th call that writes: KILL_AT=n.

The calls are those by which files become durable: fsync, replace, rename, rmtree, write and unlink, each before or after it was
made, so that a kill falls into the moment of writing.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

_left = iter(range(int(os.environ["KILL_AT"]) - 1))


def _count():
    if next(_left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)


def _counted(call):
    def counted(*given, **named):
        _count()
        done = call(*given, **named)
        _count()
        return done

    return counted


for _module, _name in (
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (shutil, "rmtree"),
    (Path, "write_bytes"),
    (Path, "write_text"),
):
    setattr(_module, _name, _counted(getattr(_module, _name)))

from seedbed.experiments.run.worker import main  # noqa: E402

sys.exit(main())
