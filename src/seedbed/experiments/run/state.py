"""Where a run stands and what it has found out: what a checkpoint says beside weights, moments and facts of the machine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from seedbed.core.ledger import Ledger
from seedbed.engine.train import Counters


@dataclass(kw_only=True)
class RunState:
    """All by stage, but for counters, ledger, lent models, artefacts and evaluations."""

    counters: Counters
    ledger: Ledger = field(default_factory=Ledger)
    borders: dict[str, str] = field(default_factory=dict)  # the checkpoint at a stage's end
    clocks: dict[str, int] = field(default_factory=dict)  # the steps that its schedule had behind it
    transfer: dict[str, dict[str, str]] = field(default_factory=dict)  # what became of every parameter at its border
    givers: dict[str, dict[str, Any]] = field(default_factory=dict)  # what it took from, and the hash of that
    lent: dict[str, str] = field(default_factory=dict)  # model by the recipe's name -> the hash of its weights
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: what was read in whole so far
    trained_first: dict[str, dict[str, str]] = field(default_factory=dict)  # recipe:NAME -> charged or given, and its plan
    prepared: dict[str, dict[str, str]] = field(default_factory=dict)  # artefact by name -> charged or given, and its hash
    waited: dict[str, float] = field(default_factory=dict)  # the share of its steps' time that it waited for rows

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "RunState":
        counters, ledger = Counters(**saved["counters"]), Ledger.from_json(saved["ledger"])
        return cls(counters=counters, ledger=ledger, **{name: saved.get(name, {}) for name in _BY_STAGE})

    def to_json(self) -> dict[str, Any]:
        by_stage = {name: getattr(self, name) for name in _BY_STAGE}
        return {"counters": asdict(self.counters), "ledger": self.ledger.to_json(), **by_stage}


_BY_STAGE = ("borders", "clocks", "transfer", "givers", "lent", "evaluations", "trained_first", "prepared", "waited")
