"""The wish to stop: a signal, or a study that is gone; a run then stops after its step."""

import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from seedbed.core.errors import InterruptedRunError
from seedbed.core.variables import among_ranks, number_of

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT = "SEEDBED_PARENT"  # process number of a study; a run whose study is gone stops as if by a signal
_ONE_SIGNAL = 5.0  # seconds in which launchers and schedulers may say the same to a rank twice


class Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into a wish to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self._wanted, self._since = False, 0.0
        self._parent = number_of(PARENT, default=0)
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        with suppress(ValueError):  # not in the main thread: signals stay as they are
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._old[number] = signal.signal(number, self._want)
        return self

    def _want(self, number: int, frame: object) -> None:
        again = time.monotonic() - self._since > _ONE_SIGNAL or not among_ranks()
        if self._wanted and again:
            raise InterruptedRunError("stopped at once by a second signal; the last checkpoint is whole")
        if not self._wanted:
            self._since = time.monotonic()
        self._wanted = True
        with suppress(OSError):  # a terminal that hung up
            print("stopping after this step (once more stops at once) ...", file=sys.stderr, flush=True)

    def stopped(self) -> bool:
        return self._wanted or bool(self._parent and os.getppid() != self._parent)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
