"""From the records of runs to a verdict. Reads run folders and writes comparison.json; trains nothing.

Everything here is a function of the run folders and of what the study fixed before its first run, so `check_comparison`
can derive every number again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path
from statistics import stdev
from typing import Any

from seedbed.core.durable import write_json
from seedbed.core.errors import DataError, RefusedError
from seedbed.core.records import bar_beside
from seedbed.core.run_record import COMPARISON, RunRecord
from seedbed.experiments.plan.specs import RECIPE
from seedbed.experiments.run.run import finished
from seedbed.experiments.study.design import Design, looks_of, read_design
from seedbed.experiments.study.speed import speed
from seedbed.experiments.study.statistics import Contrast, contrast, judged


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a study found; `data` is comparison.json."""

    folder: Path
    data: dict[str, Any]

    @property
    def verdict(self) -> str:
        return self.data["verdict"]


def compared(folder: Path, *, write: bool = True) -> Comparison:
    """Return the comparison of a study whose runs have all ended (done or failed)."""
    design = read_design(folder)
    finals, failures = _ended_runs(folder, design)
    _refuse_mixed_data(finals)
    values = {
        arm: {s: design.outcome.of(RunRecord(folder / arm / f"seed-{s}"), f, stage=design.main_stage) for s, f in seeds.items()}
        for arm, seeds in finals.items()
    }
    contrasts = judged(
        [_paired(design, values, arm, reference) for arm, reference in design.pairs],
        alpha=design.alpha_at(),
        margin=design.margin,
        better=design.better,
    )
    data = {
        "name": design.name,
        "title": design.title,
        "aa": design.aa,
        "seeds": list(design.seeds),
        "arms": {arm: _arm_summary(finals[arm], values[arm], design) for arm in finals},
        "control": design.control,
        "metric": design.metric,
        "unit": design.unit,
        "better": design.better,
        "budget": {
            "stage": design.main_stage,
            **design.budget,
            "matched": "tokens of the main stage, same for all arms but those named in `unmatched`",
            "unmatched": _unmatched(design, finals),
        },
        "alpha": design.alpha,
        "margin": design.margin,
        "contrasts": [_contrast_json(c, design, finals, folder) for c in contrasts],
        "minimum_detectable": max((c.minimum_detectable for c in contrasts if c.minimum_detectable is not None), default=None),
        "failures": failures,
        "looks": looks_of(folder, design),
        "ledger": {arm: _mean_ledger(seeds) for arm, seeds in finals.items()},
        "bars": _bars(finals),
        "paired": _paired_things(finals, design.outcome.evaluation),
        "untuned": [] if design.aa else [arm for arm in finals if design.tuning_records and arm not in design.tuned_by_search],
        "published_nats": design.published_nats,
        "commit": design.commit,
        "commits": sorted({f["commit"] for seeds in finals.values() for f in seeds.values()}),
        "tuned": design.tuned,
        "tuning_records": list(design.tuning_records),
        "command": design.command,
        **_where_there_are_some(design, finals),
    }
    data["verdict"] = sentence(data, contrasts)
    if write:
        write_json(folder / COMPARISON, data)
    return Comparison(folder=folder, data=data)


def _ended_runs(folder: Path, design: Design) -> tuple[dict[str, dict[int, dict[str, Any]]], list[dict[str, Any]]]:
    """Return final.json by arm and seed of the runs that are done, and what failed. Raises DataError if one has not ended."""
    finals: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in [design.control, *design.arms]}
    failures = []
    for arm, done in finals.items():
        for seed in design.seeds:
            final = finished(folder / arm / f"seed-{seed}")
            if final is None:
                raise DataError(f"the run {arm}/seed-{seed} has not ended; go on with `seedbed resume {folder}`")
            if final["status"] == "done":
                done[seed] = final
            else:
                failures.append({"arm": arm, "seed": seed, "error": final["error"]})
    return finals, failures


def _where_there_are_some(design: Design, finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, Any]:
    """Return numbers beside the metric, shares of several sources, and notes: each if there is one."""
    described = _described(design, finals)
    drawn: dict[str, Any] = {arm: next((f.get("mixture", {}) for f in seeds.values()), {}) for arm, seeds in finals.items()}
    several = any(len(sources) > 1 for streams in drawn.values() for sources in streams.values())
    judged_by = {
        arm: next(iter(seeds.values()))["evaluations"][design.outcome.evaluation] for arm, seeds in finals.items() if seeds
    }
    notes = {arm: "; ".join(found["notes"]) for arm, found in judged_by.items() if found.get("notes")}
    found = {"described": described, "mixture": drawn if several else {}, "notes": notes}
    return {name: value for name, value in found.items() if value}


