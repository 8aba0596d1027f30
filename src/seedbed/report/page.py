"""One page a run or study: self-contained (no network, no scripts), light and dark, everything escaped.

Writes report.html and figures/NAME.svg with figures/NAME.json beside it.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from seedbed.core.durable import write_whole
from seedbed.core.errors import DataError
from seedbed.core.json_files import read_object
from seedbed.core.places import homeless
from seedbed.core.run_record import RunRecord, loss_of_text
from seedbed.report import figures as draw

_UNITS = {"test_bits_per_byte": "bits per byte", "test_loss_nats": "nats per token"}


def write_page(folder: Path) -> Path:
    """Write the page of a finished run or study and return its path."""
    if (folder / "comparison.json").is_file():
        return write_study_page(folder)
    if RunRecord(folder).is_packed:
        raise DataError(f"{folder} is a run of a packed study, which has one page for all runs; give {folder.parent.parent}")
    if (folder / "final.json").is_file():
        return write_run_page(folder)
    raise DataError(f"{folder} has neither comparison.json nor final.json; give a finished run or study folder")


def write_study_page(folder: Path) -> Path:
    """Write the page of a study from comparison.json and its run folders."""
    data = read_object(folder / "comparison.json", advice="give a finished study folder")
    unit = _UNITS[data["metric"]]
    series = {
        arm: {seed: _valid(folder / arm / f"seed-{seed}", data["budget"]["stage"]) for seed in found["per_seed"]}
        for arm, found in data["arms"].items()
    }
    made = []
    if any(points for seeds in series.values() for points in seeds.values()):
        made.append(draw.curves(series, xlabel=f"tokens of stage {data['budget']['stage']}", ylabel="nats per token"))
    made.append(draw.differences(data["contrasts"], margin=data["margin"], unit=unit))
    labels = {f"{arm} seed {seed}": r for arm, seeds in data["stage0"].items() for seed, r in seeds.items()}
    first = {arm: seed for arm, found in data["arms"].items() for seed in list(found["per_seed"])[:1]}
    runs = {arm: RunRecord(folder / arm / f"seed-{seed}") for arm, seed in first.items()}
    finals = {arm: run.final() or {} for arm, run in runs.items()}
    return _write(
        folder,
        kind="study",
        title=data["title"] or data["name"],
        name=data["name"],
        verdict=data["verdict"].split("; "),
        tone=_tone(data),
        data=data,
        unit=unit,
        figures=made,
        stage0=labels,
        exhibits=_exhibits(list(runs.values())),
        samples={arm: final.get("samples", []) for arm, final in finals.items()},
        ledgers=data["ledger"],
        mixtures=data.get("mixture", {}),
        givers={},
        spikes=[],
        resolved={arm: run.plan_text() for arm, run in runs.items()},
        environment=next((run.environment() or {} for run in runs.values()), {}),
    )


def write_run_page(folder: Path) -> Path:
    """Write the page of one run from final.json and metrics.jsonl. Raises DataError for a run that failed."""
    record = RunRecord(folder)
    final = record.final()
    if final is None:
        raise DataError(f"{folder} has no final.json; give a finished run or study folder")
    if final["status"] != "done":
        raise DataError(f"the run in {folder} failed, so it has no page: {final['error']}")
    lines = list(record.metrics())
    last = lines[-1]["stage"] if lines else ""
    training = [(x["tokens"], x["loss_nats"]) for x in lines if x["stage"] == last]
    series = {"training": {"0": _thinned(training)}, "validation": {"0": _valid(folder, last)}}
    made = []
    if training:
        figure = draw.curves(
            {k: v for k, v in series.items() if v["0"]}, xlabel=f"tokens of stage {last}", ylabel="nats per token"
        )
        made.append(
            draw.Figure(name=figure.name, caption="Loss of the last stage, one seed.", svg=figure.svg, data=figure.data)
        )
    test = final.get("test")
    verdict = (
        f"{test['bits_per_byte']:.4f} bits per byte on {test['bytes']:,} bytes of test text: one run without control, a demo"
        if test
        else "trained; no test text was read"
    )
    return _write(
        folder,
        kind="run",
        title=f"{final['name']}, arm {final['arm']}, seed {final['seed']}",
        name=final["name"],
        verdict=[verdict, *filter(None, [loss_of_text(test or {})])],
        tone="undecided",
        data=None,
        unit="bits per byte",
        figures=made,
        stage0=final["stage0"],
        givers={stage: {**g, "from": homeless(g["from"])} for stage, g in final.get("givers", {}).items()},
        spikes=final.get("spikes", []),
        exhibits=_exhibits([record]),
        samples={final["arm"]: final.get("samples", [])},
        ledgers={final["arm"]: {"stages": final["ledger"], "total": None}},
        mixtures={final["arm"]: final.get("mixture", {})},
        resolved={final["arm"]: record.plan_text()},
        environment=record.environment() or {},
    )


def _write(folder: Path, *, figures: list[draw.Figure], stage0: Mapping[str, Any], exhibits: Any, **content: Any) -> Path:
    if stage0:
        figures = [*figures, draw.floors(stage0)]
    if exhibits and exhibits["ratios"]:
        figures = [*figures, draw.complexity(exhibits)]
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
        stage0=stage0,
        exhibits=exhibits,
        **content,
    )
    write_whole(folder / "report.html", html)
    return folder / "report.html"


def _tone(data: Mapping[str, Any]) -> str:
    """The color of the verdict: that of the first contrast, but a stage that did not learn is shown as undecided."""
    unlearned = any(not r["learned"] for seeds in data["stage0"].values() for r in seeds.values())
    return "undecided" if unlearned or not data["contrasts"] else str(data["contrasts"][0]["verdict"])


def _exhibits(runs: list[RunRecord]) -> dict[str, Any] | None:
    """The first run's picture that is there, as data a page can hold."""
    shown = next((found for run in runs for found in run.exhibits()), None)
    return None if shown is None else {**shown[0], "picture": base64.b64encode(shown[1]).decode()}


def _valid(run: Path, stage: str) -> list[tuple[float, float]]:
    lines = RunRecord(run).metrics()
    return [(x["tokens"], x["valid_loss_nats"]) for x in lines if x["stage"] == stage and "valid_loss_nats" in x]


def _thinned(points: list[tuple[float, float]], *, most: int = 200) -> list[tuple[float, float]]:
    return points[:: max(1, len(points) // most)]
