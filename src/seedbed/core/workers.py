"""Worker processes: started with spawn, in a session of their own, so that the parent alone hears Ctrl-C and the signals of a
terminal or a launcher. They end when the parent does.
"""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any


def worker_pool(workers: int, begin: Callable[..., None], *given: Any) -> ProcessPoolExecutor:
    """Return a pool whose every process first calls `begin(*given)`."""
    os.environ["PYTHONSAFEPATH"] = "1"  # else a queue.py in the folder that one stands in would be imported in Python's place
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(begin, given))


def _begin(begin: Callable[..., None], given: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    parent = parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    begin(*given)
