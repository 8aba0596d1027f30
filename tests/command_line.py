"""The command line in this process, which has all that it imports already, or in one of its own."""

import io
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from seedbed.cli import entry


def process(*words, script=False, **more):
    """Give the command to a process of its own (by its `script`, or as a module); `more` as for subprocess.run."""
    start = [Path(sys.executable).with_name("seedbed")] if script else [sys.executable, "-m", "seedbed"]
    command = [*start, *map(str, words)]
    done = subprocess.run(command, capture_output=True, timeout=900, check=False, **{"text": True, **more})
    return Done(done.returncode, done.stdout, done.stderr).without_traceback()


HEARD = object()


def seedbed(*words, cwd=None, out=HEARD):
    """Give the command to this process; what it says goes to `out`, unless that is kept."""
    kept = io.StringIO()
    with (
        patch.object(sys, "argv", ["seedbed", *map(str, words)]),
        chdir(cwd or "."),
        redirect_stdout(kept if out is HEARD else out),
        redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as ended,
    ):
        entry()
    return Done(ended.value.code, kept.getvalue(), err.getvalue()).without_traceback()


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str

    def without_traceback(self):
        assert "Traceback" not in self.stderr, self.stderr
        assert "internal error" not in self.stderr, self.stderr
        return self

    def failed(self, code, *, saying=""):
        """Check that it failed with this code and one paragraph; return that."""
        assert self.returncode == code, (self.returncode, self.stderr)
        lines = self.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("seedbed: ") and saying in lines[0], self.stderr
        return lines[0]

    def worked(self):
        """Check that it ended well; return what it said."""
        assert self.returncode == 0, (self.returncode, self.stderr)
        return self.stdout


def fails(code, *words, cwd=None, saying=""):
    return seedbed(*words, cwd=cwd).failed(code, saying=saying)
