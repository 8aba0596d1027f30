"""Shared by the engine's tests: openers of streams that a data worker can import without torch."""

from seedbed.core.errors import DataError
from seedbed.core.stream import Stream
from seedbed.mixture.epochs import Epochs
from seedbed.sources.nca import NcaRows
from seedbed.views.next_token import NextToken


def soil(batch_size=4):
    source = NcaRows(states=2, grid=4, seq_len=24)
    return Stream(
        name="soil",
        sources={"nca": source},
        mixture=Epochs(),
        views=[NextToken()],
        seq_len=24,
        batch_size=batch_size,
        vocab_size=source.vocab_size,
    )


def gone():
    raise DataError("the data are gone; put them back")
