"""What of a corpus is kept: each part tells for a document to keep it, or to drop it and why."""

from seedbed.core.registry import Registry

parts = Registry(
    "curate",
    {
        "decontaminate": "seedbed.curate.decontaminate:Decontaminate",
        "length": "seedbed.curate.length:Length",
        "near_duplicates": "seedbed.curate.near_duplicates:NearDuplicates",
    },
)
