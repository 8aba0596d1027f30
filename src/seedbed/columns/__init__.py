"""A value for every document of a prepared folder, from a pass of its own: a score, a label, a cluster."""

from seedbed.core.registry import Registry

parts = Registry(
    "columns",
    {
        "cluster": "seedbed.columns.cluster:Cluster",
        "from_file": "seedbed.columns.from_file:FromFile",
    },
    promises="seedbed.core.protocols:ColumnKind",
)
