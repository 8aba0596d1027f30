"""Progress in a stage to a multiplier of the peak learning rate. Loads without torch."""

from seedbed.core.registry import Registry

parts = Registry(
    "schedules",
    {
        "cosine": "seedbed.schedules.cosine:Cosine",
        "piecewise": "seedbed.schedules.piecewise:Piecewise",
        "warmup": "seedbed.schedules.warmup:Warmup",
        "wsd": "seedbed.schedules.wsd:WarmupStableDecay",
    },
    promises="seedbed.core.protocols:Schedule",
)
