"""One run of a study as a process of its own: `python -m seedbed.experiments.worker RUN_FOLDER`."""

import sys
from pathlib import Path

from seedbed.core.errors import SeedbedError
from seedbed.experiments.run import execute


def main() -> int:
    try:
        execute(Path(sys.argv[1]), say=lambda line: None)
    except SeedbedError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
