"""Model to numbers, item by item."""

from seedbed.core.registry import Registry

parts = Registry(
    "evaluate",
    {
        "bits_per_byte": "seedbed.evaluate.bits_per_byte:BitsPerByte",
        "rule_inference": "seedbed.evaluate.rule_inference:RuleInference",
    },
    promises="seedbed.core.protocols:Evaluator",
)
