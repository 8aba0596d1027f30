"""Optimizers: settings and (role, parameter) pairs to a torch optimizer."""

from seedbed.core.registry import Registry

parts = Registry(
    "optimizers",
    {
        "adamw": "seedbed.optimizers.adamw:AdamW",
        "muon": "seedbed.optimizers.muon:Muon",
    },
    promises="seedbed.core.protocols:OptimizerKind",
)
