"""Documents as ids to rows of seq_len + 1 tokens; the view next_token asks for seq_len of them."""

from seedbed.core.registry import Registry

parts = Registry(
    "packing",
    {
        "best_fit": "seedbed.packing.best_fit:BestFit",
        "concatenate": "seedbed.packing.concatenate:Concatenate",
        "one_per_row": "seedbed.packing.one_per_row:OnePerRow",
    },
    promises="seedbed.core.protocols:Packer",
)
