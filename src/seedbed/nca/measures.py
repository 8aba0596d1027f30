"""What a roll-out does, beside its gzip ratio: entropy, mutual information over time, spreading of damage.

Entropy and mutual information are plug-in estimates over all cells and frames of one roll-out, so small grids bias them upward.
Papers: Langton (1990), "Computation at the edge of chaos" (entropy and mutual information of cells); Derrida and Pomeau (1986),
"Random networks of automata" (damage).
Letters: F frames, G grid side, N states.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from seedbed.nca.automaton import Automaton
from seedbed.nca.rollout import roll_out

DAMAGE_UPDATES = 10


def entropy_bits(frames_FGG: UInt8[np.ndarray, "F G G"], *, states: int) -> float:
    """Return the entropy of a cell's state in bits: 0 if all cells are alike for ever, log2(states) at most."""
    return _entropy(np.bincount(frames_FGG.ravel(), minlength=states))


def mutual_information_bits(frames_FGG: UInt8[np.ndarray, "F G G"], *, states: int) -> float:
    """Return the mutual information between a cell and the same cell one frame later, in bits.

    0 for a world that stands in one state or is pure noise; high where the present tells the future and there is much to tell.
    """
    before, after = frames_FGG[:-1].astype(np.int64), frames_FGG[1:].astype(np.int64)
    joint_NN = np.bincount((before * states + after).ravel(), minlength=states**2).reshape(states, states)
    return _entropy(joint_NN.sum(1)) + _entropy(joint_NN.sum(0)) - _entropy(joint_NN.ravel())


def damage(automaton: Automaton, index: int, *, seed: int, split: str = "train") -> float:
    """Return the share of cells that differ after ten updates if one cell of the first kept frame is changed.

    Both worlds see the same noise. The rule is the accepted one of the index. 0: healed; 1 / cells: kept; more: spread.
    """
    made = automaton.rollout(index, frames=1, seed=seed, split=split)
    rule = automaton.rule(index, attempt=made.tries - 1, seed=seed, split=split)
    changed = made.frames_FGG[0].copy()
    changed[0, 0] = (changed[0, 0] + 1) % automaton.states
    ends = [
        roll_out(
            rule,
            grid,
            key=automaton.start_key(index, attempt=made.tries - 1, seed=seed, split=split),
            frames=1,
            burn_in=DAMAGE_UPDATES,
            stride=1,
            temperature=automaton.temperature,
            identity_bias=automaton.identity_bias,
            updates_done=automaton.burn_in,
        )
        for grid in (made.frames_FGG[0], changed)
    ]
    return float((ends[0] != ends[1]).mean())


def described(automaton: Automaton, *, rules: int, measured: int, seed: int) -> dict[str, Any]:
    """Return what random rules are like, ready for JSON: gzip ratios, how many a band accepts, and of the first `measured` the
    other measures, each as quantiles."""
    survey = automaton.survey(rules, seed=seed)
    free = replace(automaton, band=(0.0, 2.0))
    behavior: dict[str, list[float]] = {"entropy_bits": [], "mutual_information_bits": [], "damage": []}
    for i in range(min(rules, measured)):
        world = free.rollout(i, frames=10, seed=seed).frames_FGG
        behavior["entropy_bits"].append(entropy_bits(world, states=automaton.states))
        behavior["mutual_information_bits"].append(mutual_information_bits(world, states=automaton.states))
        behavior["damage"].append(damage(free, i, seed=seed))
    shares = np.histogram(survey.ratios, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 10])[0] / rules

    def quantiles(values: Any) -> dict[str, float]:
        return {str(q): float(np.quantile(values, q)) for q in survey.quantiles}

    return {
        "rules": rules,
        "quantiles": quantiles(survey.ratios),
        "shares": dict(zip(["0-.1", ".1-.2", ".2-.3", ".3-.4", ".4-.5", ".5+"], map(float, shares), strict=True)),
        "ceiling": survey.ceiling,
        "quantiles_normalized": {q: value / survey.ceiling for q, value in quantiles(survey.ratios).items()},
        "band": list(survey.band),
        "acceptance": survey.acceptance,
        **{name: quantiles(values) for name, values in behavior.items()},
    }


def _entropy(counts: Float[np.ndarray, "..."] | np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0
