"""The command line, whose study forks its runs from itself: `python -m tests.experiments.forking_study compare RECIPE ...`.

Started by tests.processes.forked it has all that its runs import, so nothing of a study is left out but the waiting.
"""

import os
import signal
import sys

from seedbed import cli
from seedbed.experiments import console
from seedbed.experiments.run import worker
from seedbed.experiments.run.signals import PARENT
from seedbed.experiments.study import side_by_side


class _Run:
    """A forked run, as far as a study needs subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self, wait: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, wait)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _start(run, threads, track):
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return _Run(pid)
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.environ[PARENT] = str(parent)
        errors = os.open(run / "worker.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        os.closerange(3, 256)  # the study's lock among them
        sys.argv = ["worker", str(run), *track]
        code = worker.main()
    finally:
        os._exit(code)


if __name__ == "__main__":
    side_by_side._start = _start
    console.Console.announce = lambda self: None  # which times some steps
    cli.entry()
