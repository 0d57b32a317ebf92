"""Write README.md and its drawings from results.json, and nothing that is not in it.

The words stand in report.md.jinja, the figures in them come from the file.  A test compares the
page with what this makes.

    python -m benchmarks.frontend.report --write
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.frontend.axes import AXES
from benchmarks.frontend.axis import Axis, Condition, Level
from benchmarks.frontend.samples import TASKS

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
Z = 1.959964  # of the normal distribution: 95 %


def wilson(right: int, samples: int, z: float = Z) -> tuple[float, float]:
    """Return the Wilson score interval of a share."""
    share, square = right / samples, z * z
    middle = share + square / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + square / (4 * samples**2))
    scale = 1 + square / samples
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


class Report:
    """What the page asks of the results."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.conditions = document["conditions"]
        self.axes = {axis.name: axis for axis in AXES}

    def record(self, axis: Axis, task: str, level: Level) -> dict[str, Any] | None:
        return self.conditions.get(Condition(axis, task, level).key)

    def counts(self, axis: Axis, task: str, score: str, level: Level) -> tuple[int, int] | None:
        """Return right answers and samples; None where it was not measured."""
        record = self.record(axis, task, level)
        return (record["right"][score], record["samples"]) if record else None

    def share(self, axis_name: str, label: str, score: str) -> str:
        """Return a share of right answers with its interval, for a sentence."""
        axis = self.axes[axis_name]
        for level in axis.levels:
            for task in axis.tasks:
                if axis.label(level) == label and score in TASKS[task].scores:
                    counts = self.counts(axis, task, score, level)
                    if counts:
                        return show_share(*counts)
        raise KeyError(f"{axis_name} {label} {score}: not in the results")

    def shift(self, axis_name: str, label: str, kind: str) -> str:
        """Return a figure of soft tokens; `kind` is a name of `measure_shift`'s."""
        value = self.document["shifts"][axis_name][label][kind]
        if value is None:
            return ""
        return f"{value:.0%}" if kind == "still empty" else f"{value:.3f}"

    def table(self, axis_name: str) -> str:
        """Return an axis: a line a level, a column a score, and the shift where it was measured."""
        axis = self.axes[axis_name]
        scores = [(task, score) for task in axis.tasks for score in TASKS[task].scores]
        shifts = self.document["shifts"].get(axis_name)
        unit = "patches" if axis.medium == "picture" else "frames"
        names = [axis_name, *(score for _, score in scores)]
        if shifts:
            names += [f"shift, filled {unit}", f"shift, empty {unit}", "still empty"]
        lines = [row(names), row(["---"] * len(names))]
        for level in axis.levels:
            cells = [axis.label(level)]
            for task, score in scores:
                counts = self.counts(axis, task, score, level)
                mark = "†" if axis.is_trained(task, level) else ""
                cells.append(show_share(*counts) + mark if counts else "")
            if shifts:
                is_measured = axis.label(level) in shifts
                for kind in ("filled", "empty", "still empty"):
                    cells.append(
                        self.shift(axis_name, axis.label(level), kind) if is_measured else ""
                    )
            lines.append(row(cells))
        return "\n".join([axis.what, "", *lines])

    def chances(self) -> str:
        """Return what somebody who guesses gets right."""
        return ", ".join(
            f"{name} {chance:.1%}"
            for task in TASKS.values()
            for name, chance in task.chance.items()
            if chance >= 0.001
        )

    def most_said(self, axis_name: str, label: str, task: str, number: int = 3) -> str:
        """Return the most frequent wrong answers of a condition, with what was right."""
        axis = self.axes[axis_name]
        level = next(level for level in axis.levels if axis.label(level) == label)
        record = self.record(axis, task, level)
        pairs = record["wrong"][:number] if record else []
        return ", ".join(f"`{given}` for `{wanted}`" for wanted, given, _ in pairs)

    @property
    def samples(self) -> str:
        """How many samples a condition has: one number, or the least and the most."""
        numbers = sorted({record["samples"] for record in self.conditions.values()})
        return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def show_share(right: int, samples: int) -> str:
    low, high = wilson(right, samples)
    return f"{right / samples:.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def write_page(document: dict[str, Any]) -> str:
    """Return the page for a document."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("report.md.jinja")
    return template.render(report=Report(document), document=document)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="replace the page and the drawings")
    options = parser.parse_args()
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = write_page(document)
    if options.write:
        from benchmarks.frontend.plots import draw_all  # needs matplotlib

        draw_all(Report(document), HERE)
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
