"""What arrives over a stage's border: weights, moments, clock; from an earlier stage, another run or a model folder.

This is no resume. A resume goes on with everything as it was. A stage that takes over begins its budget anew: it takes the
weights that its rules keep, and if `carry` names them the optimizer's moments of those same parameters, and the clock, so that
its schedule goes on where the giver's stood (else it begins anew: the rate is re-warmed).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedbed.core.errors import ConfigError, DataError
from seedbed.core.records import Role
from seedbed.engine.checkpoints import fill_moments, latest, load_moments, load_weights, read_state, weights_fingerprint
from seedbed.experiments.assemble import build_model
from seedbed.experiments.recipe import HF, RUN, RunPlan, StageSpec, WeightsSpec, read_plan
from seedbed.transfer.rules import Rules


@dataclass(frozen=True, kw_only=True)
class Giver:
    """What a stage can take over. `clock` counts the steps that the giver's schedule had made."""

    name: str
    weights: Mapping[Role, Tensor]
    moments: Mapping[Role, Mapping[str, Any]] = field(default_factory=dict)
    clock: int = 0
    fingerprint: str = ""


def open_giver(plan: RunPlan, spec: StageSpec, *, folder: Path, borders: Mapping[str, str]) -> Giver:
    """Return what stands under a stage's `weights.from`; `borders` are this run's checkpoints by stage.

    Raises DataError if it is not there or harmed, ConfigError if it cannot give what `carry` asks for.
    """
    assert spec.weights is not None
    name = resolved_from(spec.weights, seed=plan.seed)
    if name.startswith(HF):
        from seedbed.models import hugging_face

        model = name.removeprefix(HF)
        return Giver(name=name, weights=hugging_face.folder_weights(model), fingerprint=hugging_face.folder_fingerprint(model))
    if name.startswith(RUN):
        place = Path(name.removeprefix(RUN))
        giving, checkpoint = read_plan(place), latest(place / "checkpoints")
        if checkpoint is None:
            raise DataError(f"{place} has no checkpoint to take weights from; let it run with `seedbed resume {place}`")
    else:
        giving, checkpoint = plan, folder / "checkpoints" / borders[name]
    try:
        return _opened(giving, checkpoint, spec, name=name)
    except DataError as e:
        raise DataError(
            f"stage {spec.name} takes over from {name}, and cannot: {e}. No other checkpoint can stand in for this one"
        ) from None


def _opened(giving: RunPlan, checkpoint: Path, spec: StageSpec, *, name: str) -> Giver:
    state = read_state(checkpoint)
    stage = giving.stages[min(state["counters"]["stage"], len(giving.stages) - 1)]
    with torch.device("meta"):
        roles: Mapping[str, Role] = build_model(giving, vocab_size=8).roles
    moments = {}
    if "moments" in spec.carry:
        _check_optimizers(spec, stage, name)
        moments = {roles[n]: values for n, values in load_moments(checkpoint).items()}
    return Giver(
        name=name,
        weights={roles[n]: value for n, value in load_weights(checkpoint).items() if n in roles},
        moments=moments,
        clock=state["counters"]["step"] + state["extras"]["clock"].get(stage.name, 0) if "clock" in spec.carry else 0,
        fingerprint=weights_fingerprint(state),
    )


def check_givers(plan: RunPlan) -> None:
    """Raise DataError, before anything is trained, if a run or model folder that a stage takes from is not there.

    Whatever is raised for a model folder that cannot be read is raised here too.
    """
    for spec in plan.stages:
        if spec.weights is None:
            continue
        kind, colon, place = resolved_from(spec.weights, seed=plan.seed).partition(":")
        if kind + colon == HF:
            from seedbed.models import hugging_face

            hugging_face.folder_settings(place)
        if kind + colon == RUN and not (Path(place) / "resolved.yaml").is_file():
            raise DataError(
                f"stages.{spec.name}.weights.from: {place} is not a run folder; give run:FOLDER, as `seedbed run` wrote it "
                "({seed} stands for the run's seed)"
            )


def resolved_from(weights: WeightsSpec, *, seed: int) -> str:
    """Return `weights.from` with the run's seed in place of {seed}."""
    return weights.from_.replace("{seed}", str(seed))


def cross(model: Any, spec: StageSpec, giver: Giver, *, seed: int) -> dict[str, str]:
    """Put over what the rules keep; return name -> keep, fresh or redraw. Without "weights" in `carry` nothing is put over."""
    assert spec.weights is not None
    rules = Rules(fresh=tuple(spec.weights.fresh), redraw=tuple(spec.weights.redraw), keep=tuple(spec.weights.keep))
    parameters = dict(model.named_parameters())
    if "weights" not in spec.carry:
        return rules.actions(model.roles)
    return rules(parameters, roles=model.roles, old=giver.weights, seed=seed)


def carry_moments(model: Any, optimizer: torch.optim.Optimizer, giver: Giver, actions: Mapping[str, str]) -> int:
    """Give the optimizer the giver's moments of every kept and trained parameter; return how many parameters got them.

    Raises ConfigError if the shapes differ.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    taken = {}
    for name, parameter in model.named_parameters():
        values = giver.moments.get(model.roles[name])
        if actions[name] != "keep" or id(parameter) not in trained or values is None:
            continue
        misfits = [k for k, v in values.items() if isinstance(v, Tensor) and v.ndim and v.shape != parameter.shape]
        if misfits:
            raise ConfigError(f"the moments of {model.roles[name]} have another shape in {giver.name}; add it to fresh")
        taken[name] = values
    fill_moments(model, optimizer, taken)
    return len(taken)


def described(spec: StageSpec, giver: Giver, actions: Mapping[str, str], *, moments: int, steps: int) -> str:
    """Say what arrived, as a line of the log."""
    counts = {action: list(actions.values()).count(action) for action in ("keep", "redraw", "fresh")}
    kept = ", ".join(f"{n} {action}" for action, n in counts.items() if n)
    weights = f"weights ({kept})" if "weights" in spec.carry else "no weights (drawn anew)"
    state = f"moments of {moments} parameters" if "moments" in spec.carry else "moments begin at zero"
    clock = (
        f"the schedule continues at step {giver.clock} of {giver.clock + steps}"
        if "clock" in spec.carry
        else "the schedule begins anew"
    )
    return f"stage {spec.name} takes over from {giver.name}: {weights}; {state}; {clock}"


def _check_optimizers(spec: StageSpec, giving: StageSpec, name: str) -> None:
    mine, theirs = (o if isinstance(o, str) else o.get("kind") for o in (spec.optimizer, giving.optimizer))
    if mine != theirs:
        raise ConfigError(
            f"stages.{spec.name}.carry: moments of {theirs} ({name}) mean nothing to {mine}; take the same optimizer, or leave "
            "moments out"
        )
