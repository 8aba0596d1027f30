"""A study: every arm with every seed, side by side, then one verdict.

What is compared is written down (study.json) before the first run starts. A study that was stopped goes on where it was; runs
that ended are not run again, failed ones stay in the table.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seedbed.core.durable import check_place, locked, write_json, write_whole
from seedbed.core.errors import ConfigError, DataError, InterruptedRunError, RefusedError, RunFailedError, SeedbedError
from seedbed.core.json_files import read_json
from seedbed.engine.precision import available_threads, settled_device
from seedbed.engine.ranks import Ranks
from seedbed.experiments.assemble import check_parts, reads_text
from seedbed.experiments.borders import check_givers
from seedbed.experiments.comparison import Comparison, Design, compared, read_design, refuse_late_seeds
from seedbed.experiments.environment import commit
from seedbed.experiments.memory import check_fits
from seedbed.experiments.readings import check_held_out, text_lost
from seedbed.experiments.recipe import Loaded, RunPlan, StudySpec, load, parse_seeds, read_plan, recipe_text_of
from seedbed.experiments.run import create, finished, refuse_packed
from seedbed.experiments.signals import PARENT, STOPPING
from seedbed.experiments.streams import BuiltStream, build_stream, gives_text
from seedbed.experiments.tracking import checked_kinds

AA_STREAM = "init-second"  # the random stream of the body's initial weights in the second arm of an A/A study


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where one run of a study stands, for whoever shows it. `state`: waiting, running, done or failed."""

    arm: str
    seed: int
    state: str
    stage: str = ""
    step: int = 0
    steps_done: int = 0
    loss_nats: float | None = None


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
    wanted = parse_seeds(seeds) if seeds is not None else loaded.seeds
    if loaded.recipe.tune and set(wanted) & set(loaded.recipe.tune.seeds):
        raise RefusedError(
            f"the seeds {sorted(set(wanted) & set(loaded.recipe.tune.seeds))} were used for tuning; a study takes others"
        )
    threads = threads or max(1, available_threads() // jobs)
    device = settled_device(device)  # the same for every run, also when the study goes on elsewhere
    checked_kinds(track)
    where = {"device": device, "precision": precision, "threads": threads, "data_workers": data_workers}
    plans = _plans(loaded, wanted, aa=aa, where=where)
    folder = Path(out) if out else Path("runs") / (loaded.recipe.name + ("-aa" if aa else ""))
    check_place(folder, folder=True)
    design = _design(loaded, plans, wanted, aa=aa, command=command)
    for arm in [design.control, *design.arms]:
        check_parts(plans[arm, wanted[0]])
    for plan in plans.values():
        check_givers(plan)
    first = [plans[arm, wanted[0]] for arm in (design.control, *design.arms)]
    _check_tokenizers(first, check_data(first), study)
    with locked(folder):
        _prepare(folder, design, plans, recipe_text=recipe_text_of(recipe), say=say)
        if ready is not None:
            ready()
        run_all(folder, plans, jobs=jobs, threads=threads, watch=watch or _quiet, track=track)
        found = compared(folder)
    from seedbed.report.page import write_study_page

    write_study_page(folder)
    return found


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
            watch=watch or _quiet,
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


def check_data(plans: Sequence[RunPlan]) -> dict[str, BuiltStream]:
    """Raise what missing or bad data of any plan raise, and what cannot fit; return the last stage's stream by arm."""
    found: dict[str, BuiltStream] = {}
    readers: dict[str, BuiltStream] = {}
    for plan in plans:
        built: dict[str, BuiltStream] = {}
        if not reads_text(plan, plan.stages[-1]):
            raise ConfigError(
                f"arm {plan.arm}: its last model sees later positions, so no text can be asked of it and the study's metric "
                "has no value; end with a causal model"
            )
        for name in plan.used_streams:
            key = f"{name} {plan.streams[name].model_dump_json()} {plan.evaluate.model_dump_json()} {plan.stages[-1].stream}"
            if key not in found:
                found[key] = build_stream(name, plan.streams[name])
                check_held_out(plan, found[key])
            built[name] = found[key]
        check_fits(plan, built, Ranks())
        readers[plan.arm] = built[plan.stages[-1].stream]
    return readers


def _check_tokenizers(plans: Sequence[RunPlan], readers: Mapping[str, BuiltStream], study: StudySpec) -> None:
    """Raise ConfigError if the arms' tokenizers are such that no number compares them."""
    tokenizers = {arm: reader.tokenizer.fingerprint() for arm, reader in readers.items() if reader.tokenizer}
    if len(set(tokenizers.values())) < 2:
        return
    if study.metric == "test_loss_nats":
        raise ConfigError(
            "study.metric: nats per token compare only where tokens are the same, and the arms have other tokenizers "
            f"({', '.join(f'{arm}: {tokenizer}' for arm, tokenizer in tokenizers.items())}); take test_bits_per_byte"
        )
    for plan in plans:
        lost = text_lost(plan, readers[plan.arm])
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
    for (arm, _), plan in plans.items():
        if not plan.evaluate.test:
            raise ConfigError("evaluate.test is off: a study is judged on the test part; switch it on")
        if not gives_text(plan.streams[plan.stages[-1].stream]) or plan.main_stage != plan.stages[-1].name:
            raise ConfigError(f"arm {arm}: its last stage must be the main stage and train on text, as the metric is over text")
    for pair in study.contrasts:
        if not aa and not set(pair) <= names:
            raise ConfigError(f"study.contrasts: {list(pair)} names an arm that is not there; arms: {', '.join(sorted(names))}")
    return Design(
        name=loaded.recipe.name + (" A/A" if aa else ""),
        title=loaded.recipe.title,
        control=control,
        arms=arms,
        seeds=tuple(seeds),
        metric=study.metric,
        alpha=study.alpha,
        margin=study.margin,
        looks=() if aa else tuple(study.looks),
        contrasts=() if aa else tuple(study.contrasts),
        main_stage=main.main_stage,
        budget={k: v for k, v in stage.budget.model_dump().items() if v is not None},
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
            if plan.seed != seed or plan.model_copy(update={"seed": 0}).fingerprint() != design.plans[arm]:
                run = folder / arm / f"seed-{seed}"
                raise RefusedError(
                    f"{run / 'resolved.yaml'} was changed since the study began; put it back, or start a "
                    "new study with another --out"
                )


def run_all(
    folder: Path,
    plans: Mapping[tuple[str, int], RunPlan],
    *,
    jobs: int,
    threads: int,
    watch: Callable[[list[RunStatus]], None],
    track: Sequence[str] = (),
) -> None:
    """Run what has not ended, the longest first, at most `jobs` at a time, each in a process of its own."""
    order = sorted(plans, key=lambda k: -plans[k].tokens())
    waiting = [k for k in order if finished(folder / k[0] / f"seed-{k[1]}") is None]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    told: set[tuple[str, int]] = set()
    stopping = False

    def want_stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    old = {}
    with suppress(ValueError):
        heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        old = {number: signal.signal(number, want_stop) for number in heard}
    problems: list[SeedbedError] = []
    try:
        while running or (waiting and not stopping and not problems):
            while waiting and len(running) < jobs and not stopping and not problems:
                arm, seed = waiting.pop(0)
                running[arm, seed] = _start(folder / arm / f"seed-{seed}", threads, track)
            time.sleep(0.2)
            for k in [k for k, process in running.items() if process.poll() is not None]:
                problem = _ended(folder / k[0] / f"seed-{k[1]}", running.pop(k).returncode, stopping=stopping)
                if problem is not None:
                    problems.append(problem)
            if stopping or problems:
                for k in running.keys() - told:
                    running[k].send_signal(signal.SIGTERM)
                    told.add(k)
            with suppress(OSError):  # of whoever looks on
                watch([_status(folder, k, plans[k], running) for k in order])
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for number, handler in old.items():
            signal.signal(number, handler)
    if problems:
        raise problems[0]
    if stopping:
        raise InterruptedRunError(f"stopped; every run has saved a checkpoint, `seedbed resume {folder}` goes on")


def run_search(
    folder: Path,
    *,
    name: str,
    facts: Mapping[str, Any],
    plans: Mapping[tuple[str, int], RunPlan],
    recipe: str | Path,
    jobs: int,
    threads: int,
    watch: Callable[[list[RunStatus]], None] | None,
) -> None:
    """Run many settings of one recipe (or what is left of them); `facts` are kept in `name` and decide what goes on.

    Raises RefusedError if the folder holds another search.
    """
    facts = {**facts, "plans": {f"{a}/{s}": p.fingerprint() for (a, s), p in plans.items()}}
    check_data(list({arm: plan for (arm, _), plan in plans.items()}.values()))
    with locked(folder):
        known = folder / name
        if known.is_file() and read_json(known, advice="give another --out") != json.loads(json.dumps(facts)):
            raise RefusedError(f"{folder} holds another search; give another --out")
        if not known.is_file() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
            raise RefusedError(f"{folder} is not empty and holds no search; nothing is overwritten: give another --out")
        write_json(known, facts)
        recipe_text = recipe_text_of(recipe)
        write_whole(folder / "recipe.yaml", recipe_text)
        for (setting, seed), plan in plans.items():
            if not (folder / setting / f"seed-{seed}" / "resolved.yaml").is_file():
                create(plan, folder / setting / f"seed-{seed}", recipe_text=recipe_text)
        run_all(folder, plans, jobs=jobs, threads=threads, watch=watch or _quiet)


def _start(run: Path, threads: int, track: Sequence[str]) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, PARENT: str(os.getpid()), "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    with (run / "worker.err").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "seedbed.experiments.worker", str(run), *track],  # -P: nothing of the folder one is in
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches the study, which tells its runs
        )


def _ended(run: Path, code: int, *, stopping: bool) -> SeedbedError | None:
    """Return what a run's end means for the study: a failure that is recorded leaves it going, anything else stops it."""
    said = (run / "worker.err").read_text(encoding="utf-8", errors="replace").strip()
    if code == 0 or finished(run) is not None:
        (run / "worker.err").unlink(missing_ok=True)
        return None
    if stopping and code in (InterruptedRunError.exit_code, -signal.SIGTERM, -signal.SIGINT):
        return None  # the signal came before the run could listen: nothing was computed yet
    name = f"{run.parent.name}/{run.name}"
    if code < 0:
        return RunFailedError(
            f"the process of {name} was killed by signal {-code} (out of memory?); what it computed is kept: "
            f"`seedbed resume {run.parent.parent}` goes on"
        )
    kinds = {e.exit_code: e for e in (ConfigError, DataError, RefusedError, InterruptedRunError)}
    return kinds.get(code, RunFailedError)(f"{name}: {said or f'ended with code {code}'}")


def _status(folder: Path, k: tuple[str, int], plan: RunPlan, running: Mapping[Any, Any]) -> RunStatus:
    run = folder / k[0] / f"seed-{k[1]}"
    final = finished(run)
    state = final["status"] if final else "running" if k in running else "waiting"
    line: dict[str, Any] = {}
    if state == "running" and (run / "metrics.jsonl").is_file():
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            for raw in reversed(file.read().splitlines()):
                with suppress(ValueError):
                    line = json.loads(raw)
                    break
    return RunStatus(
        arm=k[0],
        seed=k[1],
        state=state,
        stage=line.get("stage", ""),
        step=line.get("step", 0),
        steps_done=line.get("run_step", 0),
        loss_nats=line.get("loss_nats"),
    )


def _quiet(statuses: list[RunStatus]) -> None:
    """Show nothing."""
