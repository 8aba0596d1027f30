"""What is lent to parts that prepare: helpers of the room `scorers`, on the trained models of a recipe.

A `Lending` goes to every worker process, which opens models when they are first called.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from seedbed import scorers, tokenizers
from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.protocols import Helper, HelperKind
from seedbed.core.records import Cost, OpenModel
from seedbed.experiments.plan.numbers import Part
from seedbed.experiments.plan.specs import HF

CAN = ("score", "embed", "classify")


@dataclass(frozen=True, kw_only=True)
class Lending:
    """Parts by the name under which they are lent; models by theirs, as run:FOLDER, run:FOLDER@STEP or hf:FOLDER."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    def check(self, name: str, calls: Mapping[str, str], *, path: str) -> None:
        """Raise ConfigError if a part calls what is not lent, or what cannot do what it is called for."""
        for lent, what in calls.items():
            if lent not in self.parts:
                raise ConfigError(f"{path}: {name} calls {lent!r}, which is not under `lent`; {nearest(lent, self.parts)}")
            gives = self.kinds[lent].gives
            if what not in gives:
                raise ConfigError(f"{path}: {name} calls {lent} to {what}, and that can {', '.join(gives)}")

    @property
    def kinds(self) -> dict[str, HelperKind]:
        """The checked settings of what is lent. Raises ConfigError, with the path, for what does not fit."""
        found = {name: scorers.parts.build(part, path=f"lent.{name}") for name, part in self.parts.items()}
        for name, kind in found.items():
            for model in kind.models:
                if model not in self.models:
                    raise ConfigError(f"lent.{name}: no model {model!r} under `models`; {nearest(model, self.models)}")
        return found

    def opened(self) -> dict[str, Helper]:
        """Return what is lent, by name; each model of a process is opened once. Raises what opening a run raises."""
        return {
            name: _opened(json.dumps(self.parts[name]), name, tuple(self._as_it_is(model) for model in kind.models))
            for name, kind in self.kinds.items()
        }

    def _as_it_is(self, model: str) -> tuple[str, str, str]:
        """A model's name, what it comes from, and the state that it has there now."""
        return model, self.models[model], state_of(self.models[model])

    def fingerprints(self) -> dict[str, str]:
        """Return, of all that is lent, the hash of what decides its answers."""
        return {name: helper.fingerprint() for name, helper in self.opened().items()}


def spent(lent: Mapping[str, Helper]) -> Cost:
    """Return what calls of all helpers cost since the last time."""
    return sum((helper.spent() for helper in lent.values()), Cost())


@lru_cache(maxsize=8)
def _opened(part: str, name: str, models: tuple[tuple[str, str, str], ...]) -> Helper:
    kind: HelperKind = scorers.parts.build(json.loads(part), path=f"lent.{name}")
    return kind.opened({model: _model(giver, state) for model, giver, state in models})


def state_of(giver: str) -> str:
    """Return what changes when a run was trained further: whoever opened its model before opens it anew."""
    from seedbed.engine.checkpoints import read_state, weights_fingerprint
    from seedbed.experiments.run.borders import of_run

    if giver.startswith(HF):
        from seedbed.models.hugging_face import folder_fingerprint

        return folder_fingerprint(giver.removeprefix(HF))

    return weights_fingerprint(read_state(of_run(giver)[1]))


@lru_cache(maxsize=4)
def _model(giver: str, state: str) -> OpenModel:
    return _of_folder(giver.removeprefix(HF)) if giver.startswith(HF) else _of_run(giver)


def _of_run(giver: str) -> OpenModel:
    """Return the model of run:FOLDER[@STEP]. Raises DataError if that is not there, or not of the run's last stage."""
    from seedbed.engine.checkpoints import load_checkpoint, read_state, weights_fingerprint  # torch comes with these
    from seedbed.engine.precision import settled_device
    from seedbed.experiments.assemble import build_model, build_system
    from seedbed.experiments.parts import model_kind
    from seedbed.experiments.run.borders import of_run, place_of_run, stage_of
    from seedbed.experiments.run.carried import reader_of

    giving, checkpoint = of_run(giver)
    state = read_state(checkpoint)
    stage = stage_of(giving, state)
    if stage is not giving.stages[-1]:
        raise DataError(f"{giver} is of the stage {stage.name}; what is lent to read texts comes from a run's last stage")
    system = build_system(giving, stage, build_model(giving, stage, vocab_size=state["vocab_size"]))
    load_checkpoint(checkpoint, model=system)
    system.requires_grad_(False).eval().to(settled_device("auto"))
    reader = reader_of(place_of_run(giver)[0], giving)
    return OpenModel(
        model=system.model,
        own=system.own,
        tokenizer=reader.tokenizer,
        seq_len=reader.seq_len,
        causal=model_kind(giving, stage).causal,
        fingerprint_of_weights=weights_fingerprint(state),
    )


def _of_folder(folder: str) -> OpenModel:
    """Return the model of a model folder; its tokenizer.json has to lie in it."""
    from seedbed.engine.precision import settled_device
    from seedbed.experiments.run.borders import folder_model

    model, fingerprint = folder_model(folder)
    return OpenModel(
        model=model.requires_grad_(False).eval().to(settled_device("auto")),
        tokenizer=tokenizers.parts.build({"kind": "file", "path": folder}, path=f"{HF}{folder}"),
        seq_len=None,
        causal=True,
        fingerprint_of_weights=fingerprint,
    )
