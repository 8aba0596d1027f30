"""From the records of runs to a verdict. Reads run folders and writes comparison.json; trains nothing.

Everything here is a function of the run folders and of what the study fixed before its first run, so `check_comparison`
can derive every number again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import stdev
from typing import Any

from seedbed.core.durable import write_json
from seedbed.core.errors import DataError, RefusedError
from seedbed.core.json_files import read_object
from seedbed.core.run_record import RUNS, RunRecord, loss_of_text
from seedbed.evaluate.bits_per_byte import summary
from seedbed.experiments.recipe import read_plan
from seedbed.experiments.run import finished
from seedbed.experiments.statistics import Contrast, contrast, judged

FILE = "comparison.json"
_ADVICE = "put it back, or start the study again with another --out"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a study found; `data` is comparison.json."""

    folder: Path
    data: dict[str, Any]

    @property
    def verdict(self) -> str:
        return self.data["verdict"]


@dataclass(frozen=True, kw_only=True)
class Design:
    """What was fixed before the first run; study.json of a study folder."""

    name: str
    title: str
    control: str
    arms: tuple[str, ...]  # beside the control
    seeds: tuple[int, ...]
    metric: str
    alpha: float
    margin: float
    looks: tuple[int, ...]
    contrasts: tuple[tuple[str, str], ...]
    main_stage: str
    budget: dict[str, Any]
    schedule: str  # of the main stage
    published_nats: float | None
    aa: bool
    tuned: dict[str, dict[str, Any]]
    tuning_records: tuple[str, ...]
    tuned_by_search: tuple[str, ...]  # arms that had a grid of their own
    plans: dict[str, str]  # arm -> fingerprint of its plan with the first seed
    commit: str
    command: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All contrasts: every arm against the control, then the declared ones."""
        return [(arm, self.control) for arm in self.arms] + [c for c in self.contrasts if c[1] != self.control]

    def alpha_at(self) -> float:
        """The level of one look: alpha shared evenly over the declared looks (Bonferroni)."""
        return self.alpha / max(1, len(self.looks))


def read_design(folder: Path) -> Design:
    file = folder / "study.json"
    if not file.is_file():
        raise DataError(f"{folder} is not a study folder: it has no study.json; give the folder that `seedbed compare` wrote")
    raw = read_object(file, advice=_ADVICE)
    try:
        for name in ("arms", "seeds", "looks", "tuning_records", "tuned_by_search"):
            raw[name] = tuple(raw[name])
        raw["contrasts"] = tuple((a, b) for a, b in raw["contrasts"])
        return Design(**raw)
    except (ValueError, TypeError, KeyError) as e:
        raise DataError(f"{file} is broken: {e}; {_ADVICE}") from None


def compared(folder: Path, *, write: bool = True) -> Comparison:
    """Return the comparison of a study whose runs have all ended (done or failed)."""
    design = read_design(folder)
    arms = [design.control, *design.arms]
    finals: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    failures = []
    for arm in arms:
        for seed in design.seeds:
            final = finished(folder / arm / f"seed-{seed}")
            if final is None:
                raise DataError(f"the run {arm}/seed-{seed} has not ended; go on with `seedbed resume {folder}`")
            if final["status"] == "done":
                finals[arm][seed] = final
            else:
                failures.append({"arm": arm, "seed": seed, "error": final["error"]})
    _refuse_mixed_data(finals)
    contrasts = judged(
        [_paired(design, finals, arm, reference) for arm, reference in design.pairs],
        alpha=design.alpha_at(),
        margin=design.margin,
    )
    stage0 = _stage0(finals)
    data = {
        "name": design.name,
        "title": design.title,
        "aa": design.aa,
        "seeds": list(design.seeds),
        "arms": {arm: _arm_summary(finals[arm], design) for arm in arms},
        "control": design.control,
        "metric": design.metric,
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
        "looks": _looks(folder, design),
        "ledger": {arm: _mean_ledger(finals[arm]) for arm in arms},
        "stage0": stage0,
        "paired": _paired_things(finals),
        "untuned": [] if design.aa else [arm for arm in arms if design.tuning_records and arm not in design.tuned_by_search],
        "published_nats": design.published_nats,
        "commit": design.commit,
        "commits": sorted({f["commit"] for seeds in finals.values() for f in seeds.values()}),
        "tuned": design.tuned,
        "tuning_records": list(design.tuning_records),
        "command": design.command,
    }
    by_set = _held_out(design, finals)
    if by_set:
        data["held_out"] = by_set
        data["main"] = next(f["main"] for seeds in finals.values() for f in seeds.values())
        data["mixture"] = {arm: next((f["mixture"] for f in seeds.values()), {}) for arm, seeds in finals.items()}
    lost = {arm: loss_of_text(next(iter(seeds.values()))["test"]) for arm, seeds in finals.items() if seeds}
    if any(lost.values()):
        data["text_lost"] = {arm: said for arm, said in lost.items() if said}
    data["verdict"] = sentence(data, contrasts)
    if write:
        write_json(folder / FILE, data)
    return Comparison(folder=folder, data=data)


def check_comparison(folder: str | Path) -> list[str]:
    """Derive every number of comparison.json again from the run folders; return where it differs (empty: it holds)."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise DataError(f"{folder} has no {FILE}; give the folder of a finished study")
    written = read_object(file, advice=f"write it again with `seedbed resume {folder}`")
    derived = json.loads(json.dumps(compared(Path(folder), write=False).data))
    derived["looks"] = written.get("looks")  # when a verdict was read is history, not a derived number
    return [*_run_differences(Path(folder)), *_differences(written, derived, at="")]


