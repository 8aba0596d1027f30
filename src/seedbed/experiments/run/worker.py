"""One run of a study as a process of its own: `python -m seedbed.experiments.run.worker RUN_FOLDER [TRACKER ...]`."""

import sys
import traceback
from pathlib import Path

from seedbed.core.errors import SeedbedError


def main() -> int:
    from seedbed.experiments.run.layout import Session  # here, as this run's data workers import this file and need no torch
    from seedbed.experiments.run.run import execute

    try:
        execute(Path(sys.argv[1]), say=lambda line: None, session=Session(track=tuple(sys.argv[2:])))
    except SeedbedError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except Exception as e:  # a fault of ours: one line for the study, the traceback for whoever looks into it
        (Path(sys.argv[1]) / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        print(f"internal error, {type(e).__name__}: {e} (see traceback.txt there)".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
