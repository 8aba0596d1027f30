"""Has a model learned to infer rules in context? Its loss on rules that no training row used, beside floors that need no rule.

It counts as learned at least `margin` below the best of the floors (rule_floors.py). Beside it stands how well the model
completes whole frames (frame_completion.py). Only patch tokens after the first frame are scored.
Paper: "Training Language Models via Neural Cellular Automata" (2026), arXiv 2603.10055, for the question; floors are ours.
Letters: R rows, T tokens of a row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from seedbed.core.bounds import MOST_ROWS, check_ranges, within
from seedbed.core.errors import DataError
from seedbed.core.protocols import Evaluator, Frames, Material, Neutral, Subject
from seedbed.core.records import Bar, Item, Measure, Reading
from seedbed.evaluate.frame_completion import frame_completion
from seedbed.evaluate.rule_floors import Floors, floors_of, nats_by_frame, scored


@dataclass(frozen=True, kw_only=True)
class RuleInference(Evaluator):
    """`rows` held-out rows are read, and frames of the first `completed_rows` completed; `margin` in nats per patch token."""

    neutral: ClassVar[Neutral] = "it reads losses and changes nothing"
    rows: int = within(1, MOST_ROWS, default=128)
    completed_rows: int = within(1, MOST_ROWS, default=32)
    margin: float = within(0.0, 100.0, default=0.1)
    measures: ClassVar[Mapping[str, Measure]] = {"loss_nats": Measure(unit="nats per patch token", per_token=True)}
    needs: ClassVar[tuple[str, ...]] = ("causal",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def unfit(self, material: Material) -> str:
        return "" if isinstance(material.source, Frames) else "its rows are not frames of one automaton, in their order"

    def watched(self, subject: Subject) -> dict[str, float]:
        return dict(self.summary(self._items(subject)[0]))

    def read(self, subject: Subject) -> Reading:
        """Return an item a row, the bar, losses and floors by frame, and the accuracies of completed frames."""
        items, nll_RT, tokens_RT = self._items(subject)
        source = _frames(subject)
        training = np.stack([row.tokens_T for row in subject.rows("train", count=self.rows)])
        floors = floors_of(tokens_RT, training_SU=training, frame_tokens=source.frame_tokens, cells=source.cells)
        loss, level = self.summary(items)["loss_nats"], floors.best - self.margin
        completed = frame_completion(
            _choose(subject, below=source.patch_ids),
            tokens_RT[: self.completed_rows],
            frame_tokens=source.frame_tokens,
            decode=source.decode,
        )
        by_frame = nats_by_frame(nll_RT, frame_tokens=source.frame_tokens)
        return Reading(
            items=items,
            bar=Bar(
                number="loss_nats",
                level=level,
                met=loss <= level,
                unmet="did not learn: nothing to transfer",
                levels={f"floor: {name}": nats for name, nats in floors.whole.items()},
            ),
            facts={
                "margin_nats": self.margin,
                "by_frame_nats": by_frame,
                "floors_by_frame_nats": floors.by_frame,
                "completion": asdict(completed),
            },
            figure=_figure(by_frame, floors),
        )

    def summary(self, items: Sequence[Item]) -> dict[str, float]:
        """Return loss_nats per scored token, rows and tokens."""
        nats, tokens = (sum(i.values[name] for i in items) for name in ("nats", "tokens"))
        if not tokens:
            raise DataError("no row was read, so there is no loss to tell")
        return {"loss_nats": nats / tokens, "rows": len(items), "tokens": int(tokens)}

    def tokens(self, material: Material, *, whole: bool) -> float:
        return float(self.rows * material.seq_len * (2 if whole else 1))

    def _items(self, subject: Subject) -> tuple[list[Item], Float[np.ndarray, "R T"], Int[np.ndarray, "R T+1"]]:
        held_out = subject.rows("valid", count=self.rows)
        tokens_RT = np.stack([np.concatenate([row.tokens_T[:1], row.targets_T]) for row in held_out])
        nll_RT = subject.nats(held_out)
        asked_T = scored((1, tokens_RT.shape[1]), _frames(subject).frame_tokens)[0, 1:]
        items = [
            Item(id=f"valid-{r}", group="rows", values={"nats": float(nll_T[asked_T].sum()), "tokens": float(asked_T.sum())})
            for r, nll_T in enumerate(nll_RT.astype(np.float64))
        ]
        return items, nll_RT, tokens_RT


def _frames(subject: Subject) -> Frames:
    source = subject.source
    assert isinstance(source, Frames), "it fits the stage"
    return source


def _choose(subject: Subject, *, below: int) -> Callable[[Any, int], Any]:
    return lambda tokens_RT, last: subject.likeliest(tokens_RT, last, below=below)


def _figure(by_frame: list[float], floors: Floors) -> dict[str, Any]:
    return {
        "caption": "Rules that the model never saw: loss by frame, beside what simple statistics reach from frame 1 on.",
        "xlabel": "frame of the roll-out",
        "ylabel": "nats per patch token",
        "lines": {"model": [list(range(1, len(by_frame) + 1)), by_frame]},
        "levels": {f"floor: {name}": nats for name, nats in floors.whole.items()},
    }
