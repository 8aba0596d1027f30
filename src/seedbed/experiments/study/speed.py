"""Tokens at which an arm reaches what its reference reaches last: of the main stage alone, and with all stages charged."""

from collections.abc import Mapping, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

from seedbed.core.run_record import RunRecord
from seedbed.experiments.study.design import Design
from seedbed.experiments.study.outcomes import Curve, crossing, turned
from seedbed.experiments.study.statistics import Contrast


def tokens_to_reach(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Return the tokens at which a validation curve first reaches a loss and stays there at the next evaluation.

    Interpolated linearly in (log tokens, loss); None if it is never reached. `curve` holds (tokens, loss), tokens rising.
    """
    for i, (tokens, loss) in enumerate(curve):
        if loss > target or (i + 1 < len(curve) and curve[i + 1][1] > target):
            continue
        if i == 0:
            return float(tokens)
        before_tokens, before = curve[i - 1]
        if loss == target or before <= target:
            return float(tokens)
        share = (before - target) / (before - loss)
        return exp(log(before_tokens) + share * (log(tokens) - log(before_tokens)))
    return None


def speed(c: Contrast, design: Design, finals: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Tokens at which the arm reaches the reference's last value on the way: main stage only, and with all stages charged."""
    per_seed, crossed, main_only, charged = {}, {}, [], []
    for seed in c.per_seed:
        curves = [_curve(folder / arm / f"seed-{seed}", finals[arm][seed], design) for arm in (c.arm, c.reference)]
        if not all(curves):
            continue  # it is not watched
        crossed[str(seed)] = crossing(*curves)
        target = curves[1][-1]
        reached = tokens_to_reach(curves[0], target[1])
        before = sum(
            sum(lines["tokens"].values())
            for stage, lines in finals[c.arm][seed]["ledger"].items()
            if stage != design.main_stage
        )
        reference_before = sum(
            sum(lines["tokens"].values())
            for stage, lines in finals[c.reference][seed]["ledger"].items()
            if stage != design.main_stage
        )
        per_seed[str(seed)] = {"tokens": reached, "reference_tokens": target[0], "earlier_tokens": before}
        main_only.append(None if reached is None else target[0] / reached)
        charged.append(None if reached is None else (target[0] + reference_before) / (reached + before))
    return {
        "per_seed": per_seed,
        "crossing": crossed,  # tokens from which on the arm is ahead, for good
        "speedup_main_stage": _median(main_only),
        "speedup_charged": _median(charged),
        "biased": design.schedule != "wsd",
        "why": "an arm's loss before the rate has fallen is held against a loss after it: a lower bound"
        if design.schedule == "wsd"
        else f"under {design.schedule} the losses on the way are inflated by a rate that has not fallen yet",
    }


def _curve(run: Path, final: Mapping[str, Any], design: Design) -> Curve:
    """Return (tokens, value) on the way through the main stage, turned so that less is better: losses where there are some."""
    outcome = design.outcome
    for number in ("loss_nats", outcome.number):
        curve = RunRecord(run).watched(outcome.evaluation, number, stage=design.main_stage)
        measure = final["evaluations"][outcome.evaluation]["measures"].get(number)
        if curve and measure:
            return turned(curve, measure["better"])
    return []


def _median(values: Sequence[float | None]) -> float | None:
    """The median, a run that never reached the target counting as 0; None if the median run did not reach it."""
    ranked = sorted(0.0 if v is None else v for v in values)
    if not ranked:
        return None
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    return None if 0.0 in middle else sum(middle) / len(middle)
