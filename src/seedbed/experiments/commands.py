"""The commands that act on one run or one plan: run, resume, evaluate a text, sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.core.bounds import MOST_BYTES
from seedbed.core.durable import locked
from seedbed.core.errors import ConfigError, DataError, RefusedError, nearest
from seedbed.core.protocols import Tokenizer
from seedbed.core.records import Measurement
from seedbed.core.run_record import FEEDBACK
from seedbed.engine.checkpoints import latest, load_checkpoint, read_state
from seedbed.engine.precision import prepare_machine
from seedbed.engine.ranks import join_ranks
from seedbed.evaluate.bits_per_byte import BitsPerByte, items_of, summary
from seedbed.experiments.assemble import build_model, check_parts, reads_text
from seedbed.experiments.estimate.memory import check_fits
from seedbed.experiments.estimate.timing import timed
from seedbed.experiments.parts import model_kind
from seedbed.experiments.plan.load import Loaded, load, recipe_text_of
from seedbed.experiments.plan.run_plan import RunPlan, read_plan
from seedbed.experiments.run.artefact_facts import refuse_unmade
from seedbed.experiments.run.borders import check_givers, check_vocabularies
from seedbed.experiments.run.branches import check_branches
from seedbed.experiments.run.carried import Reader, reader_of
from seedbed.experiments.run.evaluations import evaluations_of
from seedbed.experiments.run.feedback import append
from seedbed.experiments.run.layout import Session
from seedbed.experiments.run.of_streams import check_readings
from seedbed.experiments.run.prepared import make_all
from seedbed.experiments.run.run import RunResult, create, execute, finished, refuse_packed, refuse_taken
from seedbed.experiments.run.tracking import checked_kinds
from seedbed.experiments.streams import BuiltStream, build_stream
from seedbed.experiments.study.comparison import Comparison
from seedbed.experiments.study.outcomes import settled
from seedbed.experiments.study.side_by_side import RunStatus
from seedbed.experiments.study.study import resume_study
from seedbed.mixture.weighted import CHANGED, check_weights
from seedbed.scorers.own_run import ModelReader
from seedbed.writers.sample import Sample


def plan_run(
    recipe: str | Path,
    *,
    arm: str | None = None,
    seed: int = 0,
    scale: str | None = None,
    sets: Mapping[str, Any] | None = None,
    corpus: str | None = None,
    prepares: Callable[[RunPlan], None] | None = None,
    **where: Any,
) -> RunPlan:
    """Return the checked plan of one run: of a study the control and seed 0, unless said. `where` as for `Loaded.plan`.

    `prepares` is given the plan before anything is measured, to make its artefacts.
    """
    loaded = load(recipe, scale=scale, sets=sets, corpus=corpus)
    plan = loaded.plan(arm=arm or loaded.arms[0], seed=seed, **where)
    check_parts(plan)
    check_givers(plan)
    if prepares is not None:
        prepares(plan)
    return timed(plan)


def validated(recipe: str | Path, **settings: Any) -> Loaded:
    """Return a recipe whose every arm was looked at as a run would be, without training; `settings` as for `load`."""
    loaded = load(recipe, **settings)
    for arm in loaded.arms:
        plan = loaded.plan(arm=arm, seed=0)
        check_parts(plan)
        check_givers(plan)
        if plan.prepare and _unmade(plan):
            continue  # what they will hold is looked at when they are made
        checked_streams(plan)
        if loaded.recipe.study is not None:
            settled(plan, loaded.recipe.study.metric)
    return loaded


def _unmade(plan: RunPlan) -> list[Path]:
    from seedbed.experiments.prepare.artefacts import check_artefacts  # whose curation compiles: slow to import

    return check_artefacts(plan)


def checked_streams(plan: RunPlan) -> dict[str, BuiltStream]:
    """Return a plan's streams. Raises what missing artefacts, missing data, questions that cannot be asked and models that
    don't fit raise."""
    refuse_unmade(plan)
    built = {name: build_stream(name, spec) for name, spec in plan.used_streams.items()}
    check_readings(plan, built)
    check_branches(plan)
    check_vocabularies(plan, {name: b.stream.vocab_size for name, b in built.items()})
    return built


def run(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    say: Callable[[str], None] = print,
    track: Sequence[str] = (),
    **settings: Any,
) -> RunResult:
    """Train one arm with one seed and return its result; `settings` as for `plan_run`, `track` names services that follow.

    Raises RefusedError if the run folder exists, RunFailedError for a loss that is not finite.
    """
    checked_kinds(track)

    def prepares(plan: RunPlan) -> None:
        refuse_taken(_folder_of(plan, out))
        make_all([plan], say=say)

    plan = plan_run(recipe, prepares=prepares, **settings)
    folder = _folder_of(plan, out)
    refuse_taken(folder)
    built = checked_streams(plan)  # missing or bad data is found before a folder is made
    check_fits(plan, built, join_ranks())
    create(plan, folder, recipe_text=recipe_text_of(recipe))
    return execute(folder, say=say, session=Session(track=tuple(track)))


def _folder_of(plan: RunPlan, out: str | Path | None) -> Path:
    return Path(out) if out else Path("runs") / plan.name / plan.arm / f"seed-{plan.seed}"


