"""Which sequences, how much of each, in what order."""

from seedbed.core.registry import Registry

parts = Registry(
    "mixture",
    {
        "epochs": "seedbed.mixture.epochs:Epochs",
        "weighted": "seedbed.mixture.weighted:Weighted",
        "by_loss": "seedbed.mixture.by_loss:ByLoss",
    },
    promises="seedbed.core.protocols:Mixture",
)