def _run_differences(folder: Path) -> list[str]:
    """Hold every run's final.json against its items, its metrics and the plan that the study fixed."""
    design, found = read_design(folder), []
    for arm in (design.control, *design.arms):
        for seed in design.seeds:
            run = folder / arm / f"seed-{seed}"
            record = RunRecord(run)
            final = record.final() or {}
            if read_plan(run).model_copy(update={"seed": 0}).fingerprint() != design.plans[arm]:
                found.append(f"{arm}/seed-{seed}: resolved.yaml is not the plan that the study fixed")
            if final.get("status") != "done":
                continue
            items = record.items()
            main = [i for i in items if i.group == final.get("main", i.group)]
            found += _differences(final["test"], summary(main), at=f"{arm}/seed-{seed}.test")
            for name, numbers in final.get("held_out", {}).items():
                found += _differences(
                    numbers, summary([i for i in items if i.group == name]), at=f"{arm}/seed-{seed}.held_out.{name}"
                )
            shown = {s: sum(lines["tokens"].values()) for s, lines in final["ledger"].items()}
            found += _differences(shown, {x["stage"]: x["tokens"] for x in record.metrics()}, at=f"{arm}/seed-{seed}.tokens")
    return found


def sentence(data: Mapping[str, Any], contrasts: Sequence[Contrast]) -> str:
    """Return the verdict in one or two sentences."""
    unlearned = [f"{arm}/seed-{s}" for arm, seeds in data["stage0"].items() for s, f in seeds.items() if not f["learned"]]
    unit = "bits per byte" if data["metric"] == "test_bits_per_byte" else "nats per token"
    lines = []
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
    lines += [f"note for {', '.join(arms)}: {lost}" for lost, arms in _shared(data.get("text_lost", {})).items()]
    said = "; ".join(lines)
    if unlearned:
        return f"stage 0 did not learn: nothing to transfer ({', '.join(unlearned)}). Measured all the same: {said}"
    return said


def _shared(said: Mapping[str, str]) -> dict[str, list[str]]:
    """What is said of several arms, once, with their names."""
    return {text: [arm for arm, own in said.items() if own == text] for text in said.values()}


