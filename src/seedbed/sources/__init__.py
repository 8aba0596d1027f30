"""Where sequences and documents come from. A source gives rows by address, a corpus gives documents by split."""

from seedbed.core.registry import Registry

parts = Registry(
    "sources",
    {
        "nca": "seedbed.sources.nca:NcaRows",
        "shards": "seedbed.sources.shards:Shards",
        "text": "seedbed.sources.text:Text",
    },
)
