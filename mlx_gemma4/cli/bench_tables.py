"""What `bench` has measured, as tables for people."""

import sys
from typing import TYPE_CHECKING

from mlx_gemma4.cli.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlx_gemma4.bench.compare import Change
    from mlx_gemma4.bench.facts import ModelFacts
    from mlx_gemma4.bench.report import Document, Row

HEADINGS = ("measure", "median", "spread", "of bandwidth", "of arithmetic", "peak", "planned")
ENERGY_HEADINGS = ("energy", "power")

_ONE = {"tokens": "token", "soft tokens": "soft token", "seconds of sound": "second of sound"}
_WIDTH = 120  # of a table that goes to no terminal


def print_document(document: "Document") -> None:
    """Print a document: machine, model, quality, and a row a measure; notes go to stderr."""
    print("\n".join(describe_document(document)), end="\n\n")
    print_table(*table_of(document.rows), texts=(0,))
    for finding in document.kernels:
        print(f"kernel {finding.name}: {'on' if finding.is_on else 'off'}, {finding.reason}")
    for note in document.notes:
        say(f"note: {note}")


def describe_document(document: "Document") -> list[str]:
    """Return machine, model, ceiling, and quality and energy if known, one line each."""
    machine, model, ceiling = document.machine, document.model, document.machine.ceiling
    source = "Apple's figures" if machine.apple_chip else "measured"
    lines = [
        f"{machine.chip}, {machine.device}, {machine.memory_bytes / 1e9:.0f} GB, {machine.system}, "
        f"MLX {machine.versions['mlx']}" + (f", {machine.blas}" if machine.blas else ""),
        f"{model.num_parameters / 1e9:.2f} billion parameters, {model.stored_as}, "
        f"{model.bits_per_weight:.2f} bits per weight, {model.dtype} activations"
        + _describe_cache(model),
        f"ceiling, {source}: {ceiling.bandwidth_gb_per_s:,.4g} GB/s, "
        f"{ceiling.prompt_tflops:,.3g} TFLOPS; copying here: {machine.copy_gb_per_s:,.4g} GB/s",
    ]
    if quality := document.quality:
        lines.append(
            f"quality of {model.recipe}: mean KL {quality.mean_kl:.5f}, same top token "
            f"{100 * quality.top1_agreement:.2f} %, {quality.prompts} prompts"
        )
    if power := document.power:
        lines.append(
            f"energy by {power.source}: {power.covers}; {power.idle_w:.3g} W at rest, which are "
            "part of it"
        )
    return lines


def _describe_cache(model: "ModelFacts") -> str:
    """Return how global layers' rows are kept, if in another way than by default."""
    parts = ["8-bit cache"] * (model.kv_bits == 8) + ["values alone"] * (model.kv_rows == "value")
    return f", {' of '.join(parts)}" if parts else ""


def print_table(
    headings: tuple[str, ...], rows: list[tuple[str, ...]], *, texts: tuple[int, ...]
) -> None:
    """Print a table; columns of numbers end at the right, those in `texts` begin at the left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index in texts else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    # A file or a pipe has no width by which columns would have to be folded.
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(table)


def table_of(rows: "Sequence[Row]") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells of measures; with energy if one of them has it."""
    if all(row.samples_j is None for row in rows):
        return HEADINGS, [show_row(row) for row in rows]
    cells = [(*show_row(row), show_energy(row), _watts(row.power_w)) for row in rows]
    return (*HEADINGS, *ENERGY_HEADINGS), cells


def table_of_changes(
    changes: "Sequence[Change]",
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells of a comparison; with energy if both have it somewhere."""
    headings = ("measure", "before", "after", "speed", "")
    cells = [
        (
            change.first.label,
            show_speed(change.first),
            show_speed(change.second),
            f"{change.speedup:.2f}x",
            change.verdict,
        )
        for change in changes
    ]
    if all(change.energy_ratio is None for change in changes):
        return headings, cells
    energies = [
        (show_energy(change.first), show_energy(change.second), _times(change.energy_ratio))
        for change in changes
    ]
    return (
        (*headings, "energy before", "after", "energy"),
        [(*row, *energy) for row, energy in zip(cells, energies, strict=True)],
    )


def show_row(row: "Row") -> tuple[str, ...]:
    """Return what stands under `HEADINGS`."""
    return (
        row.label,
        show_speed(row),
        f"{100 * row.spread:.0f} %" + " noisy" * row.is_noisy,
        _percent(row.reading_share),
        _percent(row.arithmetic_share),
        _size(row.peak_bytes),
        _size(row.planned_bytes),
    )


def show_speed(row: "Row") -> str:
    """Return a rate, or seconds where only the time counts."""
    if row.rate is None:
        return f"{row.median_s:.3g} s"
    return f"{row.rate:,.0f} {row.unit}/s" if row.rate >= 1000 else f"{row.rate:.3g} {row.unit}/s"


def show_energy(row: "Row") -> str:
    """Return joules a unit, or of all of it where only the time counts."""
    if row.unit_j is None:
        return ""
    return f"{row.unit_j:.3g} J" + (f"/{_ONE.get(row.unit, row.unit)}" if row.unit else "")


def _watts(watts: float | None) -> str:
    return "" if watts is None else f"{watts:.3g} W"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _size(count: int | None) -> str:
    """Return megabytes, in which a peak and its plan can be told apart."""
    return "" if count is None else f"{count / 1e6:,.0f} MB"
