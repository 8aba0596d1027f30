"""Rows of numpy to one batch of torch, and a batch to micro-batches, both by the table of fields in core/records.py.

Letters: B rows, T positions, E edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedbed.core.errors import DataError
from seedbed.core.records import FIELDS, Batch, Graph, Row

_KNOWN = {f.of_row for f in FIELDS} | {"labels", "extra", "graph", "parts", "cost"}
_WIDE = {"f": torch.float32, "i": torch.int64, "u": torch.int64, "b": torch.bool}  # labels and extra, by kind of number


def collate(rows: Sequence[Row]) -> Batch:
    """Return the rows as one batch, in the processor's memory: stacked, shorter ones filled up; with graphs, joined.

    Raises DataError if rows of one batch differ in what they have, or have a field that the table does not know.
    """
    _check_fields(rows[0])
    joined = rows[0].graph is not None
    lengths = [row.length for row in rows]
    uneven = len(set(lengths)) > 1 and not joined
    stack = _join if joined else _pad if uneven else _stack
    found: dict[str, Any] = {}
    for f in FIELDS:
        values = [getattr(row, f.of_row) for row in rows]
        if _all_or_none(values, f.of_row):
            found[f.of_batch] = torch.from_numpy(stack(values, f.padding)).to(getattr(torch, f.dtype))
    return Batch(
        **found,
        lengths_B=torch.tensor(lengths) if uneven else None,
        labels=_by_name([row.labels for row in rows], "labels", lambda values: np.stack([np.asarray(v) for v in values])),
        extra=_by_name([row.extra for row in rows], "extra", lambda values: stack(values, 0)),
        graph=_joined_graph(rows) if joined else None,
        graphs=len(rows) if joined else 0,
        parts={name: collate([row.parts[name] for row in rows]) for name in _names([row.parts for row in rows], "parts")},
    )


def pieces(batch: Batch, *, rows: int) -> list[Batch]:
    """Return the batch cut into micro-batches of at most `rows` rows (of as many graphs, where they are joined)."""
    total = batch.size.rows
    return [batch] if total <= rows else [_piece(batch, start, min(total, start + rows)) for start in range(0, total, rows)]


def _piece(batch: Batch, start: int, stop: int) -> Batch:
    parts = {name: _piece(part, start, stop) for name, part in batch.parts.items()}
    if batch.graph is None:
        return replace(replace(batch, parts={}).map(lambda value: value[start:stop]), parts=parts)
    graph_of_T = batch.graph.graph_of_T
    inside_T = (graph_of_T >= start) & (graph_of_T < stop)
    edges_2E = batch.graph.edges_2E
    inside_E = inside_T[edges_2E[0]]
    features = batch.graph.edge_features_EF
    graph = Graph(
        edges_2E=edges_2E[:, inside_E] - int(inside_T.int().argmax()),
        edge_features_EF=None if features is None else features[inside_E],
        graph_of_T=graph_of_T[inside_T] - start,
    )
    labels = {name: value[start:stop] for name, value in batch.labels.items()}
    cut = replace(batch, labels={}, graph=None, parts={}).map(lambda value: value[:, inside_T])
    return replace(cut, labels=labels, graph=graph, graphs=stop - start, parts=parts)


def _check_fields(row: Row) -> None:
    unknown = [f.name for f in fields(row) if f.name not in _KNOWN]
    if unknown:
        raise DataError(
            f"rows have a field that no batch knows: {', '.join(unknown)}; put it into `labels` (one a row) or `extra` (one a "
            "position), or add it to the table in seedbed/core/records.py"
        )


def _all_or_none(values: Sequence[Any], name: str) -> bool:
    there = [value is not None for value in values]
    if any(there) != all(there):
        raise DataError(f"some rows of one batch have {name} and others have not; a stream's rows all have the same fields")
    return all(there)


def _names(mappings: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    first = mappings[0]
    if any(m.keys() != first.keys() for m in mappings):
        named = sorted({key for m in mappings for key in m})
        raise DataError(
            f"rows of one batch differ in their {name} ({', '.join(named)}); a stream's rows all have the same ones"
        )
    return list(first)


def _by_name(mappings: Sequence[Mapping[str, Any]], name: str, stacked: Any) -> dict[str, Tensor]:
    found = {}
    for key in _names(mappings, name):
        values = stacked([m[key] for m in mappings])
        if values.dtype.kind not in _WIDE:
            raise DataError(f"{name}.{key} of a row holds {values.dtype}, and a batch holds numbers; give one")
        found[key] = torch.from_numpy(values).to(_WIDE[values.dtype.kind])
    return found


def _stack(values: Sequence[np.ndarray], padding: float) -> np.ndarray:
    return np.stack(values)


def _pad(values: Sequence[np.ndarray], padding: float) -> np.ndarray:
    values = [np.asarray(v) for v in values]
    filled = np.full((len(values), max(map(len, values)), *values[0].shape[1:]), padding, dtype=values[0].dtype)
    for row, value in zip(filled, values, strict=True):
        row[: len(value)] = value
    return filled


def _join(values: Sequence[np.ndarray], padding: float) -> np.ndarray:
    return np.concatenate(values)[None]


def _joined_graph(rows: Sequence[Row]) -> Graph:
    """Return all graphs as one whose parts do not touch: every row's nodes are counted on from those before."""
    graphs: list[Any] = [row.graph for row in rows]
    _all_or_none(graphs, "graph")
    lengths = [row.length for row in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    edges = np.concatenate([np.asarray(g.edges_2E) + start for g, start in zip(graphs, starts, strict=True)], axis=1)
    features = [g.edge_features_EF for g in graphs]
    known = _all_or_none(features, "graph.edge_features_EF")
    return Graph(
        edges_2E=torch.from_numpy(edges).long(),
        edge_features_EF=torch.from_numpy(np.concatenate(features)).float() if known else None,
        graph_of_T=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)),
    )
