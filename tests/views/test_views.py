import numpy as np

from seedbed.core.records import Draw, Key, Progress, Row, Vocabulary
from seedbed.views.next_token import NextToken
from seedbed.views.shuffled import Shuffled

ROW = Row(
    tokens_T=np.arange(10, 16),
    weights_T=np.array([0, 0, 1, 1, 0.5, 1]),
    documents_T=np.array([0, 0, 0, 1, 1, 1]),
    positions_TA=np.array([[0], [1], [2], [0], [1], [2]]),
)


def _given(position=0, seed=0):
    key = Key(seed=seed, stream="soil", position=position, draw=Draw("nca", position, 0))
    return {"key": key, "vocabulary": Vocabulary(size=20), "progress": Progress(step=0, steps=0)}


def test_each_position_is_asked_for_the_token_that_follows_with_that_token_s_weight():
    asked = NextToken()(ROW, **_given())
    assert asked.tokens_T.tolist() == [10, 11, 12, 13, 14]
    assert asked.targets_T.tolist() == [11, 12, 13, 14, 15]
    assert asked.weights_T.tolist() == [0, 1, 1, 0.5, 1]
    assert asked.documents_T.tolist() == [0, 0, 0, 1, 1]
    assert asked.positions_TA.tolist() == [[0], [1], [2], [0], [1]]


def test_shuffling_keeps_the_unigrams_and_moves_the_rest():
    shuffled = Shuffled()(ROW, **_given())
    assert sorted(shuffled.tokens_T) == sorted(ROW.tokens_T)
    assert shuffled.weights_T.tolist() == ROW.weights_T.tolist()
    orders = {tuple(Shuffled()(ROW, **_given(p, s)).tokens_T) for p in range(5) for s in range(2)}
    assert len(orders) > 7, "positions and seeds have orders of their own"
    assert tuple(Shuffled()(ROW, **_given(3)).tokens_T) == tuple(Shuffled()(ROW, **_given(3)).tokens_T)
