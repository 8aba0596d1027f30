"""Rows of tokens rolled out from neural cellular automata, each row from a rule of its own.

A row holds as many frames as its length asks for, cut at the end. The tokens of the first frame are shown but not counted:
nothing before them tells the rule. Delimiters after the first frame do count, as in the published code.
Paper: "Training Language Models via Neural Cellular Automata" (2026), arXiv 2603.10055.
Letters: R rows, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32, UInt8

from seedbed.core.bounds import LONGEST_ROW, within
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Neutral, Source
from seedbed.core.records import Cost, Exhibit, Row
from seedbed.nca import Automaton
from seedbed.nca.automaton import Rollout
from seedbed.nca.drawing import png, strips

Roller = Callable[..., tuple[list[Rollout], Int32[np.ndarray, "R T"]]]
"""(automaton, indices, frames, seed, split): what `Automaton.rollouts` returns."""


@dataclass(frozen=True, kw_only=True)
class NcaRows(Automaton, Source):
    """Settings of the automaton and the length of a row; `rule_pool` given, rules repeat as in the published code."""

    neutral: ClassVar[Neutral] = "random worlds have no setting without worlds; the control of a stage is to leave it out"
    seq_len: int = within(1, LONGEST_ROW, default=1024)  # shown tokens; a row has one more, the last target
    count_first_frame: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seq_len < 2 * self.frame_tokens:
            raise ConfigError(
                f"a row of {self.seq_len} tokens does not hold two frames of {self.frame_tokens}; "
                "take a longer seq_len, a smaller grid or a larger patch"
            )

    @property
    def vocab_size(self) -> int:
        return self.patches.vocab_size

    @property
    def frame_tokens(self) -> int:
        return self.patches.frame_tokens

    @property
    def patch_ids(self) -> int:
        return self.patches.start_id

    @property
    def cells(self) -> tuple[int, int]:
        return self.states, self.patch**2

    @property
    def described(self) -> dict[str, str]:
        """Return what tells automata apart in a table."""
        low, high = self.band
        band = f"{low:g}–{high:g}" + (" of ceiling" if self.band_of == "normalized" else "")
        return {"states": str(self.states), "grid": str(self.grid), "patch": str(self.patch), "band": band}

    def decode(self, patches_RP: Int32[np.ndarray, "R P"]) -> UInt8[np.ndarray, "R G G"]:
        """Return the cells of frames."""
        return self.patches.decode(patches_RP)

    @property
    def frames(self) -> int:
        """Frames that a row needs, the last one perhaps cut."""
        return -(-(self.seq_len + 1) // self.frame_tokens)

    def size(self, split: str) -> None:
        """Rows never end and never repeat (unless `rule_pool` is given; start states are fresh even then)."""

    def rows(self, indices: Sequence[int], *, seed: int, split: str) -> list[Row]:
        """Return the asked rows; each depends on (seed, split, its index) alone. Rejected rules are in its cost."""
        weights_T = np.ones(self.seq_len + 1, dtype=np.float32)
        if not self.count_first_frame:
            weights_T[: self.frame_tokens] = 0
        made, tokens_RT = self.__dict__.get("_roller", Automaton.rollouts)(
            self, indices, frames=self.frames, seed=seed, split=split
        )
        rows = []
        for rollout, tokens_T in zip(made, tokens_RT, strict=True):
            flops = float(rollout.updates * self.update_flops)
            rows.append(
                Row(
                    tokens_T=tokens_T[: self.seq_len + 1],
                    weights_T=weights_T,
                    labels={"gzip_ratio": rollout.ratio, "tries": rollout.tries},
                    cost=Cost(flops_run=flops, flops_ideal=flops),
                )
            )
        return rows

    def rolled_by(self, roller: Roller) -> "NcaRows":
        """Return this source with its roll-outs made elsewhere, as by `seedbed.nca.rollout_torch`: the same bytes."""
        other = replace(self)
        object.__setattr__(other, "_roller", roller)
        return other

    def on(self, device: Any) -> "NcaRows":
        """Return this source with its roll-outs made on a GPU, where the device is one: the same bytes."""
        if device.type != "cuda":
            return self
        from seedbed.nca.rollout_torch import TorchRoller  # which brings torch

        return self.rolled_by(TorchRoller(device))

    def exhibit(self, *, seed: int, rules: int = 400) -> Exhibit:
        """Return what a reader should see of this source: accepted roll-outs as a picture, and the ratios it chose from."""
        made = [self.rollout(i, frames=8, seed=seed) for i in range(5)]
        survey = self.survey(rules, seed=seed)
        ratios = ", ".join(f"{r.ratio:.3f}" for r in made)
        return Exhibit(
            picture=png(strips([r.frames_FGG for r in made], states=self.states, scale=6, gap=6)),
            facts={
                "caption": (
                    f"The first five rules of the training rows, frames from left to right: {self.states} states, "
                    f"{self.grid}x{self.grid} cells, {self.patch}x{self.patch} patches, gzip ratios {ratios}."
                ),
                "histogram": {
                    "name": "complexity",
                    "caption": (f"How complex random rules are: {survey.acceptance:.0%} of them lie in the accepted band."),
                    "values": [round(float(r), 6) for r in survey.ratios],
                    "xlabel": "gzip ratio of ten frames",
                    "ylabel": f"rules (of {len(survey.ratios)})",
                    "span": {"from": survey.band[0], "to": survey.band[1], "label": "accepted band"},
                    "line": {"at": survey.ceiling, "label": "random tokens"},
                },
            },
        )
