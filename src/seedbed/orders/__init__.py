"""In which order the training documents of a prepared folder are read, before they are packed."""

from seedbed.core.registry import Registry

parts = Registry(
    "orders",
    {"by_column": "seedbed.orders.by_column:ByColumn"},
    promises="seedbed.core.protocols:OrderKind",
)
