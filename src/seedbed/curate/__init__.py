"""What of a corpus is kept: each part keeps a document, drops it with a reason, or puts another text in its place."""

from seedbed.core.registry import Registry

parts = Registry(
    "curate",
    {
        "decontaminate": "seedbed.curate.decontaminate:Decontaminate",
        "length": "seedbed.curate.length:Length",
    },
    promises="seedbed.core.protocols:Refiner",
)
