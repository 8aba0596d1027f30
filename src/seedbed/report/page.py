"""One page a run or study: self-contained (no network, no scripts), light and dark, everything escaped.

Writes report.html and figures/NAME.svg with figures/NAME.json beside it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from seedbed.core.durable import write_whole
from seedbed.core.errors import DataError
from seedbed.core.places import homeless
from seedbed.core.records import bar_beside
from seedbed.core.run_record import COMPARISON, FINAL, RunRecord, read_comparison
from seedbed.report import figures as draw


def write_page(folder: Path) -> Path:
    """Write the page of a finished run or study and return its path."""
    if (folder / COMPARISON).is_file():
        return write_study_page(folder)
    if RunRecord(folder).is_packed:
        raise DataError(f"{folder} is a run of a packed study, which has one page for all runs; give {folder.parent.parent}")
    if (folder / FINAL).is_file():
        return write_run_page(folder)
    raise DataError(f"{folder} has neither comparison.json nor final.json; give a finished run or study folder")


def write_study_page(folder: Path) -> Path:
    """Write the page of a study from comparison.json and its run folders."""
    data = read_comparison(folder)
    evaluation, _, key = data["metric"].partition(".")  # such as loss_nats, or loss_nats.dip
    number = key.partition(".")[0]
    stage = data["budget"]["stage"]
    runs = {
        arm: {seed: RunRecord(folder / arm / f"seed-{seed}") for seed in found["per_seed"]}
        for arm, found in data["arms"].items()
    }
    made = []
    for name in ("loss_nats", number):  # losses on the way, where there are some
        series = {
            arm: {seed: run.watched(evaluation, name, stage=stage) for seed, run in seeds.items()}
            for arm, seeds in runs.items()
        }
        if any(points for seeds in series.values() for points in seeds.values()):
            label = "nats per token" if name == "loss_nats" else name.replace("_", " ")
            made.append(draw.curves(series, xlabel=f"tokens of stage {stage}", ylabel=label, what=evaluation))
            break
    made.append(draw.differences(data["contrasts"], margin=data["margin"], unit=data["unit"], better=data["better"]))
    finals = {f"{arm} seed {seed}": run.final() or {} for arm, seeds in runs.items() for seed, run in seeds.items()}
    first = {arm: next(iter(seeds.values())) for arm, seeds in runs.items() if seeds}
    return _write(
        folder,
        kind="study",
        title=data["title"] or data["name"],
        name=data["name"],
        verdict=data["verdict"].split("; "),
        tone=_tone(data),
        data=data,
        unit=data["unit"],
        number=key,
        figures=made,
        evaluations={label: final.get("evaluations", {}) for label, final in finals.items()},
        exhibits=_exhibits(list(first.values())),
        samples={arm: (run.final() or {}).get("samples", []) for arm, run in first.items()},
        ledgers=data["ledger"],
        mixtures=data.get("mixture", {}),
        probes={},
        givers={},
        spikes=[],
        resolved={arm: run.plan_text() for arm, run in first.items()},
        environment=next((run.environment() or {} for run in first.values()), {}),
    )


def write_run_page(folder: Path) -> Path:
    """Write the page of one run from final.json and metrics.jsonl. Raises DataError for a run that failed."""
    record = RunRecord(folder)
    final = record.final()
    if final is None:
        raise DataError(f"{folder} has no {FINAL}; give a finished run or study folder")
    if final["status"] != "done":
        raise DataError(f"the run in {folder} failed, so it has no page: {final['error']}")
    lines = list(record.metrics())
    last = lines[-1]["stage"] if lines else ""
    training = [(x["tokens"], x["loss_nats"]) for x in lines if x["stage"] == last]
    watched = {name: record.watched(name, "loss_nats", stage=last) for name in final["evaluations"]}
    series: dict[str, Sequence[tuple[float, float]]] = {"training": _thinned(training)}
    series |= {name: points for name, points in watched.items() if points}
    made = []
    if training:
        shown = {name: {"0": points} for name, points in series.items()}
        figure = draw.curves(shown, xlabel=f"tokens of stage {last}", ylabel="nats per token", what="the last stage")
        made.append(
            draw.Figure(name=figure.name, caption="Loss of the last stage, one seed.", svg=figure.svg, data=figure.data)
        )
    told = [(name, found) for name, found in final["evaluations"].items() if found["stage"] == last]
    verdict = "; ".join(f"{name}: {_first_number(found)}" for name, found in told) or "nothing was read at its end"
    return _write(
        folder,
        kind="run",
        title=f"{final['name']}, arm {final['arm']}, seed {final['seed']}",
        name=final["name"],
        verdict=[
            f"{verdict}. One run without control, a demo",
            *(note for _, found in told for note in found.get("notes", ())),
        ],
        tone="undecided",
        data=None,
        unit="",
        number="",
        figures=made,
        evaluations={"": final["evaluations"]},
        probes=final.get("probes", {}),
        givers={stage: {**g, "from": homeless(g["from"])} for stage, g in final.get("givers", {}).items()},
        spikes=final.get("spikes", []),
        exhibits=_exhibits([record]),
        samples={final["arm"]: final.get("samples", [])},
        ledgers={final["arm"]: {"stages": final["ledger"], "total": None}},
        mixtures={final["arm"]: final.get("mixture", {})},
        resolved={final["arm"]: record.plan_text()},
        environment=record.environment() or {},
    )


def _first_number(found: Mapping[str, Any]) -> str:
    """The first measure of an evaluation, with how much text it was read of."""
    number, measure = next(iter(found["measures"].items()))
    size = f" on {found['numbers']['bytes']:,} bytes of text" if "bytes" in found["numbers"] else ""
    return f"{found['numbers'][number]:.4f} {measure['unit']}{size}"


def _write(
    folder: Path,
    *,
    figures: list[draw.Figure],
    evaluations: Mapping[str, Mapping[str, Any]],
    exhibits: Any,
    **content: Any,
) -> Path:
    """`evaluations`: of every run, by its label, what final.json says of them."""
    names = list(dict.fromkeys(name for run in evaluations.values() for name in run))
    told = {name: {label: run[name] for label, run in evaluations.items() if name in run} for name in names}
    for name, runs in told.items():
        shown = {label: found["figure"] for label, found in runs.items() if "figure" in found}
        if shown:
            figures = [*figures, draw.of_evaluation(name, shown)]
    if exhibits and "histogram" in exhibits:
        figures = [*figures, draw.histogram(exhibits["histogram"])]
    for figure in figures:
        write_whole(folder / "figures" / f"{figure.name}.svg", figure.svg)
        write_whole(folder / "figures" / f"{figure.name}.json", json.dumps(figure.data, indent=1) + "\n")
    environment = Environment(
        loader=PackageLoader("seedbed.report", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"grouped": lambda n: f"{n:,.0f}", "flops": lambda x: f"{x:.3g}", "signed": lambda x: f"{x:+.4f}"}
    content["resolved"] = {arm: homeless(text) for arm, text in content["resolved"].items()}
    if content["data"]:
        content["data"] = {**content["data"], "command": homeless(content["data"]["command"])}
    html = environment.get_template("page.html").render(
        figures={f.name: {"caption": f.caption, "svg": Markup(f.svg)} for f in figures},
        bars={name: held for name, runs in told.items() if (held := _with_bars(runs))},
        numbers=told,
        exhibits=exhibits,
        **content,
    )
    write_whole(folder / "report.html", html)
    return folder / "report.html"


def _with_bars(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {label: bar_beside(found) for label, found in runs.items() if "bar" in found}


def _tone(data: Mapping[str, Any]) -> str:
    """The color of the verdict: that of the first contrast, but where a bar was not reached it is shown as undecided."""
    unmet = any(not bar["met"] for arms in data["bars"].values() for seeds in arms.values() for bar in seeds.values())
    return "undecided" if unmet or not data["contrasts"] else str(data["contrasts"][0]["verdict"])


def _exhibits(runs: list[RunRecord]) -> dict[str, Any] | None:
    """The first run's picture that is there, as data a page can hold."""
    shown = next((found for run in runs for found in run.exhibits()), None)
    return None if shown is None else {**shown[0], "picture": base64.b64encode(shown[1]).decode()}


def _thinned(points: list[tuple[float, float]], *, most: int = 200) -> list[tuple[float, float]]:
    return points[:: max(1, len(points) // most)]