def resume(
    folder: str | Path,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    watch: Callable[[list[RunStatus]], None] | None = None,
    weights: Mapping[str, Mapping[str, float]] | None = None,
    session: Session | None = None,
) -> RunResult | Comparison:
    """Go on with a run or a study where it stopped. A run that was killed before its first checkpoint starts again.

    A run goes on with the threads and micro-batches that it was begun with, unless its `session` says otherwise.
    `weights`, stream -> source -> weight, hold for a run's mixture from its next window on; no row is lost or repeated by it.
    """
    folder = Path(folder)
    refuse_packed(folder, "to resume")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give a run or study folder")
    if (folder / "study.json").is_file():
        if weights:
            raise RefusedError("a study's arms are fixed before its first run; weights can be changed in a single run only")
        if session is not None and session != Session(track=session.track):
            raise RefusedError("a study's runs go on as they were begun; resume a single run to change how it computes")
        return resume_study(folder, jobs=jobs, watch=watch, track=session.track if session else ())
    if weights:
        ranks = join_ranks()
        if ranks.first:
            change_weights(folder, weights)
        ranks.wait()
    return execute(folder, say=say, session=session)


def change_weights(folder: Path, weights: Mapping[str, Mapping[str, float]]) -> None:
    """Record, in a run's feedback, weights that hold from its last checkpoint on (from the mixture's next window).

    Raises ConfigError for a stream or source that is not there, RefusedError if the run has ended.
    """
    plan = read_plan(folder)
    for name, values in weights.items():
        if name not in plan.streams:
            raise ConfigError(f"no stream {name!r}; {nearest(name, plan.streams)}")
        stream = build_stream(name, plan.streams[name]).stream
        if not stream.mixture.weighted:
            raise ConfigError(f"the mixture of stream {name} has no weights to change; begin a run with `mixture: weighted`")
        if set(values) != set(stream.sources):
            raise ConfigError(
                f"weights of stream {name} need one number for each of: {', '.join(stream.sources)}; got {dict(values)}"
            )
        check_weights(values)
    with locked(folder):
        if finished(folder) is not None:
            raise RefusedError(f"the run in {folder} has ended; its weights can no longer be changed")
        last = latest(folder / "checkpoints")
        at: dict[str, Any] = read_state(last)["counters"] if last else {"run_step": 0, "positions": {}}
        for name, values in weights.items():
            change = Measurement(step=at["run_step"], position=at["positions"].get(name, 0), name=CHANGED, values=dict(values))
            append(folder / FEEDBACK, name, change)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run's model, ready to use, with what it is read with."""

    plan: RunPlan
    model: Any
    reader: Reader

    @property
    def tokenizer(self) -> Tokenizer:
        return self.reader.tokenizer

    @property
    def seq_len(self) -> int:
        return self.reader.seq_len


def open_run(folder: str | Path, *, device: str = "auto") -> Trained:
    """Return the model of a run's last stage from its newest checkpoint."""
    folder = Path(folder)
    plan = read_plan(folder)
    refuse_packed(folder, "to sample, evaluate or export")
    checkpoint = latest(folder / "checkpoints")
    if checkpoint is None:
        raise DataError(f"{folder} has no checkpoint yet; let it run on with `seedbed resume {folder}`")
    if read_state(checkpoint)["counters"]["stage"] < len(plan.stages) - 1:
        raise DataError(f"{folder} has not reached its last stage yet; let it run on with `seedbed resume {folder}`")
    reader = reader_of(folder, plan)
    model = build_model(plan, plan.stages[-1], vocab_size=reader.vocab_size)
    machine = prepare_machine(device=device, precision="float32", threads=plan.threads, width=0)
    load_checkpoint(checkpoint, model=model)
    return Trained(plan=plan, model=model.to(machine.device).eval(), reader=reader)


def evaluate_text(
    folder: str | Path, text: str, *, text_key: str = "text", device: str = "auto", stride: int | None = None
) -> dict[str, float]:
    """Return loss_nats, perplexity, bits_per_byte, tokens and bytes of text under a run's model.

    `text` is a file, folder, glob, builtin:NAME or hub:NAME, or a prepared folder, whose documents are read as text again.
    """
    from seedbed.experiments.prepare.inputs import documents_of  # whose curation compiles: slow to import
    from seedbed.experiments.prepare.preparation import Preparation

    trained = open_run(folder, device=device)
    asked = Preparation(paths=(text,), text_key=text_key, document_bytes=MOST_BYTES)
    documents = [d for d in documents_of(text, asked) if d.text]
    if not reads_text(trained.plan, trained.plan.stages[-1]):
        raise ConfigError(
            f"the model of {folder} sees later positions, so it cannot be asked what follows in a text; take a causal one"
        )
    scorer = ModelReader(
        model=trained.model,
        tokenizer=trained.tokenizer,
        seq_len=trained.seq_len,
        stride=stride or _stride_of(trained.plan),
    )
    losses = scorer.score([d.data.get("ids", d.text) for d in documents])
    return summary(items_of(documents, losses, trained.tokenizer))


def _stride_of(plan: RunPlan) -> int | None:
    """The windows in which a run's own held-out text was read."""
    parts = (one.part for one in evaluations_of(plan).values())
    return next((part.stride for part in parts if isinstance(part, BitsPerByte)), None)


def sample(
    folder: str | Path,
    prompts: Sequence[str],
    *,
    new_tokens: int = 200,
    samples: int = 1,
    seed: int = 0,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str] = (),
    device: str = "auto",
) -> list[str]:
    """Return `samples` continuations of each prompt by a run's model, one prompt after the other; see writers/sample.py."""
    trained = open_run(folder, device=device)
    how = Sample(temperature=temperature, top_k=top_k, top_p=top_p, stop=list(stop))
    writer = how.opened(
        model=trained.model,
        stepper=model_kind(trained.plan, trained.plan.stages[-1]).stepper,
        tokenizer=trained.tokenizer,
        seq_len=trained.seq_len,
    )
    return writer.write(prompts, new_tokens=new_tokens, samples=samples, seed=seed)
