"""What a run has spent, stage by stage: nothing that an arm used is left out.

Tokens are what the model was shown, by source. Beside training stand the making of rows (rejected tries included), the
evaluations, the passes of lent models, and whatever else a part of a run charges under a name of its own. FLOPs come from the
model's own formula (forward times three for a training step; frozen parameters are charged as if they were trained, an upper
bound); seconds are wall-clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from seedbed.core.records import Cost


@dataclass
class Ledger:
    """Adds up costs by (stage, line): "train", "generate" (rows and rejected tries), "evaluate", "lent", and any other name."""

    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)  # stage -> source -> tokens shown

    def charge(self, stage: str, line: str, cost: Cost) -> None:
        if line == "tokens":
            raise AssertionError("a ledger line called tokens would stand in the place of the tokens shown")
        if not cost.given_by:
            at_stage = self.costs.setdefault(stage, {})
            at_stage[line] = at_stage.get(line, Cost()) + cost

    def show(self, stage: str, source: str, tokens: int) -> None:
        """Count tokens of a source that the model was shown."""
        at_stage = self.tokens.setdefault(stage, {})
        at_stage[source] = at_stage.get(source, 0) + tokens

    def total(self, stages: Iterable[str] | None = None) -> Cost:
        return sum(
            (c for s, lines in self.costs.items() if stages is None or s in set(stages) for c in lines.values()),
            Cost(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return stage -> {tokens: {source: n}, train: {...}, generate: {...}, evaluate: {...}}, ready for JSON."""
        return {
            stage: {
                "tokens": dict(self.tokens.get(stage, {})),
                **{
                    line: {
                        "positions": c.positions,
                        "flops_run": c.flops_run,
                        "flops_ideal": c.flops_ideal,
                        "seconds": c.seconds,
                    }
                    for line, c in self.costs.get(stage, {}).items()
                },
            }
            for stage in sorted({*self.costs, *self.tokens})
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Ledger":
        ledger = cls()
        for stage, lines in saved.items():
            ledger.tokens[stage] = dict(lines["tokens"])
            ledger.costs[stage] = {name: Cost(**c) for name, c in lines.items() if name != "tokens"}
        return ledger
