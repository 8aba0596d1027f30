"""Frames to tokens and back: non-overlapping patches as numbers in base n, framed by a start and an end token.

Token of a patch = sum over its cells (raster order) of state x n^j, so the first cell is the units digit. The vocabulary
holds n^(p*p) patches, then the start token, then the end token.
Letters: F frames, G grid side, P patches in a frame, T tokens (F * (P + 2)).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8

from seedbed.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The tokenizer of grids; exact in both directions."""

    states: int
    grid: int
    patch: int

    def __post_init__(self) -> None:
        if self.grid % self.patch:
            raise ConfigError(
                f"patch must divide grid; got patch {self.patch} and grid {self.grid}; "
                f"allowed patches: {[p for p in range(1, self.grid + 1) if self.grid % p == 0]}"
            )

    @property
    def start_id(self) -> int:
        return self.states ** (self.patch**2)

    @property
    def end_id(self) -> int:
        return self.start_id + 1

    @property
    def vocab_size(self) -> int:
        return self.start_id + 2

    @property
    def per_frame(self) -> int:
        return (self.grid // self.patch) ** 2

    @property
    def frame_tokens(self) -> int:
        return self.per_frame + 2

    def encode(self, frames_FGG: UInt8[np.ndarray, "F G G"]) -> Int32[np.ndarray, "F P"]:
        """Return patch tokens without delimiters."""
        side, p = self.grid // self.patch, self.patch
        cells = frames_FGG.reshape(-1, side, p, side, p).transpose(0, 1, 3, 2, 4).reshape(-1, side * side, p * p)
        return cells.astype(np.int32) @ (self.states ** np.arange(p * p)).astype(np.int32)

    def decode(self, patches_FP: Int32[np.ndarray, "F P"]) -> UInt8[np.ndarray, "F G G"]:
        """Return the grids of patch tokens (the inverse of encode)."""
        side, p = self.grid // self.patch, self.patch
        cells = patches_FP[..., None] // self.states ** np.arange(p * p) % self.states
        blocks = cells.reshape(-1, side, side, p, p).transpose(0, 1, 3, 2, 4)
        return blocks.reshape(-1, self.grid, self.grid).astype(np.uint8)

    def framed(self, patches_FP: Int32[np.ndarray, "F P"]) -> Int32[np.ndarray, "T"]:
        """Return one token sequence: start, patches, end, frame by frame."""
        count = len(patches_FP)
        start = np.full((count, 1), self.start_id, dtype=np.int32)
        return np.concatenate([start, patches_FP, start + 1], axis=1).reshape(-1)

    def unframed(self, tokens_T: Int32[np.ndarray, "T"]) -> Int32[np.ndarray, "F P"]:
        """Return the patches of all whole frames. Raises ConfigError if a delimiter is not where it belongs."""
        whole = len(tokens_T) // self.frame_tokens
        frames = np.asarray(tokens_T[: whole * self.frame_tokens], dtype=np.int32).reshape(whole, -1)
        if not ((frames[:, 0] == self.start_id).all() and (frames[:, -1] == self.end_id).all()):
            raise ConfigError(
                f"these tokens do not begin each frame of {self.frame_tokens} with {self.start_id} "
                f"and end it with {self.end_id}; check states, grid and patch"
            )
        return frames[:, 1:-1]
