"""From what users have to shards: `seedbed prepare`, to be read from top to bottom.

1. Plan (units.py): the input is cut into units (files, or ranges of lines of a large .jsonl) that depend on the input alone.
2. Units, side by side: read, cut into sections, hold against what is left out, refine what is trained on, tokenize, write. A
   unit is whole or absent.
3. Seal (seal.py), one after the other: leave out duplicates, give every document its side, write shards; the manifest last.
Bytes are the same for any number of workers; after a kill, the same command goes on with the units that are not there yet.
Memory holds one unit's batch, what is said of units, and for duplicates 60 bytes a document (near ones: 90 more, 512 on disk).
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seedbed.core.bounds import check_range
from seedbed.core.durable import locked, refuse_existing
from seedbed.core.errors import DataError, RefusedError, RunFailedError
from seedbed.core.speaking import heard_or_not
from seedbed.experiments.prepare.inputs import look_at
from seedbed.experiments.prepare.preparation import WORKERS, Preparation, PreparedFolder
from seedbed.experiments.prepare.seal import seal
from seedbed.experiments.prepare.units import WORK, begin, make_units, plan, unit_folder
from seedbed.sources.shards import MANIFEST, damage, read_manifest


def prepare(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    workers: int = 1,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> PreparedFolder:
    """Turn files into shards under `out` and return their manifest; `settings` as in `Preparation`.

    Raises DataError for input that cannot be read (`on_error="stop"`), RefusedError if `out` holds a finished preparation or
    the beginnings of another one, RunFailedError if a worker was killed; what was done is kept, the same call goes on.
    """
    check_range("workers", workers, WORKERS)
    say = heard_or_not(say)
    preparation = Preparation(paths=tuple(map(str, paths)), **settings)
    folder = Path(out)
    if os.path.lexists(folder) and not folder.is_dir():
        refuse_existing(folder)
    _refuse_finished(folder)
    look_at(preparation)
    work = plan(preparation)
    with locked(folder):
        _refuse_finished(folder)
        begin(folder, work)
        waiting = [n for n in range(len(work.units)) if not unit_folder(folder, n).is_dir()]
        if len(waiting) < len(work.units):
            say(f"going on: {len(work.units) - len(waiting)} of {len(work.units)} units are there")
        try:
            make_units(folder, work, waiting, workers=workers, say=say)
            return seal(folder, work, say=say)
        except OSError as e:
            raise RunFailedError(
                f"cannot write to {folder}: {e.strerror or e}; what was done is kept: mend that (free some space), and run the "
                "same command again"
            ) from e


def _refuse_finished(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder / WORK, ignore_errors=True)  # of a run that was killed after its last step
        raise RefusedError(
            f"{folder} holds a finished preparation and nothing is overwritten; give another --out, or remove it"
        )


def validate_folder(folder: Path) -> dict[str, Any]:
    """Hash every file of a prepared folder again. Raises DataError naming all that are missing or altered."""
    problems = damage(folder)
    if problems:
        raise DataError(f"{'; '.join(problems)}; put them back or prepare the folder again")
    manifest = read_manifest(folder)
    return {"ok": True, "shards": len(manifest["shards"]), "documents": manifest["documents"], "tokens": manifest["tokens"]}
