"""Progress in a stage to a multiplier of the peak learning rate. Loads without torch."""

from seedbed.core.registry import Registry

parts = Registry(
    "schedules",
    {
        "cosine": "seedbed.schedules.cosine:Cosine",
        "warmup": "seedbed.schedules.warmup:Warmup",
        "wsd": "seedbed.schedules.wsd:WarmupStableDecay",
    },
)
