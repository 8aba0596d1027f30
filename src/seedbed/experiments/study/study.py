"""A study: every arm with every seed, side by side, then one verdict.

What is compared is written down (study.json) before the first run starts. A study that was stopped goes on where it was; runs
that ended are not run again, failed ones stay in the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from seedbed.core.durable import check_place, locked, write_json, write_whole
from seedbed.core.errors import ConfigError, RefusedError
from seedbed.engine.precision import available_threads, settled_device
from seedbed.engine.ranks import Ranks
from seedbed.experiments.assemble import check_parts
from seedbed.experiments.environment import commit
from seedbed.experiments.estimate.memory import check_fits
from seedbed.experiments.estimate.timing import timed
from seedbed.experiments.plan.arms import parse_seeds
from seedbed.experiments.plan.load import Loaded, load, recipe_text_of
from seedbed.experiments.plan.run_plan import RunPlan, plan_hash, read_plan
from seedbed.experiments.plan.study_specs import StudySpec
from seedbed.experiments.run.artefact_facts import refuse_unmade
from seedbed.experiments.run.borders import check_givers, check_vocabularies
from seedbed.experiments.run.branches import check_branches
from seedbed.experiments.run.evaluations import ends, evaluations_of, material_of, of_branch, warnings
from seedbed.experiments.run.of_streams import check_readings
from seedbed.experiments.run.prepared import make_all
from seedbed.experiments.run.run import create, refuse_packed
from seedbed.experiments.run.tracking import checked_kinds
from seedbed.experiments.streams import BuiltStream, build_stream
from seedbed.experiments.study.comparison import Comparison, compared
from seedbed.experiments.study.design import Design, read_design, refuse_late_seeds
from seedbed.experiments.study.outcomes import settled
from seedbed.experiments.study.side_by_side import RunStatus, quiet, run_all

AA_STREAM = "init-second"  # the random stream of the body's initial weights in the second arm of an A/A study


def compare(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    scale: str | None = None,
    sets: Mapping[str, Any] | None = None,
    corpus: str | None = None,
    seeds: str | Sequence[int] | None = None,
    jobs: int = 1,
    threads: int | None = None,
    aa: bool = False,
    device: str = "auto",
    precision: str | None = None,
    data_workers: int = 0,
    track: Sequence[str] = (),
    say: Callable[[str], None] = print,
    watch: Callable[[list[RunStatus]], None] | None = None,
    ready: Callable[[], None] | None = None,
    command: str = "",
) -> Comparison:
    """Run a study (or what is left of it) and return its comparison; writes comparison.json and report.html.

    `ready` is called when all is looked at and laid down, before the first run.

    Raises ConfigError if the recipe has no study, RefusedError if the folder holds another study or seeds come too late,
    RunFailedError if a run's process was killed, InterruptedRunError after a signal.
    """
    loaded = load(recipe, scale=scale, sets=sets, corpus=corpus)
    study = loaded.recipe.study
    if study is None:
        raise ConfigError(
            f"the recipe {loaded.recipe.name} has no study to compare; use `seedbed run`, or add a `study:` block"
        )
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    wanted = _wanted_seeds(loaded, seeds)
    threads = threads or max(1, available_threads() // jobs)
    device = settled_device(device)  # the same for every run, also when the study goes on elsewhere
    checked_kinds(track)
    where = {"device": device, "precision": precision, "threads": threads, "data_workers": data_workers}
    folder = Path(out) if out else Path("runs") / (loaded.recipe.name + ("-aa" if aa else ""))
    check_place(folder, folder=True)
    plans = _plans(loaded, wanted, aa=aa, where=where)
    _check_arms(plans)
    make_all(plans.values(), say=say)
    plans = timed_plans(plans, folder)
    design = _design(loaded, plans, wanted, aa=aa, command=command)
    first = [plans[arm, wanted[0]] for arm in (design.control, *design.arms)]
    readers = check_data(first)
    _check_judged(first, readers, design, study)
    with locked(folder):
        _prepare(folder, design, plans, recipe_text=recipe_text_of(recipe), say=say)
        if ready is not None:
            ready()
        run_all(folder, plans, jobs=jobs, threads=threads, watch=watch or quiet, track=track)
        found = compared(folder)
    from seedbed.report.page import write_study_page

    write_study_page(folder)
    return found


def _wanted_seeds(loaded: Loaded, seeds: str | Sequence[int] | None) -> list[int]:
    """Return a study's seeds: those that are asked for, or the recipe's. Raises RefusedError for one that tuning has used."""
    wanted = parse_seeds(seeds) if seeds is not None else loaded.seeds
    used = set(wanted) & set(loaded.recipe.tune.seeds if loaded.recipe.tune else ())
    if used:
        raise RefusedError(f"the seeds {sorted(used)} were used for tuning; a study takes others")
    return wanted


def _check_arms(plans: Mapping[tuple[str, int], RunPlan]) -> None:
    """Look at the parts of every arm, and at what every run takes over or is lent."""
    for plan in {arm: plan for (arm, _), plan in plans.items()}.values():
        check_parts(plan)
    for plan in plans.values():
        check_givers(plan)


def resume_study(
    folder: Path,
    *,
    jobs: int = 1,
    track: Sequence[str] = (),
    watch: Callable[[list[RunStatus]], None] | None = None,
) -> Comparison:
    """Go on with the runs of a study folder that have not ended; nothing about it is changed."""
    design = read_design(folder)
    runs = {(arm, seed): folder / arm / f"seed-{seed}" for arm in [design.control, *design.arms] for seed in design.seeds}
    with locked(folder):
        _check_plans(folder, design)
        run_all(
            folder,
            {k: read_plan(run) for k, run in runs.items()},
            jobs=jobs,
            threads=max(1, available_threads() // jobs),
            watch=watch or quiet,
            track=track,
        )
        found = compared(folder)
    from seedbed.report.page import write_study_page

    write_study_page(folder)
    return found


def _plans(loaded: Loaded, seeds: Sequence[int], *, aa: bool, where: Mapping[str, Any]) -> dict[tuple[str, int], RunPlan]:
    study = loaded.recipe.study
    assert study is not None
    if not aa:
        return {(arm, seed): loaded.plan(arm=arm, seed=seed, **where) for arm in loaded.arms for seed in seeds}
    control = study.control.name
    plans = {}
    for seed in seeds:
        plans[control, seed] = plan = loaded.plan(arm=control, seed=seed, **where)
        fresh = {f"stages.{s.name}.body_stream": AA_STREAM for s in plan.stages if s.weights is None}
        again = loaded.plan(arm=control, seed=seed, changes=fresh, **where)
        plans["again", seed] = again.model_copy(update={"arm": "again"})
    return plans


def timed_plans(plans: Mapping[tuple[str, int], RunPlan], folder: Path) -> dict[tuple[str, int], RunPlan]:
    """Return plans whose budgets in seconds are steps: every arm is timed once, for all its seeds, or as the study began."""
    first: dict[str, RunPlan] = {}
    for (arm, _), plan in plans.items():
        if arm not in first:
            begun = sorted((folder / arm).glob("seed-*/resolved.yaml"))
            first[arm] = timed(plan, known=read_plan(begun[0].parent) if begun else None)
    return {(arm, seed): timed(plan, known=first[arm]) for (arm, seed), plan in plans.items()}


def check_data(plans: Sequence[RunPlan]) -> dict[str, dict[str, BuiltStream]]:
    """Raise what missing or bad data of any plan raise, and what cannot fit; return the streams by arm."""
    found: dict[str, BuiltStream] = {}
    readers: dict[str, dict[str, BuiltStream]] = {}
    for plan in plans:
        refuse_unmade(plan)
        built: dict[str, BuiltStream] = {}
        for name in plan.used_streams:
            key = f"{name} {plan.streams[name].model_dump_json()}"
            if key not in found:
                found[key] = build_stream(name, plan.streams[name])
            built[name] = found[key]
        check_readings(plan, built)
        check_branches(plan)
        check_fits(plan, built, Ranks())
        check_vocabularies(plan, {name: b.stream.vocab_size for name, b in built.items()})
        readers[plan.arm] = built
    return readers


def _check_judged(
    plans: Sequence[RunPlan], readers: Mapping[str, Mapping[str, BuiltStream]], design: Design, study: StudySpec
) -> None:
    """Raise ConfigError if an arm has no value of the metric, or the arms' tokens are such that no number compares them."""
    outcome, measure = settled(plans[0], design.metric)
    name = outcome.evaluation
    tokenizers, asked_of = {}, {}
    for plan in plans:
        built = dict(readers[plan.arm])
        branch, _, asked = name.rpartition("/")
        if branch:
            plan = of_branch(plan, branch)
            built = {n: built.get(n) or build_stream(n, spec) for n, spec in plan.used_streams.items()}
        stage = ends(plan, built).get(asked)
        if stage is None:
            reason = evaluations_of(plan)[asked].why_not(
                plan.stages[-1], material_of(plan, plan.stages[-1], built[plan.stages[-1].stream])
            )
            raise ConfigError(
                f"study.metric: {name} fits no stage of arm {plan.arm} (the last: {reason}), so the metric has no value there"
            )
        main = next(s for s in plan.stages if s.name == plan.main_stage)
        unread = evaluations_of(plan)[asked].why_not(main, material_of(plan, main, built[main.stream]))
        if outcome.function and unread:
            raise ConfigError(
                f"study.metric: {name} is not read on the way through stage {main.name} of arm {plan.arm}: {unread}"
            )
        asked_of[plan.arm] = (plan, built, asked)
        reader = built[next(s.stream for s in plan.stages if s.name == stage)].tokenizer
        if reader is not None:
            tokenizers[plan.arm] = reader.fingerprint()
    if len(set(tokenizers.values())) < 2:
        return
    if measure.per_token:
        raise ConfigError(
            f"study.metric: {measure.unit} compare only where tokens are the same, and the arms have other tokenizers "
            f"({', '.join(f'{arm}: {tokenizer}' for arm, tokenizer in tokenizers.items())}); take one that counts per byte "
            f"({name}.bits_per_byte)"
        )
    for plan, built, asked in asked_of.values():
        lost = warnings(plan, built).get(asked, "")
        if lost and not study.lossy_tokenizers:
            raise ConfigError(
                f"arm {plan.arm}: {lost}, but the arms of this study have other tokenizers; take one without loss (`seedbed "
                "tokenizer check` shows what is lost), or set study.lossy_tokenizers: true if that is what you study"
            )