def tokens_to_reach(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Return the tokens at which a validation curve first reaches a loss and stays there at the next evaluation.

    Interpolated linearly in (log tokens, loss); None if it is never reached. `curve` holds (tokens, loss), tokens rising.
    """
    for i, (tokens, loss) in enumerate(curve):
        if loss > target or (i + 1 < len(curve) and curve[i + 1][1] > target):
            continue
        if i == 0:
            return float(tokens)
        before_tokens, before = curve[i - 1]
        if loss == target or before <= target:
            return float(tokens)
        share = (before - target) / (before - loss)
        return exp(log(before_tokens) + share * (log(tokens) - log(before_tokens)))
    return None


def valid_curve(run: Path, stage: str) -> list[tuple[int, float]]:
    """Return (tokens of the stage, validation loss in nats) at every evaluation."""
    lines = RunRecord(run).metrics()
    return [(x["tokens"], x["valid_loss_nats"]) for x in lines if x["stage"] == stage and "valid_loss_nats" in x]


def metric_of(final: Mapping[str, Any], metric: str) -> float:
    return float(final["test"][metric.removeprefix("test_")])


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
    for place, prints in _outer_givers(finals).items():
        if len(set(prints)) > 1:
            raise RefusedError(
                f"{place} gave other weights to some runs of this study than to others: it changed while the study ran; put it "
                "back and run those seeds again in a new --out"
            )


def _outer_givers(finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, list[str]]:
    """Return the hashes of the weights that runs took from outside the study, by place, one for each run that took them."""
    found: dict[str, list[str]] = {}
    for f in (f for seeds in finals.values() for f in seeds.values()):
        for giver in f.get("givers", {}).values():
            if ":" in giver["from"]:
                found.setdefault(giver["from"], []).append(giver["sha256"])
    return found


def _paired_things(finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> str:
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
    tests = {(f["test"]["bytes"], f["test"]["tokens"]) for seeds in finals.values() for f in seeds.values()}
    lines = ["initial weights where shapes match"]
    lines += [f"rows of {', '.join(same)}"] if same else []
    lines += ["test documents"] if len(tests) == 1 else ["NOT the test documents"]
    lines += [f"NOT the rows of {', '.join(other)}"] if other else []
    shared = [place for place, prints in sorted(_outer_givers(finals).items()) if len(prints) > 1]
    lines += [f"one giver for several runs ({place}), whose own draw is in no interval" for place in shared]
    return ", ".join(lines)


def _paired(design: Design, finals: Mapping[str, Any], arm: str, reference: str) -> Contrast:
    both = [s for s in design.seeds if s in finals[arm] and s in finals[reference]]
    values = {s: metric_of(finals[arm][s], design.metric) - metric_of(finals[reference][s], design.metric) for s in both}
    return contrast(arm, reference, values, alpha=design.alpha_at(), tests=len(design.pairs))


def _contrast_json(c: Contrast, design: Design, finals: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    out = asdict(c)
    out["per_seed"] = {str(seed): value for seed, value in c.per_seed.items()}
    nats = {s: finals[c.arm][s]["test"]["loss_nats"] - finals[c.reference][s]["test"]["loss_nats"] for s in c.per_seed}
    in_nats = contrast(c.arm, c.reference, nats, alpha=design.alpha_at(), tests=len(design.pairs))
    out["mean_nats"] = in_nats.mean
    out["minimum_detectable_nats"] = in_nats.minimum_detectable
    out["tokens_to_reference"] = _speed(c, design, finals, folder)
    return json.loads(json.dumps(out))


def _speed(c: Contrast, design: Design, finals: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Tokens at which the arm reaches the reference's final validation loss: main stage only, and with all stages charged."""
    per_seed, main_only, charged = {}, [], []
    for seed in c.per_seed:
        target = valid_curve(folder / c.reference / f"seed-{seed}", design.main_stage)[-1]
        reached = tokens_to_reach(valid_curve(folder / c.arm / f"seed-{seed}", design.main_stage), target[1])
        before = sum(
            sum(lines["tokens"].values())
            for stage, lines in finals[c.arm][seed]["ledger"].items()
            if stage != design.main_stage
        )
        reference_before = sum(
            sum(lines["tokens"].values())
            for stage, lines in finals[c.reference][seed]["ledger"].items()
            if stage != design.main_stage
        )
        per_seed[str(seed)] = {"tokens": reached, "reference_tokens": target[0], "stage0_tokens": before}
        main_only.append(None if reached is None else target[0] / reached)
        charged.append(None if reached is None else (target[0] + reference_before) / (reached + before))
    return {
        "per_seed": per_seed,
        "speedup_main_stage": _median(main_only),
        "speedup_charged": _median(charged),
        "biased": design.schedule != "wsd",
        "why": "an arm's loss before the rate has fallen is held against a loss after it: a lower bound"
        if design.schedule == "wsd"
        else f"under {design.schedule} the losses on the way are inflated by a rate that has not fallen yet",
    }


def _median(values: Sequence[float | None]) -> float | None:
    """The median, a run that never reached the target counting as 0; None if the median run did not reach it."""
    ranked = sorted(0.0 if v is None else v for v in values)
    if not ranked:
        return None
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    return None if 0.0 in middle else sum(middle) / len(middle)


def _arm_summary(finals: Mapping[int, dict[str, Any]], design: Design) -> dict[str, Any]:
    per_seed = {str(s): f["test"] for s, f in finals.items()}
    values = [metric_of(f, design.metric) for f in finals.values()]
    return {
        "mean": sum(values) / len(values) if values else None,
        "per_seed": per_seed,
        "parameters": next((f["parameters"] for f in finals.values()), None),
    }


def _held_out(design: Design, finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, Any]:
    """Bits per byte of every held-out set: by arm and seed, and paired differences with intervals that nothing corrects.

    Only the main set is judged; these say where a difference comes from.
    """
    names = next((list(f["held_out"]) for seeds in finals.values() for f in seeds.values() if "held_out" in f), [])
    out: dict[str, Any] = {}
    for name in names:
        bits = {
            arm: {s: float(f["held_out"][name]["bits_per_byte"]) for s, f in seeds.items()} for arm, seeds in finals.items()
        }
        contrasts = []
        for arm, reference in design.pairs:
            both = {s: bits[arm][s] - bits[reference][s] for s in design.seeds if s in bits[arm] and s in bits[reference]}
            c = contrast(arm, reference, both, alpha=design.alpha)
            contrasts.append(
                {"arm": arm, "reference": reference, "mean": c.mean, "interval": list(c.interval) if c.interval else None}
            )
        arms = {
            arm: {
                "per_seed": {str(s): v for s, v in values.items()},
                "mean": sum(values.values()) / len(values) if values else None,
                "sd": stdev(values.values()) if len(values) > 1 else None,
            }
            for arm, values in bits.items()
        }
        out[name] = {"arms": arms, "contrasts": contrasts}
    return out


def _unmatched(design: Design, finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, int]:
    """Arms whose main stage showed another number of tokens than the control's, and how many."""

    def shown(arm: str) -> int | None:
        return next((sum(f["ledger"][design.main_stage]["tokens"].values()) for f in finals[arm].values()), None)

    wanted = shown(design.control)
    return {arm: n for arm in design.arms if (n := shown(arm)) is not None and n != wanted}


def _stage0(finals: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Losses beside floors of every stage on automaton rows, by arm and seed."""
    out: dict[str, dict[str, Any]] = {}
    for arm, seeds in finals.items():
        for seed, final in seeds.items():
            for stage, found in final["stage0"].items():
                out.setdefault(arm, {})[str(seed)] = {"stage": stage, **found}
    return out


def _looks(folder: Path, design: Design) -> list[dict[str, Any]]:
    """Earlier looks, then this one, if it is new."""
    file = folder / FILE
    before = read_object(file, advice=_ADVICE).get("looks", []) if file.is_file() else []
    now = {"seeds": len(design.seeds), "declared": list(design.looks)}
    return before if before and before[-1] == now else [*before, now]


def refuse_late_seeds(folder: Path, design: Design, wanted: Sequence[int]) -> None:
    """Raise RefusedError if more seeds are asked for after a verdict, unless the recipe declared that look."""
    if set(wanted) == set(design.seeds) or not _results_seen(folder):
        return
    if not set(wanted) > set(design.seeds) or len(wanted) not in design.looks or len(design.seeds) not in design.looks:
        declared = (
            f"its recipe declares looks at {list(design.looks)} seeds" if design.looks else "its recipe declares no looks"
        )
        raise RefusedError(
            f"{folder} has results of its {len(design.seeds)} seeds, and {declared}, so going on with {len(wanted)} is "
            "refused: adding seeds until it fits is not a test; declare study.looks before the first run, or start afresh "
            "with another --out"
        )


def _results_seen(folder: Path) -> bool:
    """Whether any run of the study has ended: from then on its numbers can have been looked at."""
    return (folder / RUNS).is_file() or any(folder.glob("*/seed-*/final.json"))


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


def _differences(written: Any, derived: Any, *, at: str) -> list[str]:
    if isinstance(written, dict) and isinstance(derived, dict):
        keys = sorted({*written, *derived})
        return [d for k in keys for d in _differences(written.get(k), derived.get(k), at=f"{at}.{k}".strip("."))]
    if isinstance(written, list) and isinstance(derived, list) and len(written) == len(derived):
        return [d for i, (w, x) in enumerate(zip(written, derived, strict=True)) for d in _differences(w, x, at=f"{at}.{i}")]
    numbers = isinstance(written, int | float) and isinstance(derived, int | float)
    same = abs(written - derived) <= 1e-12 + 1e-9 * abs(derived) if numbers else written == derived
    return [] if same else [f"{at}: written {written!r}, derived {derived!r}"]
