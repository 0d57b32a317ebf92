"""`mlx-gemma4 kernels`: which Metal kernels run on this machine, and why."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from mlx_gemma4.cli import options
from mlx_gemma4.cli.terminal import say

if TYPE_CHECKING:
    from mlx_gemma4.kernels.registry import Report

_WIDTH = 120  # of a table that goes to no terminal


def kernels(as_json: options.AsJson = False, verbose: options.Verbose = False) -> int:
    """Show which Metal kernels run here, and why.

    What earlier starts and `tune` have found out is read; nothing is run.
    """
    from mlx_gemma4.kernels import registry

    print_report(registry.report(), as_json=as_json, with_cases=verbose)
    return 0


def print_report(report: "Report", *, as_json: bool, with_cases: bool) -> None:
    """Print states, reasons, and gains as a table or as one JSON document; notes go to stderr."""
    if as_json:
        print(json.dumps(_document(report), ensure_ascii=False, indent=2))
        return
    if report.machine is None:
        reason = next(iter(report.states.values())).reason
        print(f"{reason}: all {len(report.states)} kernels are off, and plain MLX runs")
        return
    _print_table(report, with_cases=with_cases)
    machine = report.machine
    print(f"\n{machine.chip}, macOS {machine.system}, MLX {machine.mlx_version}; {report.path}")
    if report.sizes_key:
        dtype, hidden_size, *_ = report.sizes_key.split("-")
        print(
            f"gain: time of plain MLX over the kernel's, on the shapes of a model of hidden size "
            f"{int(hidden_size):,} in {dtype}; above 1 the kernel is faster"
        )
    for note in report.notes:
        say(f"note: {note}")


def _document(report: "Report") -> dict[str, Any]:
    return {
        "machine": report.machine and dataclasses.asdict(report.machine),
        "file": report.path and str(report.path),
        "sizes": report.sizes_key or None,
        "kernels": {
            name: {
                "state": "on" if state.is_on else "off",
                "reason": state.reason,
                "gain": state.gain,
                "timings": [dataclasses.asdict(timing) for timing in state.timings],
            }
            for name, state in report.states.items()
        },
        "notes": report.notes,
    }


def _print_table(report: "Report", *, with_cases: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("kernel", "state"):
        table.add_column(heading)
    table.add_column("gain", justify="right")
    table.add_column("reason", overflow="fold")
    for name, state in report.states.items():
        gain = "" if state.gain is None else f"{state.gain:.2f}x"
        table.add_row(name, "on" if state.is_on else "off", gain, Text(state.reason))
        for timing in state.timings if with_cases else ():
            times = f"{timing.label}: {timing.kernel_ms:.4f} ms, plain {timing.plain_ms:.4f} ms"
            table.add_row("", "", f"{timing.gain:.2f}x", Text(times))
    # A file or a pipe has no width by which columns would have to be folded.
    width = None if sys.stdout.isatty() else _WIDTH
    Console(highlight=False, width=width).print(table)