def _design(
    loaded: Loaded, plans: Mapping[tuple[str, int], RunPlan], seeds: Sequence[int], *, aa: bool, command: str
) -> Design:
    study = loaded.recipe.study
    assert study is not None
    control = study.control.name
    arms = tuple(dict.fromkeys(arm for arm, _ in plans if arm != control))
    main = plans[control, seeds[0]]
    stage = next(s for s in main.stages if s.name == main.main_stage)
    schedule = stage.schedule if isinstance(stage.schedule, str) else stage.schedule["kind"]
    names = {control, *arms}
    if not aa and study.looks and len(seeds) not in study.looks:
        raise RefusedError(f"the recipe declares looks at {study.looks} seeds; {len(seeds)} seeds are none of them")
    outcome, measure = settled(main, study.metric)
    name, metric = outcome.evaluation, f"{outcome.evaluation}.{outcome.key}"
    for plan in plans.values():
        settled(plan, metric)
        branch, _, asked = name.rpartition("/")
        part = evaluations_of(of_branch(plan, branch) if branch else plan)[asked].part
        if not plan.test and part.reads_test:
            raise ConfigError(f"`test` is off, and a study is judged by {name} on its test part; switch it on")
    for pair in study.contrasts:
        if not aa and not set(pair) <= names:
            raise ConfigError(f"study.contrasts: {list(pair)} names an arm that is not there; arms: {', '.join(sorted(names))}")
    return Design(
        name=loaded.recipe.name + (" A/A" if aa else ""),
        title=loaded.recipe.title,
        control=control,
        arms=arms,
        seeds=tuple(seeds),
        metric=metric,
        unit=measure.unit,
        better=measure.better,
        alpha=study.alpha,
        margin=study.margin,
        looks=() if aa else tuple(study.looks),
        contrasts=() if aa else tuple(study.contrasts),
        main_stage=main.main_stage,
        budget={stage.budget.currency: getattr(stage.budget, stage.budget.currency)},
        schedule=schedule,
        published_nats=study.published_nats,
        aa=aa,
        tuned={} if aa else dict(study.tuned),
        tuning_records=tuple(loaded.recipe.tune.records) if loaded.recipe.tune else (),
        tuned_by_search=tuple(loaded.recipe.tune.grids) if loaded.recipe.tune else (),
        plans={arm: plans[arm, seeds[0]].model_copy(update={"seed": 0}).fingerprint() for arm in [control, *arms]},
        commit=commit(),
        command=command,
    )