def sentence(data: Mapping[str, Any], contrasts: Sequence[Contrast]) -> str:
    """Return the verdict in one or two sentences."""
    unit, lines = data["unit"], []
    for c in contrasts:
        if c.mean is None:
            lines.append(f"{c.arm} against {c.reference}: no pair of seeds is left, so nothing can be said")
            continue
        size = f"{c.mean:+.4f} {unit}"
        if c.interval is None:
            lines.append(f"{c.arm} against {c.reference}: {size} on one seed; one seed decides nothing, this is a demo")
            continue
        level = f"interval {c.interval[0]:+.4f} to {c.interval[1]:+.4f}, {len(c.per_seed)} paired seeds, Holm p {c.p_holm:.3f}"
        words = {
            "better": f"{c.arm} is better than {c.reference}",
            "worse": f"{c.arm} is worse than {c.reference}",
            "equivalent": f"{c.arm} and {c.reference} are equivalent (within {data['margin']:g})",
            "undecided": f"{c.arm} against {c.reference} is undecided",
        }[c.verdict]
        lines.append(f"{words}: {size} ({level})")
    lines += [f"note for {', '.join(arms)}: {note}" for note, arms in _shared(data.get("notes", {})).items()]
    said = "; ".join(lines)
    unmet = unmet_bars(data["bars"])
    if unmet:
        failed = "; ".join(f"{what} ({', '.join(runs)})" for what, runs in unmet.items())
        return f"{failed}. Measured all the same: {said}"
    return said


