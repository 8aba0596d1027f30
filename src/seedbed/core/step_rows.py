"""The rows of a step, made here or in a worker process. Nothing of it needs torch, so a worker starts in a fraction of the time
that the run itself takes.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from seedbed.core.records import Draw, Measurement, Row
from seedbed.core.stream import Stream


class StepRows(NamedTuple):
    """A rank's rows of a step, the draws of the whole step, and the seconds that making them took."""

    rows: list[Row]
    draws: list[Draw]
    seconds: float


def step_rows(stream: Stream, start: int, *, offset: int, share: int, seed: int) -> StepRows:
    """Return `share` rows from position `start + offset` on, of the step that begins at `start`."""
    begun = time.perf_counter()
    rows = stream.rows(start + offset, count=share, seed=seed)
    draws = stream.draws(start, count=stream.batch_size, seed=seed)
    return StepRows(rows, draws, time.perf_counter() - begun)


_stream: Stream | Exception  # of this worker, or why it has none


def open_in_worker(opener: Callable[[], Stream]) -> None:
    """Open the stream that this worker makes rows of."""
    global _stream  # noqa: PLW0603  # a pool hands its workers nothing but arguments
    try:
        _stream = opener()
    except Exception as e:  # raised here, it would look as if the worker was killed
        _stream = e


def rows_in_worker(start: int, where: dict[str, int], history: list[Measurement]) -> StepRows:
    """Return a step's rows as `step_rows` does, with what was recorded before them; raises what opening the stream raised."""
    if isinstance(_stream, Exception):
        raise _stream
    _stream.history[:] = history
    return step_rows(_stream, start, **where)
