"""Figures as SVG that follow the page's colors: text and axes are `currentColor`, so one file serves light and dark.

Each figure comes with its data, so that nobody has to read numbers off a picture.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, MaxNLocator

COLORS = ["#5b84b1", "#e0812f", "#2f9e74", "#b0609c", "#a58a1f", "#777777"]
_INK = "#010203"  # stands for currentColor while matplotlib draws


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: file name without suffix, caption, SVG text, data."""

    name: str
    caption: str
    svg: str
    data: Any


def curves(series: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, xlabel: str, ylabel: str, what: str) -> Figure:
    """Draw mean curves with the range over seeds. `series`: arm -> seed -> (x, y) points; arms keep their order."""
    data: dict[str, Any] = {}

    def draw(axes: Axes) -> None:
        for color, (arm, seeds) in zip(_colors(), series.items(), strict=False):
            xs, ys = _aligned(seeds)
            if not len(xs):
                continue
            data[arm] = {"x": xs.tolist(), "mean": ys.mean(0).tolist(), "low": ys.min(0).tolist(), "high": ys.max(0).tolist()}
            axes.plot(xs, ys.mean(0), color=color, label=f"{arm} ({len(ys)} seeds)", marker="o", markersize=3)
            axes.fill_between(xs, ys.min(0), ys.max(0), color=color, alpha=0.25, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _zoom(axes, [d["mean"] for d in data.values()])
        axes.legend(frameon=False)

    svg = _svg("curves", draw)
    caption = f"On the way, {what}: mean over seeds, band from lowest to highest seed."
    return Figure(name="curves", caption=caption, svg=svg, data=data)


def differences(contrasts: Sequence[Mapping[str, Any]], *, margin: float, unit: str, better: str) -> Figure:
    """Draw every seed's paired difference, the mean with its interval, and the margin that counts as no difference."""

    def draw(axes: Axes) -> None:
        axes.axvspan(-margin, margin, color=COLORS[5], alpha=0.18, linewidth=0, label=f"counts as none (±{margin:g})")
        axes.axvline(0, color=_INK, linewidth=0.8)
        for i, (color, c) in enumerate(zip(_colors(), contrasts, strict=False)):
            y = -i
            points = list(c["per_seed"].values())
            axes.plot(points, [y + 0.16] * len(points), "o", color=color, markersize=5, alpha=0.75)
            if c["interval"]:
                axes.plot(c["interval"], [y - 0.1, y - 0.1], color=color, linewidth=2.5)
            if c["mean"] is not None:
                axes.plot([c["mean"]], [y - 0.1], "D", color=color, markersize=6)
        axes.set_yticks([-i for i in range(len(contrasts))], [f"{c['arm']} − {c['reference']}" for c in contrasts])
        axes.set_ylim(-len(contrasts) + 0.4, 0.6)
        axes.set(xlabel=f"difference in {unit} ({'left' if better == 'less' else 'right'} of 0: the first is better)")
        axes.legend(frameon=False, loc="best")

    data = [{k: c[k] for k in ("arm", "reference", "per_seed", "mean", "interval")} for c in contrasts]
    svg = _svg("differences", draw, height=1.3 + 0.8 * len(contrasts))
    caption = "Paired differences: dots are seeds, the diamond is the mean, the bar its interval."
    return Figure(name="differences", caption=caption, svg=svg, data=data)


def of_evaluation(name: str, figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw what an evaluator gave as a figure, of all runs in one: lines of each, and the mean of every level.

    `figures`: label of a run ("ARM seed N", or empty) -> Reading.figure; runs of one arm have one color.
    """
    first = next(iter(figures.values()))

    def draw(axes: Axes) -> None:
        colors: dict[str, str] = {}
        for label, figure in figures.items():
            arm = label.rpartition(" seed ")[0] or label
            for line, (xs, ys) in figure["lines"].items():
                called = ", ".join(filter(None, (line, arm)))
                new = called not in colors
                color = colors.setdefault(called, _colors()[len(colors)])
                axes.plot(xs, ys, color=color, marker="o", markersize=3.5, label=called if new else None)
        styles = [":", "-.", "--", "-", (0, (1, 4)), (0, (5, 5))] * 4
        for style, level in zip(styles, first.get("levels", {}), strict=False):
            mean = float(np.mean([figure["levels"][level] for figure in figures.values()]))
            axes.axhline(mean, color=COLORS[5], linestyle=style, linewidth=1.3, label=level)
        axes.set(xlabel=first["xlabel"], ylabel=first["ylabel"])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8, ncols=2)

    return Figure(name=name, caption=first["caption"], svg=_svg(name, draw), data=dict(figures))


def histogram(facts: Mapping[str, Any]) -> Figure:
    """Draw how often values are, with the span that is taken and a level: the histogram of an Exhibit."""
    values, span, line = np.array(facts["values"]), facts["span"], facts["line"]

    def draw(axes: Axes) -> None:
        edge = max(line["at"], values.max()) * 1.05
        axes.hist(values, bins=np.linspace(0, edge, 41).tolist(), color=COLORS[0])
        low, high = max(0, span["from"]), min(span["to"], edge)
        axes.axvspan(low, high, color=COLORS[1], alpha=0.2, linewidth=0, label=span["label"])
        axes.axvline(line["at"], color=_INK, linestyle="--", linewidth=1, label=line["label"])
        axes.set(xlabel=facts["xlabel"], ylabel=facts["ylabel"], xlim=(0, edge))
        axes.legend(frameon=False)

    name = facts["name"]
    return Figure(name=name, caption=facts["caption"], svg=_svg(name, draw), data=dict(facts))


def learnability(settings: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how far below the best floor each setting got, by tokens: a panel for states and size of patches, a line a run.

    `settings`: records of a map (seedbed.experiments.study.learnability).
    """
    panels: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for s in sorted(settings, key=lambda s: (s["patch_cells"], s["cell_states"])):
        panels.setdefault((s["patch_cells"], s["cell_states"]), []).append(s)
    columns = max((sum(cells == c for c, _ in panels) for cells, _ in panels), default=1)
    rows = -(-len(panels) // columns) if panels else 1

    def draw(grid: Any) -> None:
        flat = list(np.ravel(grid))
        for axes, ((cells, states), runs) in zip(flat, panels.items(), strict=False):
            for color, style, s in zip(_colors(), ["-"] * 6 + ["--"] * 6 + [":"] * 12, runs, strict=False):
                x, y = zip(*s["below_on_the_way"], strict=True)
                said = ", ".join(f"{name} {value}" for name, value in s["source"].items())
                label = f"{said}, {s['parameters_without_embeddings'] / 1e6:.1f}M"
                axes.plot(x, y, style, color=color, marker=".", markersize=4, label=label)
            axes.axhline(0.1, color=_INK, linewidth=0.8, linestyle=":")
            axes.axhline(0, color=_INK, linewidth=0.8)
            axes.set_title(f"{states} states, {cells} cell{'s' if cells > 1 else ''} a patch", fontsize=9)
            axes.set_ylim(-0.5, 0.5)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.legend(frameon=False, fontsize=6, loc="best")
        for axes in flat[len(panels) :]:
            axes.set_visible(False)
        for axes in flat[::columns]:
            axes.set_ylabel("nats below the best floor")
        for axes in flat[-columns:]:
            axes.set_xlabel("tokens")

    svg = _svg("learnability", draw, height=3.2 * rows, width=4.2 * columns, shape=(rows, columns))
    caption = "Nats below the best floor on unseen rules, by tokens; above the dotted line (0.1) a stage counts as learned."
    return Figure(name="learnability", caption=caption, svg=svg, data=list(settings))


def _svg(
    name: str, draw: Callable[[Any], None], *, height: float = 3.4, width: float = 7, shape: tuple[int, int] = (1, 1)
) -> str:
    """Draw on one pair of axes, or on a grid of them."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.15,
        "grid.color": _INK,
    }
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        draw(canvas.subplots(*shape))
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'font: ([^;"]*?)sans-serif', r"font: \1system-ui, sans-serif", svg)
    svg = re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', _unsized, svg, count=1
    )
    return svg


def _unsized(match: re.Match[str]) -> str:
    """The page gives the width; the view box keeps the shape."""
    return "<svg " + " ".join(g for g in match.groups() if g)


def _colors() -> list[str]:
    return COLORS * 4


def _aligned(seeds: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """The points that all seeds have, as x and one line of y a seed."""
    common = sorted(set.intersection(*({x for x, _ in points} for points in seeds.values()))) if seeds else []
    return np.array(common), np.array([[dict(points)[x] for x in common] for points in seeds.values()])


def _zoom(axes: Axes, lines: Sequence[Sequence[float]]) -> None:
    """Leave the first, steep part of the curves out of the picture's height: the end is what is compared."""
    ends = [y for line in lines for y in line[max(1, len(line) // 5) :]]
    if len(ends) > 2:
        low, high = min(ends), max(ends)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.25 * (high - low) + 1e-3)
