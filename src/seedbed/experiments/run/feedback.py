"""What a run's mixtures were told, exactly: feedback.jsonl, a line a Measurement, on disk before a row behind it is drawn.

On resume, what was measured after the checkpoint is cut off; it is measured again, as the steps are made again. Weights that
a user changed between two sessions stay: they were set for the steps that follow.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from seedbed.core.durable import write_whole
from seedbed.core.errors import DataError, RefusedError
from seedbed.core.records import Measurement
from seedbed.core.run_record import FEEDBACK, RunRecord
from seedbed.core.stream import Stream
from seedbed.mixture.weighted import CHANGED


class Feedback:
    """The measurements of a run; fills the history of its streams.

    `until` is the run's step in its checkpoint, `known` the fingerprint there ("" without one); only the first rank `writes`.
    Raises RefusedError if what the checkpoint knew is not there any more.
    """

    def __init__(self, folder: Path, streams: Mapping[str, Stream], *, until: int, known: str, writes: bool = True) -> None:
        self._file, self._streams, self._writes = folder / FEEDBACK, streams, writes
        kept = [(stream, m) for stream, m in read_feedback(folder) if m.step < until or m.name == CHANGED]
        if known and known not in (_hash(kept[:n]) for n in range(len(kept) + 1)):
            raise RefusedError(
                f"{self._file} is not what the checkpoint was made with: lines are gone or were altered; put "
                "it back, or start a new "
                "run with another --out"
            )
        for name, stream in streams.items():
            stream.history[:] = [m for of, m in kept if of == name]
        if self._file.is_file() and writes:
            write_whole(self._file, "".join(_line(stream, m) for stream, m in kept))

        self._kept = list(kept)

    def fingerprint(self) -> str:
        """Return a hash of all that was recorded, for the checkpoint."""
        return _hash(self._kept)

    def record(self, stream: str, measurement: Measurement) -> None:
        """Write a measurement down, then let the stream's mixture see it."""
        if self._writes:
            append(self._file, stream, measurement)
        self._kept.append((stream, measurement))
        self._streams[stream].history.append(measurement)


def append(file: Path, stream: str, measurement: Measurement) -> None:
    """Add a line, on disk when this returns; a line that a kill cut off before it is removed."""
    if file.is_file() and file.read_bytes()[-1:] not in (b"\n", b""):
        write_whole(file, "".join(_line(of, m) for of, m in read_feedback(file.parent)))
    with file.open("a", encoding="utf-8") as opened:
        opened.write(_line(stream, measurement))
        opened.flush()
        os.fsync(opened.fileno())


def read_feedback(folder: Path) -> list[tuple[str, Measurement]]:
    """Return (stream, measurement) in the order of recording; a last line that a kill cut off is left out."""
    file, found = folder / FEEDBACK, []
    for number, line in enumerate(RunRecord(folder).feedback_text().splitlines(keepends=True), 1):
        try:
            facts = json.loads(line)
            found.append((facts.pop("stream"), Measurement(**facts)))
        except (ValueError, TypeError, KeyError) as e:
            if line.endswith("\n"):
                raise DataError(f"{file}, line {number}: {e}; put the file back, or start the run again") from None
    return found


def _hash(lines: Sequence[tuple[str, Measurement]]) -> str:
    return sha256("".join(_line(stream, m) for stream, m in lines).encode()).hexdigest()


def _line(stream: str, measurement: Measurement) -> str:
    return json.dumps({"stream": stream, **asdict(measurement)}) + "\n"
