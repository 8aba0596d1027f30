"""Services that show a run's numbers while it runs. metrics.jsonl is the truth, a service only follows. Loads without torch."""

from seedbed.core.registry import Registry

parts = Registry(
    "trackers",
    {
        "tensorboard": "seedbed.trackers.tensorboard:TensorBoard",
        "trackio": "seedbed.trackers.trackio:Trackio",
        "wandb": "seedbed.trackers.wandb:WeightsAndBiases",
    },
)
