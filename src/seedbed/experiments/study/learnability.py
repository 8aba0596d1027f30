"""A map of a stage on rows of frames: how far below its floors does a model get on which setting, with how many tokens?

Every setting of the recipe's `map:` block is one run of that stage alone, judged on rules that no training row used.
Writes map.json, map.md (a table) and figures/learnability.svg. It chooses settings; it says nothing about text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.core.config import set_path
from seedbed.core.durable import check_place, write_json, write_whole
from seedbed.core.errors import ConfigError
from seedbed.core.protocols import Frames
from seedbed.core.run_record import RunRecord
from seedbed.engine.precision import available_threads
from seedbed.experiments.assemble import check_parts
from seedbed.experiments.environment import commit, processor
from seedbed.experiments.plan.load import Loaded, load
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.plan.study_specs import MapSpec
from seedbed.experiments.run.run import finished
from seedbed.experiments.streams import build_stream
from seedbed.experiments.study.search import run_search
from seedbed.experiments.study.side_by_side import RunStatus
from seedbed.experiments.study.tune import trials

SHORTEST_ROW = 128
_COLUMNS = ["body", "seed", "tokens", "min", "loss", "best floor", "below", "learned at", "cells", "whole frames"]


@dataclass(frozen=True, kw_only=True)
class Map:
    """The record of a map: `data` is map.json."""

    folder: Path
    data: dict[str, Any]


def learnability_map(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    scale: str | None = None,
    sets: Mapping[str, Any] | None = None,
    jobs: int = 1,
    device: str = "auto",
    watch: Callable[[list[RunStatus]], None] | None = None,
) -> Map:
    """Run every setting of the recipe's `map:` block (or what is left of them) and return the record.

    Raises ConfigError if there is no such block or its stage shows no frames, RefusedError if the folder holds another map.
    """
    loaded = load(recipe, scale=scale, sets=sets)
    spec = loaded.recipe.map
    if spec is None:
        raise ConfigError(f"the recipe {loaded.recipe.name} has no `map:` block")
    threads = max(1, available_threads() // jobs)
    settings = {
        f"{block}-{i}": {**facts.fixed, **chosen}
        for block, facts in spec.blocks.items()
        for i, chosen in enumerate(trials(facts.grid))
    }
    plans = {
        (name, seed): _fitted(loaded, spec, chosen, seed=seed, device=device, threads=threads).model_copy(update={"arm": name})
        for name, chosen in settings.items()
        for seed in spec.seeds
    }
    for plan in plans.values():
        check_parts(plan)
    folder = Path(out) if out else Path("runs") / loaded.recipe.name
    check_place(folder, folder=True)
    run_search(
        folder,
        name="settings.json",
        facts={"settings": settings},
        plans=plans,
        recipe=recipe,
        jobs=jobs,
        threads=threads,
        watch=watch,
    )
    return record_map(folder, loaded, settings, plans)


def record_map(folder: Path, loaded: Loaded, settings: Mapping[str, Any], plans: Mapping[tuple[str, int], RunPlan]) -> Map:
    """Write map.json, map.md and the figure from the run folders."""
    from seedbed.report.figures import learnability

    assert loaded.recipe.map is not None
    evaluation, found = loaded.recipe.map.evaluation, []
    for (name, seed), plan in plans.items():
        run = folder / name / f"seed-{seed}"
        final = finished(run)
        if final is None or final["status"] != "done":
            found.append(
                {"name": name, "seed": seed, "settings": settings[name], "failure": (final or {}).get("error", "not ended")}
            )
        else:
            found.append(
                {"name": name, "seed": seed, "settings": settings[name], **_measured(run, plan, final, evaluation=evaluation)}
            )
    data = {"recipe": loaded.recipe.name, "settings": found, "commit": commit(), "processor": processor()}
    write_json(folder / "map.json", data)
    write_whole(folder / "map.md", table(data))
    figure = learnability([s for s in found if "failure" not in s])
    write_whole(folder / "figures" / "learnability.svg", figure.svg)
    return Map(folder=folder, data=data)


def _fitted(loaded: Loaded, spec: MapSpec, chosen: Mapping[str, Any], *, seed: int, device: str, threads: int) -> RunPlan:
    """The plan of a setting, its rows as long as its frames ask for."""
    stage = next(s for s in loaded.recipe.stages if s.name == spec.stage)
    path = f"streams.{stage.stream}"
    tree = {"streams": {stage.stream: loaded.recipe.streams[stage.stream].model_dump()}}
    for where, value in chosen.items():
        if where.startswith(path):
            set_path(tree, where, value)
    loose = {**tree["streams"][stage.stream], "seq_len": 2**20}
    source = build_stream(stage.stream, loaded.recipe.streams[stage.stream].model_validate(loose)).source
    if not isinstance(source, Frames):
        raise ConfigError(f"map.stage: the stage {spec.stage!r} shows no rows of frames")
    wanted = spec.frames * source.frame_tokens
    seq_len = max(SHORTEST_ROW, 1 << (wanted - 1).bit_length())
    rows = {
        f"{path}.seq_len": seq_len,
        f"{path}.batch_size": max(1, spec.tokens_per_step // seq_len),
        f"evaluate.{spec.evaluation}.rows": max(8, spec.held_out_tokens // seq_len),
    }
    return loaded.plan(arm=loaded.arms[0], seed=seed, changes={**rows, **chosen}, device=device, threads=threads)


def _measured(run: Path, plan: RunPlan, final: Mapping[str, Any], *, evaluation: str) -> dict[str, Any]:
    r, facts, bar = (final["evaluations"][evaluation][k] for k in ("numbers", "facts", "bar"))
    stage = final["evaluations"][evaluation]["stage"]
    spec = next(s for s in plan.stages if s.name == stage)
    built = build_stream(spec.stream, plan.streams[spec.stream])
    source: Any = built.source
    record = RunRecord(run)
    lines = list(record.metrics())
    floors = {name.removeprefix("floor: "): nats for name, nats in bar["levels"].items()}
    best = min(floors, key=lambda k: floors[k])
    below = [(tokens, floors[best] - nats) for tokens, nats in record.watched(evaluation, "loss_nats", stage=stage)]
    done = facts["completion"]
    crossed = [tokens for tokens, nats in below if nats >= facts["margin_nats"]]
    assert isinstance(source, Frames), "it was looked at beforehand"
    states, patch_cells = source.cells
    return {
        "source": dict(source.described),
        "cell_states": states,
        "patch_cells": patch_cells,
        "model": plan.model,
        "seq_len": plan.streams[spec.stream].seq_len,
        "vocab_size": built.stream.vocab_size,
        "parameters": final["parameters"],
        "parameters_without_embeddings": final["parameters_without_embeddings"],
        "tokens": lines[-1]["tokens"],
        "train_seconds": sum(x["seconds"] for x in lines),
        "loss_nats": r["loss_nats"],
        "floors_nats": floors,
        "best_floor": best,
        "below_nats": floors[best] - r["loss_nats"],
        "below_on_the_way": below,
        "below_by_frame": [f - m for f, m in zip(facts["floors_by_frame_nats"][best], facts["by_frame_nats"], strict=True)],
        "tokens_to_learn": crossed[0] if crossed and bar["met"] else None,
        "learned": bar["met"],
        "greedy": done["greedy"],
        "teacher_forced": done["teacher_forced"][-1],
        "copied": done["copied"][-1],
        "frame": done["greedy_frame"],
    }


def table(data: Mapping[str, Any]) -> str:
    """Return the map as Markdown."""
    named = next((list(s["source"]) for s in data["settings"] if "source" in s), [])
    columns = [*named, *_COLUMNS]
    lines = [
        f"# {data['recipe']}",
        "",
        "Loss and floors in nats per patch token on unseen rules after frame 1; `below` is best floor minus loss, 0.1 or more",
        "is learned; accuracies of the last whole frame: greedy / teacher-forced / copied from the frame before. A line a run.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for s in data["settings"]:
        if "failure" in s:
            lines.append(f"| {s['name']} | seed {s['seed']} | failed: {s['failure']} |" + " |" * (len(columns) - 3))
            continue
        at = f"{s['tokens_to_learn'] / 1e6:.2f}M" if s["tokens_to_learn"] else "–"
        shares = [" / ".join(f"{s[k][what]:.2f}" for k in ("greedy", "teacher_forced", "copied")) for what in ("cell", "frame")]
        lines.append(
            f"| {' | '.join(s['source'].values())} | {s['parameters_without_embeddings'] / 1e6:.2f}M | "
            f"{s['seed']} | {s['tokens'] / 1e6:.2f}M | {s['train_seconds'] / 60:.1f} | {s['loss_nats']:.3f} | "
            f"{min(s['floors_nats'].values()):.3f} ({s['best_floor']}) | {s['below_nats']:+.3f} | {at} | {' | '.join(shares)} |"
        )
    return "\n".join(lines) + "\n"
