"""Drawings of the report: shares of right answers along each axis, with their intervals.

matplotlib comes with the extra `bench`, and is imported when something is drawn.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.frontend.axes import AXES
from benchmarks.frontend.axis import Axis
from benchmarks.frontend.report import Report, wilson
from benchmarks.frontend.samples import TASKS

COLUMNS = 3
DPI = 80
COLOURS = {
    "shape": "C0",
    "colour": "C1",
    "number": "C2",
    "keys": "C3",
    "first key": "C6",
    "melody": "C4",
    "copy": "C7",
}
SHOWN = (
    ("rotation", (0, 15, 45, 180)),
    ("resolution", (0.25, 0.125, 0.0625, 0.03125)),
    ("blur", (2, 5, 12, 20)),
    ("noise", (0.5, 4, 8, 16)),
    ("JPEG", (25, 10, 5, 1)),
    ("contrast", (0.5, 0.1, 0.02, 0.005)),
    ("cut off", (0.1, 0.2, 0.3, 0.5)),
)


def draw_all(report: Report, folder: Path) -> None:
    """Write pictures.png, sounds.png, prompts.png, and examples.png into a folder."""
    for medium in ("picture", "sound", "prompt"):
        axes = [axis for axis in AXES if axis.medium == medium]
        draw_axes(report, axes).savefig(folder / f"{medium}s.png", dpi=DPI)
    draw_examples().savefig(folder / "examples.png", dpi=DPI)


def draw_axes(report: Report, axes: list[Axis]) -> Any:
    """Return a figure with a panel for each axis."""
    from matplotlib.figure import Figure

    rows = -(-len(axes) // COLUMNS)
    figure = Figure(figsize=(10, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for panel, axis in zip(panels, axes, strict=False):
        draw_axis(panel, report, axis)
    for panel in list(figure.axes)[len(axes) :]:
        panel.set_axis_off()
    lines = {line.get_label(): line for panel in figure.axes for line in panel.get_lines()}
    lines = {name: line for name, line in lines.items() if name in COLOURS}
    figure.legend(lines.values(), map(str, lines), loc="outside upper right", ncols=len(lines))
    return figure


def draw_axis(panel: Any, report: Report, axis: Axis) -> None:
    """Draw the scores of an axis; filled marks are levels that training had."""
    places = np.arange(len(axis.levels))
    for task in axis.tasks:
        for score in TASKS[task].scores:
            known = [
                (place, counts, axis.is_trained(task, level))
                for place, level in zip(places, axis.levels, strict=True)
                if (counts := report.counts(axis, task, score, level))
            ]
            if not known:
                continue
            at = [place for place, _, _ in known]
            shares = np.array([right / samples for _, (right, samples), _ in known])
            bounds = np.array([wilson(*counts) for _, counts, _ in known]).T
            colour = COLOURS[score]
            panel.plot(at, 100 * shares, color=colour, linewidth=1, label=score)
            panel.fill_between(at, *(100 * bounds), color=colour, alpha=0.15, linewidth=0)
            for is_trained, face in ((True, colour), (False, "white")):
                panel.plot(
                    [place for place, _, trained in known if trained is is_trained],
                    [100 * s for s, k in zip(shares, known, strict=True) if k[2] is is_trained],
                    "o",
                    color=colour,
                    markerfacecolor=face,
                    markersize=3.5,
                )
    labels = [axis.label(level).removesuffix(axis.unit) for level in axis.levels]
    is_long = max(map(len, labels)) > 6 or sum(map(len, labels)) > 30
    panel.set_xticks(
        places, labels, rotation=45 if is_long else 0, ha="right" if is_long else "center"
    )
    panel.set_title(f"{axis.name}{',' * (len(axis.unit) > 1)}{axis.unit}")
    panel.set_ylim(-4, 104)
    panel.set_ylabel("right, %")


def draw_examples() -> Any:
    """Return a figure of one sample along some axes, as it was asked about."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 * len(SHOWN)), layout="constrained")
    axes = {axis.name: axis for axis in AXES}
    panels = figure.subplots(len(SHOWN), len(SHOWN[0][1]))
    unused: Any = None  # a processor, which pictures do not need
    for line, (name, levels) in zip(panels, SHOWN, strict=True):
        for panel, level in zip(line, levels, strict=True):
            asked = axes[name].ask("object", 5, level, unused)
            (pixels,) = asked.options["images"]
            panel.imshow(Image.fromarray(pixels), interpolation="nearest")
            panel.set_title(f"{name} {axes[name].label(level)}", fontsize=8)
            panel.set_axis_off()
    return figure
