"""Rotary positions: pairs of channels turn by an angle that grows with the position.

Papers: Su et al. (2021), "RoFormer"; Grattafiori et al. (2024), "The Llama 3 herd of models", for stretched contexts.
Letters: B rows, T positions, H heads, K head width, P pairs of channels.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedbed.core.errors import ConfigError


def rotary_frequencies(
    head_width: int, *, base: float, scaling: Mapping[str, float | str] | None = None, device: torch.device | None = None
) -> Float[Tensor, "P"]:
    """Return the angle by which each pair of channels turns from one position to the next.

    Scaling "linear" divides all by `factor`; "llama3" divides slow ones (whose wave is longer than the original context over
    `low_freq_factor`), leaves fast ones and blends between. Raises ConfigError for any other kind or a missing number.
    Paper: Su et al. (2021); Grattafiori et al. (2024), "The Llama 3 herd of models", for the blend.
    """
    channels = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    plain_P = 1.0 / base**channels
    if scaling is None:
        return plain_P
    kind = scaling.get("rope_type", scaling.get("type"))
    needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)}
    if kind not in needed:
        raise ConfigError(f"rope_scaling: the kind {kind!r} is not known; known: {', '.join(needed)}")
    missing = [name for name in needed[str(kind)] if not isinstance(scaling.get(name), int | float)]
    if missing:
        raise ConfigError(f"rope_scaling {kind!r} needs numbers for: {', '.join(missing)}")
    factor = float(scaling["factor"])
    if kind == "linear":
        return plain_P / factor
    low, high, original = (float(scaling[name]) for name in ("low_freq_factor", "high_freq_factor", _ORIGINAL))
    turns_P = original * plain_P / (2 * math.pi)  # over the original context
    kept_P = ((turns_P - low) / (high - low)).clamp(0, 1)
    return plain_P * (kept_P + (1 - kept_P) / factor)


_ORIGINAL = "original_max_position_embeddings"


def rotary(positions_BT: Int[Tensor, "B T"], frequencies_P: Float[Tensor, "P"]) -> tuple[Tensor, Tensor]:
    """Return cosine and signed sine of every position and channel, shaped to multiply (B, H, T, K).

    The sine of the first half is negative: there `rotated` subtracts.
    """
    angles = positions_BT[..., None].float() * frequencies_P
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotated(states_BHTK: Float[Tensor, "B H T K"], cos: Tensor, signed_sin: Tensor) -> Float[Tensor, "B H T K"]:
    """Rotate channel k together with channel k + K/2 (the halves convention of Llama)."""
    first, second = states_BHTK.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    return torch.addcmul(states_BHTK * cos, swapped, signed_sin).to(states_BHTK.dtype)