def unmet_bars(bars: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what is said of stages that did not reach their bars, with the runs of which it holds."""
    found: dict[str, list[str]] = {}
    for arms in bars.values():
        for arm, seeds in arms.items():
            for seed, bar in seeds.items():
                if not bar["met"]:
                    found.setdefault(f"stage {bar['stage']} {bar['unmet']}", []).append(f"{arm}/seed-{seed}")
    return found


def _shared(said: Mapping[str, str]) -> dict[str, list[str]]:
    """What is said of several arms, once, with their names."""
    return {text: [arm for arm, own in said.items() if own == text] for text in said.values()}


def _refuse_mixed_data(finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> None:
    """Raise RefusedError if the runs of one arm were trained on different data under the same name."""
    for arm, seeds in finals.items():
        for stream in {name for f in seeds.values() for name in f["data"]}:
            seen = {f["data"].get(stream): seed for seed, f in seeds.items()}
            if len(seen) > 1:
                raise RefusedError(
                    f"the data of stream {stream} differ between seeds {sorted(seen.values())} of arm {arm}: they changed "
                    "while the study ran; put them back and run those seeds again in a new --out"
                )
    trained: dict[str, str] = {}
    for place, prints in _outer_givers(finals).items():
        if len(set(prints)) > 1:
            raise RefusedError(
                f"{place} gave other weights to some runs of this study than to others: it changed while the study ran; put it "
                "back and run those seeds again in a new --out"
            )
    for f in (f for seeds in finals.values() for f in seeds.values()):
        for name, told in f.get("trained_first", {}).items():
            if trained.setdefault(name, told["plan"]) != told["plan"]:
                raise RefusedError(
                    f"{name} was another recipe for some runs of this study than for others: it changed while the study ran; "
                    "put it back and run those seeds again in a new --out"
                )


def _outer_givers(finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, list[str]]:
    """Return the hashes of the weights that runs took from outside the study, by place, one for each run that took them."""
    found: dict[str, list[str]] = {}
    for f in (f for seeds in finals.values() for f in seeds.values()):
        for giver in f.get("givers", {}).values():
            if ":" in giver["from"] and not giver["from"].startswith(RECIPE):  # of which each run has its own
                found.setdefault(giver["from"], []).append(giver["sha256"])
    return found


def _paired_things(finals: Mapping[str, Mapping[int, dict[str, Any]]], evaluation: str) -> str:
    """What the arms share, read off the fingerprints of their streams."""
    prints: dict[str, set[str]] = {}
    for seeds in finals.values():
        for f in seeds.values():
            for stream, fingerprint in f["data"].items():
                prints.setdefault(stream, set()).add(fingerprint)
    shares: dict[str, set[str]] = {}  # the weights that each stream's mixture was asked for
    for f in (f for seeds in finals.values() for f in seeds.values()):
        for stream, sources in f.get("mixture", {}).items():
            wanted = {source: round(facts["wanted_share"], 9) for source, facts in sources.items()}
            shares.setdefault(stream, set()).add(json.dumps(wanted, sort_keys=True))
    other = [name for name, found in sorted(prints.items()) if len(found) > 1 or len(shares.get(name, ())) > 1]
    same = [name for name in sorted(prints) if name not in other]
    asked = {f["evaluations"][evaluation]["questions"] for seeds in finals.values() for f in seeds.values()}
    lines = ["initial weights where shapes match"]
    lines += [f"rows of {', '.join(same)}"] if same else []
    lines += [f"{'NOT ' if len(asked) > 1 else ''}what {evaluation} asks"]
    lines += [f"NOT the rows of {', '.join(other)}"] if other else []
    shared = [place for place, prints in sorted(_outer_givers(finals).items()) if len(prints) > 1]
    lines += [f"one giver for several runs ({place}), whose own draw is in no interval" for place in shared]
    return ", ".join(lines)


def _paired(design: Design, values: Mapping[str, Mapping[int, float]], arm: str, reference: str) -> Contrast:
    both = [s for s in design.seeds if s in values[arm] and s in values[reference]]
    apart = {s: values[arm][s] - values[reference][s] for s in both}
    return contrast(arm, reference, apart, alpha=design.alpha_at(), tests=len(design.pairs))


def _contrast_json(c: Contrast, design: Design, finals: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    out = asdict(c)
    out["per_seed"] = {str(seed): value for seed, value in c.per_seed.items()}
    nats = {s: _loss_nats(finals[c.arm][s], design) - _loss_nats(finals[c.reference][s], design) for s in c.per_seed}
    in_nats = contrast(c.arm, c.reference, nats, alpha=design.alpha_at(), tests=len(design.pairs))
    told = not any(isnan(x) for x in nats.values())  # of an evaluation that has a loss beside the number that is judged
    out["mean_nats"] = in_nats.mean if told else None
    out["minimum_detectable_nats"] = in_nats.minimum_detectable if told else None
    out["tokens_to_reference"] = speed(c, design, finals, folder)
    return json.loads(json.dumps(out))


def _loss_nats(final: Mapping[str, Any], design: Design) -> float:
    if design.outcome.function:
        return nan
    return float(final["evaluations"][design.outcome.evaluation]["numbers"].get("loss_nats", nan))


def _arm_summary(finals: Mapping[int, dict[str, Any]], values: Mapping[int, float], design: Design) -> dict[str, Any]:
    outcome = design.outcome
    per_seed = {str(s): f["evaluations"][outcome.evaluation]["numbers"] | {outcome.key: values[s]} for s, f in finals.items()}
    return {
        "mean": sum(values.values()) / len(values) if values else None,
        "per_seed": per_seed,
        "parameters": next((f["parameters"] for f in finals.values()), None),
    }


def _described(design: Design, finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, Any]:
    """The first measure of every evaluation: by arm and seed, and paired differences with intervals that nothing corrects.

    The metric alone is judged; these say where a difference comes from. Nothing, where there is one evaluation.
    """
    ended = [f for seeds in finals.values() for f in seeds.values()]
    names = list(dict.fromkeys(name for f in ended for name in f["evaluations"]))
    return {name: _described_one(name, design, finals) for name in names} if len(names) > 1 else {}


def _described_one(name: str, design: Design, finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, Any]:
    told = next(f["evaluations"][name] for seeds in finals.values() for f in seeds.values() if name in f["evaluations"])
    number = next(iter(told["measures"]))
    values = {
        arm: {s: float(f["evaluations"][name]["numbers"][number]) for s, f in seeds.items() if name in f["evaluations"]}
        for arm, seeds in finals.items()
    }
    contrasts = []
    for arm, reference in design.pairs:
        both = {s: values[arm][s] - values[reference][s] for s in design.seeds if s in values[arm] and s in values[reference]}
        c = contrast(arm, reference, both, alpha=design.alpha)
        interval = list(c.interval) if c.interval else None
        contrasts.append({"arm": arm, "reference": reference, "mean": c.mean, "interval": interval})
    arms = {
        arm: {
            "per_seed": {str(s): v for s, v in own.items()},
            "mean": sum(own.values()) / len(own) if own else None,
            "sd": stdev(own.values()) if len(own) > 1 else None,
        }
        for arm, own in values.items()
    }
    about = {k: told["measures"][number][k] for k in ("unit", "better")}
    return {"number": number, **about, "arms": arms, "contrasts": contrasts}


def _unmatched(design: Design, finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, int]:
    """Arms whose main stage showed another number of tokens than the control's, and how many."""

    def shown(arm: str) -> int | None:
        return next((sum(f["ledger"][design.main_stage]["tokens"].values()) for f in finals[arm].values()), None)

    wanted = shown(design.control)
    return {arm: n for arm in design.arms if (n := shown(arm)) is not None and n != wanted}


def _bars(finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """What was read of every evaluation that has a bar, beside it: by evaluation, arm and seed."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, seeds in finals.items():
        for seed, final in seeds.items():
            for name, found in final["evaluations"].items():
                if "bar" in found:
                    out.setdefault(name, {}).setdefault(arm, {})[str(seed)] = bar_beside(found)
    return out


def _mean_ledger(finals: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds of every number in the ledger, and totals."""
    ledgers = [f["ledger"] for f in finals.values()]
    if not ledgers:
        return {"stages": {}, "total": {"flops_run": 0, "flops_ideal": 0, "seconds": 0, "tokens": 0}}
    merged: dict[str, Any] = {}
    for stage in ledgers[0]:
        merged[stage] = {
            line: {
                name: sum(x[stage].get(line, {}).get(name, 0) for x in ledgers) / len(ledgers)
                for name in ledgers[0][stage][line]
            }
            for line in ledgers[0][stage]
        }
    totals = {
        name: sum(lines[line][name] for lines in merged.values() for line in lines if line != "tokens")
        for name in ("flops_run", "flops_ideal", "seconds")
    }
    totals["tokens"] = sum(n for lines in merged.values() for n in lines["tokens"].values())
    return {"stages": merged, "total": totals}
