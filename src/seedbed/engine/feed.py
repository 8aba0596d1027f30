"""The batches of a stage's stream, step by step. While a step is computed, a thread makes the next one ready.

Worker processes make the same rows further ahead. A row is a function of its address, so it does not matter who makes it. Where
a mixture decides by a measurement, no row is made that depends on one which is not recorded yet.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import NamedTuple

from torch import Tensor

from seedbed.core.errors import ConfigError, StoppedRunError
from seedbed.core.records import Batch, Cost, Draw
from seedbed.core.step_rows import StepRows, open_in_worker, rows_in_worker, step_rows
from seedbed.core.stream import Stream
from seedbed.core.workers import worker_pool
from seedbed.engine.batches import collate
from seedbed.engine.ranks import Ranks

_AHEAD = 2  # steps for each worker


class Made(NamedTuple):
    """A step's share: its batch in the processor's memory, what making it cost, and what the whole step drew."""

    batch: Batch
    cost: Cost  # seconds wherever they were spent
    draws: list[Draw]


class Feed:
    """Gives this rank's share of a stream's batches, from any step on; ahead of time where it is used as a context.

    `opener` makes the same stream in a worker; it must be picklable. If workers are gone while `stopping` says that the run is
    to stop, its last rows are made here. `pinned` lays batches where a GPU fetches them without waiting. Raises ConfigError if
    the rows of a step cannot be shared out evenly.
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
        pinned: bool = False,
    ) -> None:
        ranks = ranks or Ranks()
        if stream.batch_size % ranks.size:
            raise ConfigError(
                f"stream {stream.name}: batch_size {stream.batch_size} cannot be shared out evenly to {ranks.size} ranks; give "
                "a multiple"
            )
        self._stream, self._seed, self._workers, self._opener = stream, seed, workers, opener
        self._stopping, self._pinned = stopping, pinned
        self._share = stream.batch_size // ranks.size
        self._offset = ranks.rank * self._share
        self._thread: ThreadPoolExecutor | None = None
        self._next: dict[int, Future[Made]] = {}  # one step, made by the thread
        self._pool: ProcessPoolExecutor | None = None
        self._coming: dict[int, Future[StepRows]] = {}  # several, made by workers

    def __enter__(self) -> "Feed":
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        if self._workers:
            assert self._opener is not None
            self._pool = worker_pool(self._workers, open_in_worker, self._opener)
        return self

    def take(self, start: int, *, until: int) -> Made:
        """Return the share of the step that begins at position `start`; rows up to `until` may be made ahead.

        Raises StoppedRunError if a worker was killed, and whatever the stream's rows raise.
        """
        ready = self._next.pop(start, None)
        made = ready.result() if ready is not None else self._make(start, until)
        count = self._stream.batch_size
        following = start + count
        if self._thread is not None and following < until and self._stream.due(following + count) is None:
            self._next = {following: self._thread.submit(self._make, following, until)}
        return made

    def rest(self) -> None:
        """Wait until nothing is being made: who reads the stream's sources now reads them alone."""
        wait(self._next.values())

    def _make(self, start: int, until: int) -> Made:
        rows, draws, seconds = self._rows(start, until)
        started = time.perf_counter()
        batch = collate(rows)
        if self._pinned:
            batch = batch.map(Tensor.pin_memory)
        seconds += time.perf_counter() - started
        return Made(batch, sum((row.cost for row in rows), Cost(seconds=seconds)), draws)

    def _rows(self, start: int, until: int) -> StepRows:
        where = {"offset": self._offset, "share": self._share, "seed": self._seed}
        if self._pool is None:
            return step_rows(self._stream, start, **where)
        count = self._stream.batch_size
        try:
            for at in range(start, min(until, start + (1 + _AHEAD * self._workers) * count), count):
                if at not in self._coming and self._stream.due(at + count) is None:
                    history = list(self._stream.history)
                    self._coming[at] = self._pool.submit(rows_in_worker, at, where, history)
            return self._coming.pop(start).result()
        except BrokenProcessPool:
            if self._stopping():  # the same signal ended them
                return step_rows(self._stream, start, **where)
            raise StoppedRunError(
                "a data worker was killed (out of memory?); the last checkpoint is whole: `seedbed resume` goes on from it, "
                "perhaps with fewer --data-workers"
            ) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool in (self._thread, self._pool):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
