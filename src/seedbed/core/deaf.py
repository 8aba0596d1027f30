"""Long calls of native code: it hears no Ctrl-C and says nothing, so it works in a thread while the main one listens."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillWorking
from typing import TypeVar

T = TypeVar("T")


def listening(work: Callable[[], T], *, tell: Callable[[], None], every: float, stop: Callable[[], None]) -> T:
    """Return what `work` returns, or raise what it raises; meanwhile `tell` is called every so many seconds.

    After a signal `stop` is called, so that Python code inside `work` can end it, and the signal's exception is raised without
    waiting for native code: that goes with the process.
    """
    found: Future[T] = Future()

    def body() -> None:
        try:
            found.set_result(work())
        except BaseException as e:
            found.set_exception(e)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        while True:
            try:
                return found.result(timeout=every)
            except StillWorking:
                if found.done():  # the work's own
                    raise
                tell()
    except BaseException:
        stop()
        thread.join(timeout=1)
        raise
