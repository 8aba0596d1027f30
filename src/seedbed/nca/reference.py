"""The same network in float32, layer by layer as published, for parity with the authors' vectors only.

Letters: R rules, F frames, G grid side, N states, C input channels (N + 2 with the state wrap).
"""

import numpy as np
from jaxtyping import Float32, UInt8

from seedbed.core.errors import ConfigError
from seedbed.nca.rule import HIDDEN_BITS, Rule, compose
from seedbed.nca.tables import FRACTION_BITS

Weights = dict[str, np.ndarray]  # Conv_{0,1,2}_kernel and _bias of one rule, as the authors' generator names them


def float_logits(weights: Weights, grid_GG: UInt8[np.ndarray, "G G"], *, states: int) -> Float32[np.ndarray, "G G N"]:
    """Return the logits of every cell: one-hot, wrap on all three axes, three convolutions, one ReLU."""
    onehot = np.eye(states, dtype=np.float32)[grid_GG]
    padded = np.pad(onehot, 1, mode="wrap")  # the state axis too: the published quirk
    side = len(grid_GG)
    hidden = np.zeros((side, side, 4), dtype=np.float32) + weights["Conv_0_bias"]
    for row in range(3):
        for column in range(3):
            hidden += padded[row : row + side, column : column + side] @ weights["Conv_0_kernel"][row, column]
    hidden = hidden @ weights["Conv_1_kernel"][0, 0] + weights["Conv_1_bias"]
    return np.maximum(hidden, 0) @ weights["Conv_2_kernel"][0, 0] + weights["Conv_2_bias"]


def integer_rule(weights: Weights) -> Rule:
    """Return the given float weights as an integer rule, each rounded to FRACTION_BITS fractional bits.

    Raises ConfigError for weights so large that a hidden value could overflow.
    """
    spread = np.abs(weights["Conv_0_kernel"]).sum((0, 1)).max() * 2 + np.abs(weights["Conv_0_bias"]).max()
    reach = 4 * spread * np.abs(weights["Conv_1_kernel"]).max() + np.abs(weights["Conv_1_bias"]).max()
    if not reach < 2 ** (31 - HIDDEN_BITS):
        raise ConfigError(f"weights this large could overflow: a hidden value might reach {reach:.0f}, allowed are 127")
    fixed = {name: np.rint(value.astype(np.float64) * 2**FRACTION_BITS).astype(np.int64) for name, value in weights.items()}
    first = fixed["Conv_0_kernel"]
    return compose(
        first.reshape(9, first.shape[2], first.shape[3]),
        fixed["Conv_1_kernel"][0, 0],
        fixed["Conv_2_kernel"][0, 0],
        fixed["Conv_0_bias"],
        fixed["Conv_1_bias"],
        fixed["Conv_2_bias"],
        wrap_states=True,
    )
