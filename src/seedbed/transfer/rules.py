"""Decides key by key, by role, what a new model takes from an old one.

The published rule keeps attention, MLP and norms and re-initializes embedding and head: `fresh: [embedding, head]`.
`redraw` keeps only the mean and the spread of a tensor, the control of Wu, Li and Liang (2022), "Insights into pre-training
via simpler synthetic tasks".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from seedbed.core.draws import stream
from seedbed.core.errors import ConfigError
from seedbed.core.patterns import first_match
from seedbed.core.protocols import Neutral, Transfer
from seedbed.core.records import Role


@dataclass(frozen=True, kw_only=True)
class Rules(Transfer):
    """Role patterns, tried in the order fresh, redraw, keep; a parameter that none matches is an error."""

    neutral: ClassVar[Neutral] = {"fresh": (), "redraw": (), "keep": ("*",)}
    fresh: tuple[str, ...] = ("embedding", "head")
    redraw: tuple[str, ...] = ()
    keep: tuple[str, ...] = ("*",)

    @property
    def patterns(self) -> dict[str, tuple[str, ...]]:
        return {"fresh": self.fresh, "redraw": self.redraw, "keep": self.keep}

    @property
    def draws_anew(self) -> bool:
        return bool(self.fresh)

    @torch.no_grad()
    def __call__(
        self, new: Mapping[str, Tensor], *, roles: Mapping[str, Role], old: Mapping[Role, Tensor], seed: int
    ) -> dict[str, str]:
        """Fill the parameters in `new` and return what was done with each: name -> "keep", "fresh" or "redraw".

        Raises ConfigError if a parameter matches no pattern, or one to keep is missing or has another shape.
        """
        report = self.actions({name: roles[name] for name in new})
        for name, parameter in new.items():
            role, action = roles[name], report[name]
            if action != "fresh":
                value = self._old_value(role, parameter, old)
                if action == "redraw":
                    draws = stream(seed, "redraw", str(role)).standard_normal(tuple(value.shape))
                    noise = torch.from_numpy(draws).to(value)
                    value = value.mean() + value.std(correction=0) * noise
                parameter.copy_(value)
        return report

    def actions(self, roles: Mapping[str, Role]) -> dict[str, str]:
        """Return what the rules say of each parameter: name -> "keep", "fresh" or "redraw".

        Raises ConfigError if a parameter matches no pattern.
        """
        num_layers = 1 + max((r.layer for r in roles.values() if r.layer is not None), default=-1)
        report = {}
        for name, role in roles.items():
            found = (a for a in ("fresh", "redraw", "keep") if first_match(getattr(self, a), role, num_layers=num_layers))
            action = next(found, None)
            if action is None:
                raise ConfigError(f"no rule says what becomes of {role}; name it under keep, fresh or redraw")
            report[name] = action
        return report

    @staticmethod
    def _old_value(role: Role, parameter: Tensor, old: Mapping[Role, Any]) -> Tensor:
        if role not in old:
            raise ConfigError(f"the old model has no {role}; add it to fresh")
        if old[role].shape != parameter.shape:
            raise ConfigError(
                f"{role} has shape {tuple(old[role].shape)} in the old model and {tuple(parameter.shape)} in the new; "
                "add it to fresh"
            )
        return old[role]