def _prepare(
    folder: Path,
    design: Design,
    plans: Mapping[tuple[str, int], RunPlan],
    *,
    recipe_text: str,
    say: Callable[[str], None],
) -> None:
    """Lay down study.json and the run folders, or find that they are there and the same."""
    refuse_packed(folder, "to add runs to")
    if (folder / "study.json").is_file():
        known = read_design(folder)
        refuse_late_seeds(folder, known, design.seeds)
        fixed = [f for f in asdict(design) if f not in ("seeds", "commit", "command")]
        changed = [f for f in fixed if asdict(design)[f] != asdict(known)[f]]
        if changed:
            raise RefusedError(
                f"{folder} holds another study: {', '.join(changed)} differ(s); give another --out, "
                "or the recipe it was begun with"
            )
        if not set(design.seeds) >= set(known.seeds):
            raise RefusedError(
                f"{folder} was begun with seeds {list(known.seeds)}; fewer are refused: leaving seeds out after the fact "
                "is not a test"
            )
        say(f"going on with the study in {folder}")
        if design.seeds != known.seeds:
            write_json(folder / "study.json", asdict(replace(known, seeds=design.seeds)))
    elif any(p.name != ".lock" for p in folder.iterdir()):
        raise RefusedError(f"{folder} is not empty and holds no study; nothing is overwritten: give another --out")
    else:
        write_json(folder / "study.json", asdict(design))
        write_whole(folder / "recipe.yaml", recipe_text)
    for (arm, seed), plan in plans.items():
        run = folder / arm / f"seed-{seed}"
        if not (run / "resolved.yaml").is_file():
            create(plan, run, recipe_text=recipe_text)
    _check_plans(folder, read_design(folder))


def _check_plans(folder: Path, design: Design) -> None:
    """Raise RefusedError if a run folder's plan is not the one that the study fixed."""
    for arm in (design.control, *design.arms):
        for seed in design.seeds:
            plan = read_plan(folder / arm / f"seed-{seed}")
            if plan.seed != seed or plan_hash(folder / arm / f"seed-{seed}") != design.plans[arm]:
                run = folder / arm / f"seed-{seed}"
                raise RefusedError(
                    f"{run / 'resolved.yaml'} was changed since the study began; put it back, or start a "
                    "new study with another --out"
                )
