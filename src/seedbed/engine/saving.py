"""Checkpoints are written behind the training: a step waits for the copy in memory only, a thread does the rest, one at a time.

A run whose weights are split over ranks writes its checkpoints with all of them: each rank its parts, the first the state and
the name. Whatever goes wrong in the thread is raised by the next save, by `wait`, or when the saver is left.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import file_digest
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from seedbed.core.durable import whole_folder
from seedbed.engine.checkpoints import content_of, flatten, named, pack, write, write_state
from seedbed.engine.placement import is_split
from seedbed.engine.ranks import PATIENCE, Ranks
from seedbed.engine.system import System


class Saver:
    """Writes one checkpoint at a time. All ranks make one, and call it at the same steps."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._group: Any = None  # of the thread: the others' messages go their own way
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._running: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __call__(
        self,
        folder: Path,
        *,
        system: System,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        after: Callable[[], None],
    ) -> None:
        """Write a checkpoint and call `after`, on the first rank, when it is there. `state` is what state.json says beside."""
        self.wait()
        if is_split(system):
            self._running = self._thread.submit(self._split, folder, *_staged(system, optimizer, state), after)
        elif self._ranks.first:
            packed = pack(system, optimizer, state)

            def all_of_it() -> None:
                write(folder, packed)
                after()

            self._running = self._thread.submit(all_of_it)

    def wait(self) -> None:
        """Go on when the last checkpoint is on disk. Raises what writing it raised, such as OSError for a full disk."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _split(self, folder: Path, tensors: dict[str, Any], content: dict[str, Any], after: Callable[[], None]) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        with ExitStack() as stack:
            box = [str(stack.enter_context(whole_folder(folder, over=True))) if self._ranks.first else ""]
            dist.broadcast_object_list(box, src=0, group=self._group)
            temporary = Path(box[0])
            save(
                tensors,
                storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True),
                process_group=self._group,
            )
            mine = {}
            for path in temporary.glob(f"shard-{self._ranks.rank + 1:05d}-*"):
                with path.open("rb") as file:
                    mine[path.name] = file_digest(file, "sha256").hexdigest()
            found: list[Any] = [None] * self._ranks.size
            dist.all_gather_object(found, mine, group=self._group)
            if self._ranks.first:
                write_state(temporary, content, hashes={name: digest for hashes in found for name, digest in hashes.items()})
        if self._ranks.first:
            after()
        dist.barrier(group=self._group)

    def prepare(self, system: System) -> None:
        """Get ready to save a system; all ranks come here together."""
        if is_split(system) and self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()


def _staged(
    system: System, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return this rank's parts of weights and moments, copied to the processor's memory, and what state.json will say."""
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

    moments, numbers = flatten(system, optimizer)
    tensors = {**{name: p.detach() for name, p in named(system)}, **moments}
    return BlockingAsyncStager().stage(tensors), content_of(state, numbers)
