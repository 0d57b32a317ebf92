"""`mlx-gemma4 convert`: a checkpoint to fewer bits, or back to bfloat16."""

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.terminal import ProgressBar, say
from mlx_gemma4.errors import OptionError

if TYPE_CHECKING:
    from mlx_gemma4.convert.plan import ConversionPlan

_WIDTH = 120  # of a table that goes to no terminal

Source = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A name on the Hugging Face Hub, or a folder.")
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME",
        help="q4, q4-awq, q8, mixed-4-8, mxfp4, nvfp4, mxfp8, qat-q4_0, bf16, or a .toml file.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="The folder to make. Default: the checkpoint's name and the recipe's, here.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show size, memory, and time; write nothing.")
]
Report = Annotated[
    bool, typer.Option("--report", help="Compare the result with the source, for the model card.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there.")]
NoResume = Annotated[
    bool, typer.Option("--no-resume", help="Begin anew, whatever an interrupted run has done.")
]
AllowNan = Annotated[
    bool, typer.Option("--allow-nan", help="Take over values that are not finite.")
]


def convert(
    checkpoint: Source,
    recipe: Recipe = "q4",
    output: Output = None,
    dry_run: DryRun = False,
    report: Report = False,
    force: Force = False,
    no_resume: NoResume = False,
    allow_nan: AllowNan = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Convert a checkpoint to fewer bits, or back to bfloat16.

    The folder is made whole or not at all; an interrupted run goes on where it stopped when it is
    started again.
    """
    from mlx_gemma4.convert.recipe import read_recipe

    chosen = read_recipe(recipe)  # before anything is downloaded
    target = Path(output).expanduser() if output else Path(_default_output(checkpoint, chosen.name))
    from mlx_gemma4.convert.plan import plan_conversion
    from mlx_gemma4.convert.source import check_config, check_tokenizer, open_source
    from mlx_gemma4.convert.target import check_before_download, partial_folder_of
    from mlx_gemma4.hub import find_checkpoint, outline_checkpoint

    with outline_checkpoint(checkpoint, check=check_config) as outline:
        source = open_source(outline.folder, checkpoint)
        if report and source.is_assistant:
            raise OptionError(
                f"{checkpoint} is a drafter, which answers nothing by itself, and --report "
                "compares answers; leave it out"
            )
        if dry_run or outline.missing_bytes:
            plan = plan_conversion(source, chosen)
            if dry_run:
                return _show_plan(plan, outline.missing_bytes, as_json=as_json)
            check_before_download(plan, target, outline.missing_bytes, force=force)
    if outline.missing_bytes:
        source = open_source(find_checkpoint(checkpoint, check=check_config), checkpoint)
    check_tokenizer(source)
    from mlx_gemma4.convert.conversion import convert as run

    try:
        with _PhaseBars() as bars:
            done = run(
                source,
                chosen,
                target,
                force=force,
                resume=not no_resume,
                allow_nan=allow_nan,
                progress=bars.update,
                evaluate=_compare_with(source.folder) if report else None,
            )
    except KeyboardInterrupt:
        if partial_folder_of(target).exists():
            say(
                f"{target} was not made; what is done stands in {partial_folder_of(target)}, and "
                "the same command goes on from there"
            )
        raise
    from mlx_gemma4.memory import format_bytes

    if done.kept_shards:
        files = "1 file" if done.kept_shards == 1 else f"{done.kept_shards} files"
        verb = "was" if done.kept_shards == 1 else "were"
        say(f"note: {files} of an interrupted run {verb} kept")
    for note in done.notes:
        say(f"note: {note}")
    if as_json:
        document = {
            **_document(done.plan),
            "folder": str(target),
            "kept_shards": done.kept_shards,
            "notes": list(done.notes),
            "quality": done.quality,
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return 0
    print(
        f"{target}: {format_bytes(done.plan.nbytes)}, {done.plan.bits_per_weight:.2f} bits per "
        f"weight (was {format_bytes(source.disk_bytes)})"
    )
    return 0


def _default_output(checkpoint: str, recipe: str) -> str:
    """Return gemma-4-12b-it-q4 for google/gemma-4-12B-it."""
    return f"{Path(checkpoint).name.lower()}-{recipe}"


class _PhaseBars:
    """A bar for each phase of a conversion, one after the other."""

    def __init__(self) -> None:
        self._phase = ""
        self._bar = ProgressBar("", in_bytes=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, phase: str, done: int, total: int) -> None:
        """Show how much of a phase is done; another name than before begins a bar of its own."""
        if phase != self._phase:
            self._bar.close()
            self._phase, self._bar = phase, ProgressBar(phase, in_bytes=True)
        self._bar.update(done, total)


def _compare_with(reference: Path) -> Any:
    """Return what measures a finished folder against its source."""

    def evaluate(folder: Path) -> dict[str, Any]:
        from mlx_gemma4.evaluation.compare import compare
        from mlx_gemma4.evaluation.prompts import bundled_prompts

        with ProgressBar("comparing with the source") as bar:
            report = compare(folder, reference, bundled_prompts("report"), progress=bar.update)
        return report.to_dict()

    return evaluate


def _document(plan: "ConversionPlan") -> dict[str, Any]:
    return {
        "source": plan.source.name,
        "recipe": plan.recipe.name,
        "source_bytes": plan.source.disk_bytes,
        "bytes": plan.nbytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "files": [shard.file for shard in plan.shards],
        "modules": [
            {**row, "settings": vars(row["settings"]) if row["settings"] else None}
            for row in plan.groups()
        ],
    }


def _show_plan(plan: "ConversionPlan", missing_bytes: int, *, as_json: bool) -> int:
    """Print what a conversion would do."""
    from mlx_gemma4.convert.estimate import estimate
    from mlx_gemma4.memory import format_bytes

    needs = estimate(plan)
    if as_json:
        document = {
            **_document(plan),
            "download_bytes": missing_bytes,
            "peak_memory_bytes": needs.peak_bytes,
            "seconds": round(needs.seconds, 1),
            "learning_seconds": round(needs.learning_seconds, 1),
            "notes": list(plan.source.notes),
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return 0
    _print_table(plan)
    files = f"{len(plan.shards)} file{'s' * (len(plan.shards) != 1)}"
    print(
        f"\n{plan.source.name} as {plan.recipe.name}: {format_bytes(plan.nbytes)} in {files} (now "
        f"{format_bytes(plan.source.disk_bytes)}), {plan.bits_per_weight:.2f} bits per weight"
    )
    takes = f"takes about {format_bytes(needs.peak_bytes)} of memory and {_duration(needs.seconds)}"
    if needs.learning_seconds:
        takes += f", of it {_duration(needs.learning_seconds)} to learn scales,"
    after = f", after a download of {format_bytes(missing_bytes)}" if missing_bytes else ""
    print(f"{takes} here{after}; nothing was written")
    for note in plan.source.notes:
        say(f"note: {note}")
    return 0


def _print_table(plan: "ConversionPlan") -> None:
    from rich.console import Console
    from rich.table import Table

    from mlx_gemma4.convert.plan import describe
    from mlx_gemma4.memory import format_bytes

    table = Table(box=None, pad_edge=False)
    for heading in ("modules", "stored as"):
        table.add_column(heading)
    for heading in ("number", "weights", "size"):
        table.add_column(heading, justify="right")
    for row in plan.groups():
        stored = describe(row["settings"]) if row["settings"] else row["dtype"]
        table.add_row(
            row["modules"],
            stored,
            f"{row['count']:,}",
            f"{row['weights']:,}",
            format_bytes(row["nbytes"]),
        )
    # A file or a pipe has no width by which columns would have to be folded.
    width = None if sys.stdout.isatty() else _WIDTH
    Console(highlight=False, width=width).print(table)


def _duration(seconds: float) -> str:
    """Return a time to a figure or two, since it is an estimate."""
    if seconds < 100:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 6000 else f"{seconds / 3600:,.0f} h"
