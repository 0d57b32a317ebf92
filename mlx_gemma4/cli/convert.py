"""`mlx-gemma4 convert`: a checkpoint to fewer bits, or back to bfloat16."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.terminal import ProgressBar, say

if TYPE_CHECKING:
    from mlx_gemma4.convert.plan import ConversionPlan

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
    from mlx_gemma4.convert.plan import plan_conversion
    from mlx_gemma4.convert.source import open_source
    from mlx_gemma4.hub import find_checkpoint

    source = open_source(find_checkpoint(checkpoint), checkpoint)
    if dry_run:
        return _show_plan(plan_conversion(source, chosen), as_json=as_json)
    from mlx_gemma4.convert.conversion import convert as run
    from mlx_gemma4.convert.conversion import partial_folder_of

    target = Path(output).expanduser() if output else Path(_default_output(checkpoint, chosen.name))
    evaluate = _compare_with(source.folder) if report else None
    try:
        with ProgressBar(f"converting to {chosen.name}", in_bytes=True) as bar:
            done = run(
                source,
                chosen,
                target,
                force=force,
                resume=not no_resume,
                allow_nan=allow_nan,
                progress=bar.update,
                evaluate=evaluate,
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
        say(f"note: {done.kept_shards} files of an interrupted run were kept")
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


def _show_plan(plan: "ConversionPlan", *, as_json: bool) -> int:
    """Print what a conversion would do."""
    from mlx_gemma4.convert.estimate import estimate
    from mlx_gemma4.memory import format_bytes

    needs = estimate(plan)
    if as_json:
        document = {
            **_document(plan),
            "peak_memory_bytes": needs.peak_bytes,
            "seconds": round(needs.seconds, 1),
            "notes": list(plan.source.notes),
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    from mlx_gemma4.convert.plan import describe

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
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\n{plan.source.name} as {plan.recipe.name}: {format_bytes(plan.nbytes)} in "
        f"{len(plan.shards)} files (now {format_bytes(plan.source.disk_bytes)}), "
        f"{plan.bits_per_weight:.2f} bits per weight"
    )
    console.print(
        f"takes about {format_bytes(needs.peak_bytes)} of memory and {needs.seconds:,.0f} s here; "
        "nothing was written"
    )
    for note in plan.source.notes:
        say(f"note: {note}")
    return 0
