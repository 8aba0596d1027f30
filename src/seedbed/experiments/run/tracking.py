"""Services that follow a run: `--track NAME` while it goes, `seedbed track RUN --to NAME` afterwards.

metrics.jsonl is the truth. A service is sent the same lines; what fails there is said once, and the run goes on without it.
Passwords and keys among the environment's variables and the home folder are left out of all that is handed over or said.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from seedbed import trackers
from seedbed.core.durable import locked
from seedbed.core.errors import DataError, InterruptedRunError, SeedbedError
from seedbed.core.places import homeless
from seedbed.core.protocols import Tracker, TrackerKind
from seedbed.core.run_record import RunRecord
from seedbed.experiments.plan.run_plan import RunPlan, read_plan

_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
_SECRET_IN_ADDRESS = re.compile(r"([?&][^=&\s]*(?:key|token|secret|password)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
_SHORTEST_SECRET = 6  # characters; anything shorter stands in too many words


class Trackers:
    """The services that follow one run; none of them can stop it.

    `with Trackers(["tensorboard"], say=say) as trackers:` before anything starts, `trackers.open(...)` when the run knows its
    step, `trackers.record(line)` with every line that metrics.jsonl got.
    """

    def __init__(self, names: Sequence[str] = (), *, say: Callable[[str], None]) -> None:
        """Raise ConfigError for an unknown name, DataError for a missing package."""
        self._kinds = checked_kinds(names)
        self._say = say
        self._open: dict[str, tuple[Tracker, ExitStack]] = {}

    def __enter__(self) -> "Trackers":
        return self

    def open(self, folder: Path, *, plan: RunPlan, from_step: int) -> None:
        """Open every service and bring it to the step from which the run goes on (0: from the beginning)."""
        self._folder = folder
        for name, kind in self._kinds.items():
            stack = ExitStack()
            try:
                tracker = stack.enter_context(_following(name, kind, folder, plan=plan, from_step=from_step))
                self._open[name] = (tracker, stack)
                if tracker.held_step < from_step:
                    for line in RunRecord(folder).metrics():
                        if tracker.held_step < line["run_step"] <= from_step:
                            tracker.record(line)
            except InterruptedRunError:  # a second signal came meanwhile; the run stops at once
                raise
            except Exception as e:
                self._drop(name, e, stack)
            else:
                self._say(f"{name}: {_without_secrets(tracker.where)}")

    def record(self, line: Mapping[str, Any]) -> None:
        """Send a line to every service that does not have it."""
        for name, (tracker, stack) in list(self._open.items()):
            try:
                if line["run_step"] > tracker.held_step:
                    tracker.record(line)
            except InterruptedRunError:
                raise
            except Exception as e:
                self._drop(name, e, stack)

    def close(self) -> None:
        for name, (_, stack) in list(self._open.items()):
            try:
                stack.close()
            except InterruptedRunError:
                raise
            except Exception as e:
                self._drop(name, e, stack)
        self._open.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _drop(self, name: str, error: Exception, stack: ExitStack) -> None:
        self._open.pop(name, None)
        with suppress(Exception):  # it has failed already, and that is what is said
            stack.close()
        self._say(
            f"{name}: {_in_words(error)}; the run goes on, metrics.jsonl has every line; "
            f"`seedbed track {self._folder} --to {name}` sends them later"
        )


def track(folder: str | Path, to: Sequence[str], say: Callable[[str], None] = print) -> int:
    """Send all lines that a run has written, finished or not, to services; return how many there are.

    What a service has of this run is replaced, or not sent again where it cannot take points back. Raises ConfigError for an
    unknown name, RefusedError if the run is sending to that service right now, DataError if the service fails.
    """
    folder, count = Path(folder), 0
    kinds, plan = checked_kinds(to), read_plan(folder)
    if RunRecord(folder).is_packed:
        raise DataError(f"{folder} is in a packed study, and services follow run folders; give the one that it was packed from")
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder} has no metrics.jsonl yet, so there is nothing to send; let the run take a step first")
    for name, kind in kinds.items():
        try:
            with _following(name, kind, folder, plan=plan, from_step=0) as tracker:
                count = 0
                for line in RunRecord(folder).metrics():
                    count += 1
                    if line["run_step"] > tracker.held_step:
                        tracker.record(line)
        except SeedbedError:
            raise
        except Exception as e:
            raise DataError(f"{name}: {_in_words(e)}; metrics.jsonl has every line, so mend that and send again") from e
        say(f"{name}: {count} lines, {_without_secrets(tracker.where)}")
    return count


def checked_kinds(names: Sequence[str]) -> dict[str, TrackerKind]:
    """Return the services of these names. Raises ConfigError for an unknown one, DataError for a missing package."""
    kinds: dict[str, TrackerKind] = {name: trackers.parts.build(name, path="track") for name in names}
    for kind in kinds.values():
        kind.check()
    return kinds


@contextmanager
def _following(name: str, kind: TrackerKind, folder: Path, *, plan: RunPlan, from_step: int) -> Iterator[Tracker]:
    """Open a service for this process alone: two that send the same run would send every point twice."""
    with locked(folder / Path(name).name.replace(":", "-")):
        facts = _without_secrets(json.loads(plan.model_dump_json(by_alias=True)))
        called = f"{plan.name}-{plan.arm}-seed-{plan.seed}"
        tracker = kind.open(folder=folder, name=called, facts=facts, from_step=from_step)
        try:
            yield tracker
        except BaseException:
            with suppress(Exception):  # what went wrong before it is what counts
                tracker.close()
            raise
        tracker.close()


def _without_secrets(value: Any) -> Any:
    """Return text, or a tree of it, without the home folder and without what secret variables hold."""
    if isinstance(value, Mapping):
        return {k: _without_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_secrets(v) for v in value]
    if not isinstance(value, str):
        return value
    for name, secret in os.environ.items():
        if _SECRET_VARIABLE.search(name) and len(secret) >= _SHORTEST_SECRET:
            value = value.replace(secret, f"${name}")
    return _SECRET_IN_ADDRESS.sub(r"\1...", homeless(value))


def _in_words(error: Exception) -> str:
    """The first line of what went wrong, with its kind where that is all there is to tell."""
    first = str(error).strip().split("\n")[0]
    return _without_secrets(first if isinstance(error, SeedbedError) else f"{type(error).__name__}: {first}".rstrip(": "))
