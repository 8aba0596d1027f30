"""TensorBoard: event files in the run folder, for `tensorboard --logdir RUN/tensorboard`. No account, no network.

A run that goes on after a checkpoint writes a further event file, which begins by taking back all points after that
checkpoint; TensorBoard drops them from the files before. Event files hold numbers in single precision and the moment they
were written, and their names carry no host (TensorBoard's own writer puts it there); metrics.jsonl is exact.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from seedbed.core.places import place
from seedbed.core.protocols import Neutral
from seedbed.trackers.lines import missing, numbers

_VERSION = "brain.Event:2"  # of the format; from version 2 on a start takes back the points from its step on


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files of one run."""

    neutral: ClassVar[Neutral] = "it follows a run and changes nothing"
    folder: str = place(default="")  # event files go to a folder of this one, named after the run; empty: to RUN/tensorboard

    def check(self) -> None:
        """Raise DataError if the package is missing."""
        _needed()

    def open(self, *, folder: Path, name: str, facts: Mapping[str, Any], from_step: int) -> "EventFile":
        return EventFile(Path(self.folder) / name if self.folder else folder / "tensorboard", facts=facts, from_step=from_step)


class EventFile:
    """One event file, written line by line; a line is on disk when `record` returns."""

    def __init__(self, log: Path, *, facts: Mapping[str, Any], from_step: int) -> None:
        self._protos, writer = _needed()
        log.mkdir(parents=True, exist_ok=True)
        is_new = not any(log.glob("*tfevents*"))
        self.held_step = 0 if is_new else from_step
        self.where = f"to {log}; look at it with `tensorboard --logdir {log}`"
        self._file = writer((log / f"events.out.tfevents.{time.time_ns()}").open("xb"))
        self._write(file_version=_VERSION)
        self._write(step=self.held_step + 1, session_log={"status": "START"})
        if is_new:  # the plan of a run folder never changes
            self._write(step=0, summary={"value": [_text("plan", json.dumps(facts, indent=1))]})

    def record(self, line: Mapping[str, Any]) -> None:
        values = [{"tag": tag, "simple_value": value} for tag, value in numbers(line).items()]
        self._write(step=line["run_step"], summary={"value": values})

    def _write(self, **content: Any) -> None:
        self._file.write(self._protos.Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _text(tag: str, text: str) -> dict[str, Any]:
    """A summary value that TensorBoard shows under Text, as a block of code."""
    tensor = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": 1}]}, "string_val": [f"```\n{text}\n```".encode()]}
    return {"tag": tag, "metadata": {"plugin_data": {"plugin_name": "text"}}, "tensor": tensor}


def _needed() -> tuple[Any, Any]:
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise missing("tensorboard") from None
    return event_pb2, RecordWriter
