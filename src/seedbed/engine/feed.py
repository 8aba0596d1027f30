"""The rows of a stage's stream, step by step; with worker processes, which stand some steps ahead, the same rows sooner.

A row is a function of its address, so who makes it changes nothing. Behind a decision that is not made yet no row is made.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, NamedTuple

from seedbed.core.errors import ConfigError, StoppedRunError
from seedbed.core.records import Measurement, Row
from seedbed.core.stream import Stream
from seedbed.core.workers import worker_pool
from seedbed.engine.ranks import Ranks

_AHEAD = 2  # steps for each worker


class Made(NamedTuple):
    """Rows, and the seconds that making them took wherever they were made."""

    rows: list[Row]
    seconds: float


class Feed:
    """Gives this rank's share of a stream's rows, from any step on.

    `opener` makes the same stream in a worker; it must be picklable. If workers are gone while `stopping` says that the run is
    to stop, its last rows are made here. Raises ConfigError if the rows of a step cannot be shared out evenly.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        seed: int,
        workers: int = 0,
        opener: Callable[[], Stream] | None = None,
        ranks: Ranks | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        ranks = ranks or Ranks()
        self._stopping = stopping
        if stream.batch_size % ranks.size:
            raise ConfigError(
                f"stream {stream.name}: batch_size {stream.batch_size} cannot be shared out evenly to {ranks.size} ranks; give "
                "a multiple"
            )
        self._stream, self._seed, self._workers, self._opener = stream, seed, workers, opener
        self._share = stream.batch_size // ranks.size
        self._offset = ranks.rank * self._share
        self._pool: ProcessPoolExecutor | None = None
        self._coming: dict[int, Future[Made]] = {}

    def __enter__(self) -> "Feed":
        if self._workers:
            assert self._opener is not None
            self._pool = worker_pool(self._workers, _open, self._opener)
        return self

    def take(self, start: int, *, until: int) -> Made:
        """Return the share of the step that begins at position `start`; rows up to `until` may be made ahead.

        Raises StoppedRunError if a worker was killed.
        """
        if self._pool is None:
            return _make(self._stream, start + self._offset, self._share, self._seed)
        count = self._stream.batch_size
        try:
            for at in range(start, min(until, start + (1 + _AHEAD * self._workers) * count), count):
                if at not in self._coming and self._stream.due(at + count) is None:
                    history = list(self._stream.history)
                    self._coming[at] = self._pool.submit(_make_there, at + self._offset, self._share, self._seed, history)
            return self._coming.pop(start).result()
        except BrokenProcessPool:
            if self._stopping():  # the same signal ended them
                return _make(self._stream, start + self._offset, self._share, self._seed)
            raise StoppedRunError(
                "a data worker was killed (out of memory?); the last checkpoint is whole: `seedbed resume` goes on from it, "
                "perhaps with fewer --data-workers"
            ) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _make(stream: Stream, start: int, count: int, seed: int) -> Made:
    begun = time.perf_counter()
    rows = stream.rows(start, count=count, seed=seed)
    return Made(rows, time.perf_counter() - begun)


_stream: Stream | Exception  # of this worker, or why it has none


def _open(opener: Callable[[], Stream]) -> None:
    global _stream  # noqa: PLW0603  # a pool hands its workers nothing but arguments
    try:
        _stream = opener()
    except Exception as e:  # raised here, it would look as if the worker was killed
        _stream = e


def _make_there(start: int, count: int, seed: int, history: list[Measurement]) -> Any:
    if isinstance(_stream, Exception):
        raise _stream
    _stream.history[:] = history
    return _make(_stream, start, count, seed)
