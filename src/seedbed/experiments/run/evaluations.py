"""What a run's model is asked: which evaluation fits which stage, when it is read on the way, what its whole reading leaves.

An evaluation is read in whole once: at the end of the last stage that it fits, or of the one that it is about. Items go to
items/NAME.jsonl; numbers, measures, bar and what stands beside them to final.json, under `evaluations`.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from seedbed import evaluate
from seedbed.core.durable import write_whole
from seedbed.core.errors import ConfigError, DataError, nearest
from seedbed.core.protocols import Evaluator, Material, Subject
from seedbed.core.records import Bar, Cost, Item, Measure, Reading
from seedbed.core.run_record import ITEMS
from seedbed.experiments.parts import model_kind
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.specs import EvaluationSpec, StageSpec, WatchSpec
from seedbed.experiments.run.subject import StageMaterial
from seedbed.experiments.streams import BuiltStream

TEXT = "text"  # what a recipe that names no evaluation is asked, if its last stage is of text


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a plan, with its part."""

    name: str
    spec: EvaluationSpec
    part: Evaluator
    usual: bool = False  # the recipe does not name it

    def why_not(self, stage: StageSpec, material: Material) -> str:
        """Say why a stage is not asked this; "" if it is."""
        if self.spec.stage not in (None, stage.name):
            return f"it is about stage {self.spec.stage}"
        if "causal" in self.part.needs and not material.causal:
            return "the model sees later positions, so what follows is no question to it"
        return self.part.unfit(material)

    def due(self, stage: StageSpec, step: int, *, steps: int) -> bool:
        """Whether it is read after a step of a stage, on the way."""
        watch = self.spec.watch
        if isinstance(watch, WatchSpec):
            return step % watch.every == 0 or step == steps
        return watch and (step % max(1, steps // stage.evaluations) == 0 or step in (*stage.evaluate_at, steps))

    def times(self, stage: StageSpec, *, steps: int) -> int:
        """Return how often that is, about."""
        if isinstance(self.spec.watch, WatchSpec):
            return -(-steps // self.spec.watch.every)
        return min(steps, stage.evaluations + len(stage.evaluate_at)) if self.spec.watch else 0


def evaluations_of(plan: RunPlan) -> dict[str, Evaluation]:
    """Return a plan's evaluations by name, the usual one if it names none. Raises ConfigError with the path in the recipe."""
    usual = plan.evaluate is None
    specs = {TEXT: EvaluationSpec(kind="bits_per_byte")} if plan.evaluate is None else plan.evaluate
    found = {}
    for name, spec in specs.items():
        part: Evaluator = evaluate.parts.once(spec.part, path=f"evaluate.{name}")
        for number in spec.bar:
            if number not in part.measures:
                raise ConfigError(f"evaluate.{name}.bar: no measure {number!r}; {nearest(number, part.measures)}")
        found[name] = Evaluation(name=name, spec=spec, part=part, usual=usual)
    return found


def of_branch(plan: RunPlan, name: str) -> RunPlan:
    """Return a run's plan with what one of its branches trains and is asked.

    That is what the branch says itself, or else those of its run's evaluations that are about no stage of the run.
    """
    branch = plan.branches[name]
    asked = branch.evaluate
    if asked is None and plan.evaluate is not None:
        about = [None, *(s.name for s in branch.stages)]
        asked = {k: spec for k, spec in plan.evaluate.items() if spec.stage in about}
    return plan.model_copy(
        update={
            "stages": branch.stages,
            "branches": {},
            "probes": {},
            "prepare": {},  # which the trunk is charged for
            "evaluate": asked,
            "main_stage": branch.stages[-1].name,
        }
    )


def number_of(plan: RunPlan, metric: str | None) -> tuple[str, str, Measure]:
    """Return evaluation, number and measure that NAME or NAME.NUMBER names; None: the first measure of the first evaluation.

    BRANCH/NAME is an evaluation of a branch. Raises ConfigError for what the plan does not have.
    """
    name, _, number = (metric or "").partition(".")
    branch, slash, asked = name.rpartition("/")
    if slash and branch not in plan.branches:
        raise ConfigError(f"study.metric: arm {plan.arm} has no branch {branch!r}; {nearest(branch, plan.branches)}")
    known = evaluations_of(of_branch(plan, branch) if slash else plan)
    if not known:
        raise ConfigError("study.metric: the recipe has no evaluation to judge by; add one under `evaluate`")
    asked = asked or next(iter(known))
    if asked not in known:
        raise ConfigError(f"study.metric: arm {plan.arm} has no evaluation {asked!r}; {nearest(asked, known)}")
    name, measures = branch + slash + asked, known[asked].part.measures
    number = number or next(iter(measures))
    if number not in measures:
        raise ConfigError(f"study.metric: {name} has no measure {number!r}; {nearest(number, measures)}")
    return name, number, measures[number]


def material_of(plan: RunPlan, stage: StageSpec, built: BuiltStream) -> StageMaterial:
    return StageMaterial(seed=plan.seed, built=built, causal=model_kind(plan, stage).causal)


def ends(plan: RunPlan, built: Mapping[str, BuiltStream]) -> dict[str, str]:
    """Return, by evaluation, the stage at whose end it is read in whole; one that fits no stage is left out."""
    known = evaluations_of(plan)
    found: dict[str, str] = {}
    for stage in plan.stages:
        material = material_of(plan, stage, built[stage.stream])
        found |= {name: stage.name for name, one in known.items() if not one.why_not(stage, material)}
    if plan.evaluate is None and found and found[TEXT] != plan.stages[-1].name:
        return {}
    return {name: found[name] for name in known if name in found}


def check_evaluations(plan: RunPlan, built: Mapping[str, BuiltStream], *, of_trunk: bool = False) -> None:
    """Raise ConfigError or DataError, before anything is trained, for a question that no stage can be asked, or lacks data.

    `of_trunk`: the plan is that of a branch which is asked whatever fits of its run's evaluations.
    """
    whole = ends(plan, built)
    for name, one in evaluations_of(plan).items():
        reasons = []
        for stage in plan.stages:
            material = material_of(plan, stage, built[stage.stream])
            reason = one.why_not(stage, material)
            if reason:
                reasons.append(f"stage {stage.name}: {reason}")
                continue
            reads = whole.get(name) == stage.name and (plan.test or not one.part.reads_test)
            try:
                one.part.check(material, whole=reads)
            except (ConfigError, DataError) as e:
                raise type(e)(f"evaluate.{name}: {e}") from None
        if len(reasons) == len(plan.stages) and not (one.usual or of_trunk or plan.positions):
            raise ConfigError(
                f"evaluate.{name}: it fits no stage of arm {plan.arm} ({'; '.join(reasons)}); leave it out, or say under "
                "`stage` which one it is about: arms without that stage leave it out"
            )


def warnings(plan: RunPlan, built: Mapping[str, BuiltStream]) -> dict[str, str]:
    """Return, by evaluation, what makes its numbers compare with no others, as far as data tell it beforehand."""
    known, stages, found = evaluations_of(plan), {s.name: s for s in plan.stages}, {}
    for name, stage in ends(plan, built).items():
        said = known[name].part.warning(material_of(plan, stages[stage], built[stages[stage].stream]))
        if said:
            found[name] = said
    return found


def read_whole(
    one: Evaluation,
    stage: str,
    subject: Subject,
    folder: Path,
    *,
    charge: Callable[[Cost], None],
    write: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Read an evaluation in whole; write its items and return what final.json says of it."""
    started = time.perf_counter()
    reading = one.part.read(subject)
    numbers = dict(one.part.summary(reading.items))
    charge(Cost(seconds=time.perf_counter() - started))
    if write:
        lines = "".join(json.dumps(asdict(item)) + "\n" for item in reading.items)
        write_whole(folder / ITEMS / f"{one.name}.jsonl", lines)
    bar = own_bar(one, numbers) or reading.bar
    found = {
        "kind": one.spec.kind,
        "stage": stage,
        "measures": {name: asdict(measure) for name, measure in one.part.measures.items()},
        "numbers": numbers,
        "questions": questions(reading.items),
        **({"bar": asdict(bar)} if bar else {}),
        **({"facts": dict(reading.facts)} if reading.facts else {}),
        **({"figure": dict(reading.figure)} if reading.figure else {}),
        **({"notes": list(reading.notes)} if reading.notes else {}),
    }
    for line in said_of(one, numbers, bar, reading):
        log(line)
    return json.loads(json.dumps(found))


def own_bar(one: Evaluation, numbers: Mapping[str, float]) -> Bar | None:
    """Return the bar that a recipe sets, held against what was read."""
    for number, level in one.spec.bar.items():
        less = one.part.measures[number].better == "less"
        met = numbers[number] <= level if less else numbers[number] >= level
        return Bar(number=number, level=level, met=met, unmet=f"did not come to {number} {level:g}")
    return None


def questions(items: Iterable[Item]) -> str:
    """Return a hash of what was asked, so that two runs can be seen to have answered the same."""
    return sha256("\n".join(item.id for item in items).encode()).hexdigest()[:16]


def said_of(one: Evaluation, numbers: Mapping[str, float], bar: Bar | None, reading: Reading) -> Iterable[str]:
    """Give the log's lines on a whole reading."""
    shown = [f"{numbers[name]:.4f} {measure.unit}" for name, measure in one.part.measures.items() if name in numbers]
    yield f"{one.name}: {', '.join(shown)} ({len(reading.items)} items)"
    if bar is not None:
        level = ", ".join([f"the bar {bar.level:.4f}", *(f"{name} {value:.3f}" for name, value in bar.levels.items())])
        yield f"{one.name}: {'reached the bar' if bar.met else bar.unmet}; {level}"
    yield from (f"note: {note}" for note in reading.notes)
