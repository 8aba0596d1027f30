"""Text to ids and back, without loss."""

from seedbed.core.registry import Registry

parts = Registry(
    "tokenizers",
    {
        "bytes": "seedbed.tokenizers.bytes:Bytes",
        "file": "seedbed.tokenizers.file:TokenizerFile",
        "integers": "seedbed.tokenizers.integers:Integers",
    },
    promises="seedbed.core.protocols:Tokenizer",
)
