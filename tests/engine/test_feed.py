import os
import signal
import time
from functools import partial

import pytest

from seedbed.core.errors import ConfigError, DataError, StoppedRunError
from seedbed.core.stream import Stream
from seedbed.engine.feed import Feed
from seedbed.engine.ranks import Ranks
from seedbed.views.next_token import NextToken
from tests.engine.inputs import gone, soil


def _tokens(rows):
    return [row.tokens_T.tolist() for row in rows]


def test_ranks_share_the_rows_of_a_step_and_none_is_made_twice():
    whole = _tokens(soil().rows(8, count=4, seed=0))
    shares = [Feed(soil(), seed=0, ranks=Ranks(rank=r, size=2)).take(8, until=8) for r in (0, 1)]
    assert shares[0].batch.tokens_BT.tolist() + shares[1].batch.tokens_BT.tolist() == whole
    with pytest.raises(ConfigError, match="cannot be shared out evenly to 3 ranks"):
        Feed(soil(), seed=0, ranks=Ranks(rank=0, size=3))


def test_what_goes_wrong_in_a_worker_is_said_as_it_is():
    with Feed(soil(), seed=0, workers=1, opener=gone) as feed, pytest.raises(DataError, match="put them back"):
        feed.take(0, until=8)


@pytest.mark.parametrize("stopping", [True, False])
def test_workers_that_a_signal_ended_do_not_hinder_the_last_step(stopping):
    with Feed(soil(), seed=0, workers=1, opener=partial(soil), stopping=lambda: stopping) as feed:
        feed.take(0, until=400)
        (worker,) = feed._pool._processes
        assert os.getsid(worker) == worker, "signals of the run's group do not reach it"
        os.kill(worker, signal.SIGTERM)
        begun = time.monotonic()
        while time.monotonic() - begun < 10 and os.path.exists(f"/proc/{worker}"):
            time.sleep(0.01)
        if stopping:
            assert feed.take(396, until=400).batch.tokens_BT.tolist() == _tokens(soil().rows(396, count=4, seed=0))
        else:
            with pytest.raises(StoppedRunError, match="a data worker was killed"):
                feed.take(396, until=400)


def test_the_next_step_is_made_ahead_but_not_behind_a_decision():
    class Decided(Stream):
        def due(self, position):
            return 8 if position > 8 else None

    made = []

    class Noted(NextToken):
        def __call__(self, row, *, key, **given):
            made.append(key.position)
            return super().__call__(row, key=key, **given)

    stream = Decided(**{**vars(soil()), "views": [Noted()]})
    with Feed(stream, seed=0) as feed:
        first = feed.take(0, until=100)
        feed.rest()
        assert made == list(range(8)), "while the first step is computed the second is made"
        second = feed.take(4, until=100)
        feed.rest()
        assert made == list(range(8)), "position 8 is decided later"
        feed.take(8, until=12)
        feed.rest()
        assert made == list(range(12)), "and behind the end there is nothing to make"
    whole = soil().rows(0, count=8, seed=0)
    assert first.batch.tokens_BT.tolist() + second.batch.tokens_BT.tolist() == _tokens(whole)
    assert second.draws == soil().draws(4, count=4, seed=0)


def test_what_goes_wrong_ahead_is_raised_where_its_step_would_begin():
    class Ends(NextToken):
        def __call__(self, row, *, key, **given):
            if key.position >= 4:
                raise DataError("no such row")
            return super().__call__(row, key=key, **given)

    stream = Stream(**{**vars(soil()), "views": [Ends()]})
    with Feed(stream, seed=0) as feed:
        feed.take(0, until=100)
        feed.rest()
        with pytest.raises(DataError, match="no such row"):
            feed.take(4, until=100)
