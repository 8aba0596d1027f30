"""`seedbed prepare` with workers that are forked: `python -m tests.experiments.forking_prepare IN OUT WORKERS UNIT_BYTES`."""

import sys
from multiprocessing import get_context

from seedbed.core import workers
from seedbed.experiments.prepare import inputs
from seedbed.experiments.prepare.prepare import prepare

if __name__ == "__main__":
    workers.get_context = lambda method: get_context("fork")
    texts, out, number, inputs.UNIT_BYTES = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    prepare([texts], out, workers=number, duplicates="near", say=lambda line: None)
