"""Row to what is shown, what is asked and what it counts. Loads without torch."""

from seedbed.core.registry import Registry

parts = Registry(
    "views",
    {
        "next_token": "seedbed.views.next_token:NextToken",
        "shuffled": "seedbed.views.shuffled:Shuffled",
    },
    promises="seedbed.core.protocols:View",
)
