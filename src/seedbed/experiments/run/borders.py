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

from seedbed.core.errors import ConfigError, DataError, RefusedError
from seedbed.core.records import Role
from seedbed.engine.checkpoints import (
    OBJECTIVES,
    fill_moments,
    latest,
    load_moments,
    load_weights,
    read_state,
    weights_fingerprint,
)
from seedbed.engine.lent import Lent
from seedbed.engine.precision import Machine
from seedbed.engine.system import System
from seedbed.experiments.assemble import build_model, check_parts
from seedbed.experiments.parts import lent_to, rules_of
from seedbed.experiments.plan.run_plan import RunPlan, read_plan
from seedbed.experiments.plan.specs import HF, RECIPE, RUN, StageSpec, WeightsSpec
from seedbed.experiments.run.artefact_facts import unmade
from seedbed.experiments.run.givers import chain_of, giver_plan, place_in
from seedbed.experiments.streams import build_stream
from seedbed.models.forms import form_of, linears_of, owner_of


@dataclass(frozen=True, kw_only=True)
class Giver:
    """What a stage can take over, parameters and buffers by role. `clock` counts the steps of the giver's schedule."""

    name: str
    weights: Mapping[Role, Tensor]
    dense: Mapping[Role, Tensor] = field(default_factory=dict)  # what a linear of another form stands for, by the linear's role
    forms: Mapping[Role, str] = field(default_factory=dict)  # of those linears
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
    if name.startswith(RECIPE):
        giving, checkpoint = of_run(f"{RUN}{place_in(folder, name)}")
    elif name.startswith(RUN):
        giving, checkpoint = of_run(name)
    else:
        giving, checkpoint = plan, folder / "checkpoints" / borders[name]
    try:
        return _opened(giving, checkpoint, spec, name=name)
    except DataError as e:
        raise DataError(
            f"stage {spec.name} takes over from {name}, and cannot: {e}. No other checkpoint can stand in for this one"
        ) from None


def of_run(name: str) -> tuple[RunPlan, Path]:
    """Return plan and checkpoint of run:FOLDER (its newest) or run:FOLDER@STEP. Raises DataError if it is not there."""
    place, step = place_of_run(name)
    giving = read_plan(place)
    if step is None:
        checkpoint = latest(place / "checkpoints")
        if checkpoint is None:
            raise DataError(f"{place} has no checkpoint to take weights from; let it run with `seedbed resume {place}`")
        return giving, checkpoint
    found = {read_state(p)["counters"]["run_step"]: p for p in sorted((place / "checkpoints").glob("[sf]*"))}
    if step not in found:
        steps = ", ".join(map(str, sorted(found))) or "none"
        raise DataError(f"{place} has no checkpoint of step {step}; it has those of steps {steps} (`keep_every` keeps more)")
    return giving, found[step]


def place_of_run(name: str) -> tuple[Path, int | None]:
    """Return folder and step of run:FOLDER@STEP; the step is None where none is named."""
    place, at, step = name.removeprefix(RUN).rpartition("@")
    return (Path(place), int(step)) if at and step.isdecimal() else (Path(name.removeprefix(RUN)), None)


