"""`mlx-gemma4 evaluate`: how much a checkpoint differs from another."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.terminal import ProgressBar, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlx_gemma4.evaluation.compare import Quality, QualityReport

Subject = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="What to judge: a name on the Hugging Face Hub, or a folder."
    ),
]
Against = Annotated[
    str,
    typer.Option(
        "--against",
        metavar="NAME",
        help="What to measure by, such as the checkpoint it was made from.",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="A JSON object a line: text, images, audio (paths), answer. Default: a bundled set.",
    ),
]

_WIDTH = 120  # of a table that goes to no terminal
_HEADINGS = (
    "positions",
    "mean KL",
    "99.9 % KL",
    "largest KL",
    "same top",
    "perplexity",
    "the other's",
)


def evaluate(
    checkpoint: Subject,
    against: Against,
    prompts: Prompts = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Measure how much a checkpoint differs from another.

    KL divergence of next-token distributions, agreement on the most likely token, and perplexity,
    over texts, pictures, and sounds.  Both are read layer by layer; neither need fit into memory.
    """
    from mlx_gemma4.evaluation.prompts import bundled_prompts, read_prompts

    # Before anything is downloaded.
    chosen = bundled_prompts("report") if prompts is None else read_prompts(prompts)
    from mlx_gemma4.evaluation.compare import compare
    from mlx_gemma4.hub import find_checkpoint

    subject, reference = find_checkpoint(checkpoint), find_checkpoint(against)
    with ProgressBar("comparing") as bar:
        report = compare(subject, reference, chosen, progress=bar.update)
    if as_json:
        document = {
            "checkpoint": checkpoint,
            "against": against,
            "prompt_set": prompts or "bundled",
            **report.to_dict(with_prompts=verbose),
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return 0
    _print_report(report, with_prompts=verbose)
    count = report.kinds["all"].prompts
    print(
        f"\n{checkpoint} against {against}, {count:,} prompt{'s' * (count != 1)}; KL in nats, 0 is "
        "no difference"
    )
    for note in report.notes:
        say(f"note: {note}")
    return 0


def _print_report(report: "QualityReport", *, with_prompts: bool) -> None:
    if with_prompts:
        _print_table("prompt", report.by_prompt)
        print()
    _print_table("prompts", report.kinds)


def _print_table(heading: str, rows: "Mapping[str, Quality]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column(heading, overflow="fold")
    for column in _HEADINGS:
        table.add_column(column, justify="right")
    for name, quality in rows.items():
        figures = (
            f"{quality.positions:,}",
            f"{quality.mean_kl:.5f}",
            f"{quality.kl_999:.5f}",
            f"{quality.max_kl:.5f}",
            f"{quality.top1_agreement:.2%}".replace("%", " %"),
            _perplexity(quality.perplexity),
            _perplexity(quality.reference_perplexity),
        )
        table.add_row(Text(name), *figures)
    # A file or a pipe has no width by which columns would have to be folded.
    width = None if sys.stdout.isatty() else _WIDTH
    Console(highlight=False, width=width).print(table)


def _perplexity(value: float) -> str:
    return f"{value:,.3f}" if value < 1e5 else f"{value:.2e}"
