"""Processes of their own, in milliseconds: forked from a server that has imported torch and ours.

A test that needs real processes (to kill, to signal, to be several ranks) would wait for torch's import each time. `forked`
gives what subprocess.Popen gives, of a module that is run as `python -m` would; `ranks` gives several that find each other as
under torchrun. What needs a fresh interpreter, because that is what is tested, starts one itself and is marked slow.
Forked processes write no pages (see `plain_page`).
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = (
    "torch._dynamo",  # which an optimizer imports
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.hf_storage",
    "seedbed.cli",
    "seedbed.experiments.commands",
    "seedbed.experiments.console",
    "seedbed.nca",
)


def plain_page(folder):
    """What stands in a folder's report.html where no test looks at it: drawing a page takes as long as a tiny run."""
    from seedbed.core.durable import write_whole

    write_whole(Path(folder) / "report.html", "tests draw pages only where a test asks for them\n")
    return Path(folder) / "report.html"


class Forked:
    """A process, as subprocess.Popen has it; what it said is there when it has ended."""

    def __init__(self, pid, out, err):
        self.pid, self.returncode = pid, None
        self._out, self._err = out, err

    def poll(self):
        self.returncode = _server().ended.get(self.pid)
        return self.returncode

    def wait(self, timeout=900):
        begun = time.monotonic()
        while self.poll() is None:
            if time.monotonic() - begun > timeout:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.002)
        return self.returncode

    def communicate(self, timeout=900):
        self.wait(timeout)
        return tuple(Path(file.name).read_text(errors="replace") for file in (self._out, self._err))

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def forked(module, *words, cwd=None, **environment):
    """Start `python -m module words...` and return it."""
    return _server().start(module, [str(w) for w in words], cwd=cwd, environment=environment)


def ranks(number, module, *words, **environment):
    """Start so many ranks of a module, as torchrun does on one machine, and return them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
    return [forked(module, *words, RANK=n, LOCAL_RANK=n, **shared) for n in range(number)]


def ended(processes, timeout=900):
    """Wait for all; return their exit codes and all that they said."""
    said = ["".join(p.communicate(timeout)) for p in processes]
    return [p.returncode for p in processes], "".join(said)


def cpu_seconds():
    """Processor time of all forked processes that have ended."""
    return _started.cpu_seconds if _started is not None else 0.0


_started = None


def _server():
    global _started  # noqa: PLW0603  # one a process
    if _started is None or _started.owner != os.getpid():
        _started = _Server()
    return _started


class _Server:
    """The client's side: asks for forks, hears how they ended."""

    def __init__(self):
        self.owner = os.getpid()
        self.ended, self.cpu_seconds = {}, 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.processes import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)]),
            },
        )
        self._begun = threading.Condition()
        self._pids = []
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, module, words, *, cwd, environment):
        out, err = (tempfile.NamedTemporaryFile(prefix="forked-") for _ in range(2))  # noqa: SIM115
        asked = {"module": module, "words": words, "cwd": str(cwd or os.getcwd()), "out": out.name, "err": err.name}
        asked["environment"] = {**os.environ, **{k: str(v) for k, v in environment.items()}}
        with self._begun:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            while not self._pids:
                self._begun.wait(0.5)
                assert self._process.poll() is None, "the server of forked processes has ended"
            return Forked(self._pids.pop(), out, err)

    def _listen(self):
        for line in self._process.stdout:
            said = json.loads(line)
            if "began" in said:
                with self._begun:
                    self._pids.append(said["began"])
                    self._begun.notify_all()
            else:
                self.cpu_seconds += said["cpu"]
                self.ended[said["ended"]] = said["code"]


def _serve():
    """The server: forks at a word on standard input, says who began and how who ended; gone when its client is."""
    for name in IMPORTED:
        __import__(name)
    _compile()
    from seedbed.experiments.run import run
    from seedbed.report import page

    run._write_page = page.write_study_page = plain_page
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken)
    left = b""
    while True:
        ready, _, _ = select.select([0, wakes], [], [])
        if wakes in ready:
            os.read(wakes, 4096)
            _tell_ended()
        if 0 in ready:
            block = os.read(0, 1 << 16)
            if not block:
                os._exit(0)
            *lines, left = (left + block).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                pid = os.fork()
                if not pid:
                    _become(asked)
                print(json.dumps({"began": pid}), flush=True)


def _compile():
    """Have everything compiled or read from numba's cache once, and not in every fork."""
    import numpy as np

    from seedbed.curate.near_duplicates import NearDuplicates
    from seedbed.sources.nca import NcaRows

    NcaRows(states=2, grid=4, seq_len=32).rows([0], seed=0, split="train")
    near = NearDuplicates()
    near.find(np.stack([near.signature("one two three four five six")] * 2))


def _tell_ended():
    while True:
        try:
            pid, status, used = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"ended": pid, "code": code, "cpu": used.ru_utime + used.ru_stime}), flush=True)


def _become(asked):
    """Turn this fork into the process that was asked for."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests are run by nohup
        os.setsid()
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, asked["out"], os.O_WRONLY),
            (2, asked["err"], os.O_WRONLY),
        ):
            os.dup2(os.open(name, flags), number)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["cwd"])
        sys.argv = [asked["module"], *asked["words"]]
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
