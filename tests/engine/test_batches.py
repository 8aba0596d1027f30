"""Batches by the table of fields: whatever a row has arrives, is padded, cut and joined; what does not fit is said."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from seedbed.core.errors import DataError
from seedbed.core.records import FIELDS, Graph, Row
from seedbed.engine.batches import collate, pieces


def _full(length=3, start=0):
    """A row in which every field of the table says something."""
    each = {f.of_row: np.arange(start, start + length).astype(f.dtype) for f in FIELDS}
    each["features_TF"] = np.arange(2.0 * length).reshape(length, 2) + start
    each["positions_TA"] = np.arange(length)[:, None] + start
    return Row(
        **each,
        labels={"class": 3 + start, "assay": np.array([0.5, np.nan])},
        extra={"log_probability": np.arange(length) / 2},
        parts={"source": Row(tokens_T=np.arange(length + 1))},
    )


def test_every_field_of_a_row_arrives_in_the_batch():
    rows = [_full(), _full(start=5)]
    batch = collate(rows)
    for f in FIELDS:
        for row, given in zip(rows, getattr(batch, f.of_batch), strict=True):
            np.testing.assert_array_equal(given.numpy(), getattr(row, f.of_row))
    assert batch.labels["class"].tolist() == [3, 8] and batch.labels["assay"].shape == (2, 2)
    assert batch.extra["log_probability"].tolist() == [[0, 0.5, 1]] * 2
    assert batch.parts["source"].tokens_BT.shape == (2, 4) and batch.lengths_B is None
    (first, second) = pieces(batch, rows=1)
    assert first.labels["class"].tolist() == [3] and second.parts["source"].size.rows == 1
    assert batch.size.positions == 6 and batch.size.counted == 5, "a weight of 0 asks nothing"


def test_shorter_rows_are_filled_up_and_their_lengths_said():
    batch = collate([_full(2), _full(4)])
    assert batch.lengths_B.tolist() == [2, 4]
    assert batch.documents_BT[0].tolist() == [0, 1, -1, -1] and batch.weights_BT[0, 2:].tolist() == [0, 0]
    assert batch.parts["source"].lengths_B.tolist() == [3, 5]


def test_graphs_are_joined_and_cut_between_graphs_only():
    def row(nodes, label):
        edges = np.array([[0, nodes - 1], [nodes - 1, 0]])
        graph = Graph(edges_2E=edges, edge_features_EF=np.full((2, 1), label))
        return Row(tokens_T=np.arange(nodes), weights_T=np.ones(nodes), graph=graph, labels={"class": label})

    batch = collate([row(3, 0), row(2, 1), row(4, 2)])
    assert batch.tokens_BT.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]] and batch.size.rows == 3
    assert batch.graph.edges_2E.tolist() == [[0, 2, 3, 4, 5, 8], [2, 0, 4, 3, 8, 5]]
    assert batch.graph.graph_of_T.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    first, second = pieces(batch, rows=2)
    assert second.tokens_BT.tolist() == [[0, 1, 2, 3]] and second.labels["class"].tolist() == [2]
    assert second.graph.edges_2E.tolist() == [[0, 3], [3, 0]] and second.graph.graph_of_T.tolist() == [0] * 4
    assert second.graph.edge_features_EF.flatten().tolist() == [2, 2] and first.size.rows == 2


def test_rows_that_do_not_belong_together_are_refused():
    @dataclass(frozen=True, kw_only=True)
    class Odd(Row):
        mood_T: object = None

    with pytest.raises(DataError, match="a field that no batch knows: mood_T; put it into `labels`"):
        collate([Odd(tokens_T=np.arange(3), mood_T=np.arange(3))])
    with pytest.raises(DataError, match="some rows of one batch have speakers_T and others have not"):
        collate([Row(tokens_T=np.arange(3), speakers_T=np.arange(3)), Row(tokens_T=np.arange(3))])
    with pytest.raises(DataError, match=r"differ in their labels \(a, b\)"):
        collate([Row(tokens_T=np.arange(3), labels={"a": 1}), Row(tokens_T=np.arange(3), labels={"b": 1})])
    with pytest.raises(DataError, match=r"labels.a of a row holds .*U.*, and a batch holds numbers"):
        collate([Row(tokens_T=np.arange(3), labels={"a": "text"})])


def test_padding_changes_no_state_of_a_model_that_sees_all():
    from seedbed.models.decoder import Decoder

    model = Decoder(num_layers=2, d_model=16, num_heads=2, mask="bidirectional").build(vocab_size=9)
    model.initialize(seed=0)
    rows = [Row(tokens_T=np.arange(n)) for n in (3, 6)]
    together, alone = model(collate(rows)).hidden_BTD, model(collate(rows[:1])).hidden_BTD
    torch.testing.assert_close(together[:1, :3], alone)