def open_checkpoint(giving: RunPlan, checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model of a checkpoint, with its weights and buffers, and what its state.json says."""
    state = read_state(checkpoint)
    with torch.device("meta"):
        model = build_model(giving, stage_of(giving, state), vocab_size=state["vocab_size"])
    weights = {n: v for n, v in load_weights(checkpoint).items() if not n.startswith(OBJECTIVES)}
    model.load_state_dict(weights, assign=True)
    return model, state


def stage_of(giving: RunPlan, state: Mapping[str, Any]) -> StageSpec:
    """Return the stage in which a checkpoint was written."""
    return giving.stages[min(state["counters"]["stage"], len(giving.stages) - 1)]


def _opened(giving: RunPlan, checkpoint: Path, spec: StageSpec, *, name: str) -> Giver:
    model, state = open_checkpoint(giving, checkpoint)
    roles = {n: Role(*role) for n, role in state["roles"].items()}
    moments = {}
    stage = stage_of(giving, state)
    if "moments" in spec.carry:
        _check_optimizers(spec, stage, name)
        moments = {roles[n]: values for n, values in load_moments(checkpoint).items()}
    converting = linears_of(model)
    with torch.no_grad():
        dense = {role: linear.dense() for role, linear in converting.items()}
    return Giver(
        name=name,
        weights={roles[n]: value for n, value in load_weights(checkpoint).items()},
        dense=dense,
        forms={role: form_of(linear) for role, linear in converting.items()},
        moments=moments,
        clock=state["counters"]["step"] + state["clocks"].get(stage.name, 0) if "clock" in spec.carry else 0,
        fingerprint=weights_fingerprint(state),
    )


def check_givers(plan: RunPlan) -> None:
    """Raise DataError, before anything is trained, if a run or model folder that is taken from or lent is not there.

    RefusedError for a run of the first format; and whatever a model folder or a recipe that cannot be read raises.
    """
    for giving in chain_of(plan):
        check_parts(giving)
    for name, lent in plan.models.items():
        _check_giver(lent.from_.replace("{seed}", str(plan.seed)), path=f"models.{name}.from")
    for spec in plan.all_stages:
        if spec.weights is not None:
            _check_giver(resolved_from(spec.weights, seed=plan.seed), path=f"stages.{spec.name}.weights.from")


def _check_giver(name: str, *, path: str) -> None:
    if name.startswith(HF):
        from seedbed.models import hugging_face

        hugging_face.folder_settings(name.removeprefix(HF))
    if name.startswith(RUN):
        where = place_of_run(name)[0]
        if not (where / "resolved.yaml").is_file():
            raise DataError(
                f"{path}: {where} is not a run folder; give run:FOLDER, as `seedbed run` wrote it ({{seed}} stands for the "
                "run's seed)"
            )
        read_plan(where)


def check_vocabularies(plan: RunPlan, vocabularies: Mapping[str, int]) -> None:
    """Raise ConfigError for a lent model of another vocabulary than a stage that calls it; `vocabularies` are by stream.

    Of a stage whose stream is not among them, a branch's own, nothing is said.
    """
    for spec in plan.all_stages:
        if spec.stream not in vocabularies:
            continue
        for name in lent_to(spec):
            giver = plan.models[name].from_.replace("{seed}", str(plan.seed))
            known = _vocabulary_of_recipe(plan, giver) if giver.startswith(RECIPE) else _vocabulary_of(giver)
            if known is not None and known != vocabularies[spec.stream]:
                raise _another_vocabulary(name, giver, known, spec, vocabularies[spec.stream])


def _vocabulary_of_recipe(plan: RunPlan, giver: str) -> int | None:
    """Return how many ids a model will know that is trained first; None if its data are not made yet."""
    giving = giver_plan(plan, giver)
    if unmade(giving):
        return None
    last = giving.stages[-1]
    stream = build_stream(last.stream, giving.streams[last.stream]).stream
    with torch.device("meta"):
        found: int = build_model(giving, last, vocab_size=stream.vocab_size).vocab_size
    return found


def _vocabulary_of(giver: str) -> int | None:
    if giver.startswith(HF):
        from seedbed.models import hugging_face

        found: int | None = hugging_face.folder_settings(giver.removeprefix(HF)).get("vocab_size")
        return found
    return int(read_state(of_run(giver)[1])["vocab_size"])


def _another_vocabulary(name: str, giver: str, known: int, spec: StageSpec, wanted: int) -> ConfigError:
    return ConfigError(
        f"models.{name}: {giver} knows {known} ids, and stage {spec.name} has {wanted}; lend a model that was trained with the "
        "same tokenizer"
    )


def open_lent(
    plan: RunPlan, spec: StageSpec, *, vocab_size: int, machine: Machine, folder: Path | None = None
) -> dict[str, Lent]:
    """Return the models that the objectives of a stage call, by the names that the recipe gives them, each on the device.

    `folder` is the run's, where models of recipes were trained; without one (nothing is run, only measured) such a model is
    untrained. Raises DataError for a run that is not there, ConfigError for a model whose vocabulary is not the stage's.
    """
    found = {}
    for name in lent_to(spec):
        giver = plan.models[name].from_.replace("{seed}", str(plan.seed))
        model, fingerprint = _lent_model(plan, giver, vocab_size=vocab_size, folder=folder)
        if model.vocab_size != vocab_size:
            raise _another_vocabulary(name, giver, model.vocab_size, spec, vocab_size)
        found[name] = Lent(model=model.to(machine.device), fingerprint=fingerprint)
    return found


def _lent_model(plan: RunPlan, giver: str, *, vocab_size: int, folder: Path | None) -> tuple[Any, str]:
    if giver.startswith(HF):
        return folder_model(giver.removeprefix(HF))
    if giver.startswith(RECIPE):
        if folder is None:
            giving = giver_plan(plan, giver)
            model = build_model(giving, giving.stages[-1], vocab_size=vocab_size)
            model.initialize(seed=plan.seed)
            return model, ""
        giver = f"{RUN}{place_in(folder, giver)}"
    model, state = open_checkpoint(*of_run(giver))
    return model, weights_fingerprint(state)


@torch.no_grad()
def folder_model(folder: str) -> tuple[Any, str]:
    """Return the model of a model folder, with its weights, and their hash."""
    from seedbed.models import hugging_face
    from seedbed.models.decoder import Decoder

    settings, weights = hugging_face.folder_settings(folder), hugging_face.folder_weights(folder)
    embedding = next(value for role, value in weights.items() if role.part == "embedding")
    model = Decoder(**settings).build(vocab_size=len(embedding))
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[model.roles[name]])
    return model, hugging_face.folder_fingerprint(folder)


def check_lent(lent: Mapping[str, Lent], known: dict[str, str]) -> None:
    """Note what a stage's lent models are in `known`. Raises RefusedError if one is another than before the run was stopped."""
    for name, model in lent.items():
        if known.setdefault(name, model.fingerprint) != model.fingerprint:
            raise RefusedError(
                f"models.{name} is not the model any more that this run was begun with; put it back (run:FOLDER@STEP names one "
                "for good), or start a new run with another --out"
            )


def resolved_from(weights: WeightsSpec, *, seed: int) -> str:
    """Return `weights.from` with the run's seed in place of {seed}."""
    return weights.from_.replace("{seed}", str(seed))


@torch.no_grad()
def cross(system: System, spec: StageSpec, giver: Giver, *, seed: int) -> dict[str, str]:
    """Put over what the rules keep; return name -> keep, fresh or redraw. Without "weights" in `carry` nothing is put over.

    A linear whose form is not the giver's takes over the matrix that the giver's stands for. Buffers that are
    kept go over as well. Raises ConfigError for what cannot meet.
    """
    assert spec.weights is not None
    rules = rules_of(spec)
    roles = system.roles
    if "weights" not in spec.carry:
        return dict(rules.actions(roles))
    ours, others = linears_of(system.model), _other_forms(system, giver)
    old = {r: v for r, v in giver.weights.items() if owner_of(r, others) is None or r.tensor.endswith("bias") or r in others}
    old |= {role: giver.dense[role] for role in others if role in giver.dense}
    parameters = dict(system.named_parameters())
    taking = {n: owner_of(role, others & {*ours}) for n, role in roles.items() if not role.tensor.endswith("bias")}
    through = {n: owner for n, owner in taking.items() if owner is not None}
    actions = rules({n: p for n, p in parameters.items() if n not in through}, roles=roles, old=old, seed=seed)
    said = rules.actions({n: roles[n] for n in through})
    for role in dict.fromkeys(through.values()):
        action = {said[n] for n, owner in through.items() if owner == role}
        if action == {"keep"}:
            if role not in old:
                raise ConfigError(f"{giver.name} has no {role}; add it to fresh")
            ours[role].take_dense(old[role])
        elif action != {"fresh"}:
            raise ConfigError(
                f"{role} has another form in {giver.name}, so it is kept or drawn anew as a whole; the rules say "
                f"{', '.join(sorted(action))} of its tensors"
            )
    all_roles = system.all_roles
    meant = rules.actions(all_roles)
    for name, buffer in system.named_buffers():
        value = giver.weights.get(all_roles[name])
        if value is not None and meant[name] == "keep" and owner_of(all_roles[name], others) is None:
            buffer.copy_(value)
    return {n: said[n] if n in said else actions[n] for n in parameters}


def _other_forms(system: System, giver: Giver) -> set[Role]:
    """Return the linears, by role, that are of one form here and of another there."""
    ours = {role: form_of(linear) for role, linear in linears_of(system.model).items()}
    return {role for role in {*ours, *giver.forms} if ours.get(role) != giver.forms.get(role)}


def carry_moments(system: System, optimizer: torch.optim.Optimizer, giver: Giver, actions: Mapping[str, str]) -> int:
    """Give the optimizer the giver's moments of every kept and trained parameter; return how many parameters got them.

    They are of the same weights only: a linear of another form begins without. Raises ConfigError if the shapes differ.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    roles, others = system.roles, _other_forms(system, giver)
    taken = {}
    for name, parameter in system.named_parameters():
        values = giver.moments.get(roles[name])
        if actions[name] != "keep" or id(parameter) not in trained or values is None or owner_of(roles[name], others):
            continue
        misfits = [k for k, v in values.items() if isinstance(v, Tensor) and v.ndim and v.shape != parameter.shape]
        if misfits:
            raise ConfigError(f"the moments of {roles[name]} have another shape in {giver.name}; add it to fresh")
        taken[name] = values
    fill_moments(system, optimizer, taken)
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
