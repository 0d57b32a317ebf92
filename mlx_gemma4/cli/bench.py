"""`mlx-gemma4 bench`: how fast a checkpoint runs here, how far from the limit, at what quality."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.bench_tables import print_document, print_table, table_of_changes
from mlx_gemma4.cli.commands import Command, Group
from mlx_gemma4.cli.sizes import parse_tokens
from mlx_gemma4.cli.terminal import say

if TYPE_CHECKING:
    from mlx_gemma4.bench.report import Document

app = typer.Typer(cls=Group, rich_markup_mode=None, invoke_without_command=True)

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="What bench --json wrote.")]


@app.callback()
def bench(
    context: typer.Context,
    model: options.Model = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TOKENS",
            help="Lengths of prompts to read and to answer. Default: 512,2048,8192.",
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            "--depth", metavar="TOKENS", help="Read more after so many too. Default: 2048."
        ),
    ] = None,
    image: Annotated[bool, typer.Option("--image", help="Measure a picture too.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="Measure a sound too.")] = False,
    batch: Annotated[
        str | None,
        typer.Option("--batch", metavar="N", help="Also many answers at a time: 1,2,4,8."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", min=2, help="Of an answer. Default: 64."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", metavar="N", min=1, help="Samples of a measure. Default: 5."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short prompts, short answers, three rounds.")
    ] = False,
    power: Annotated[
        bool,
        typer.Option(
            "--power",
            help="Energy of chunk sizes and of drafts too; ends if none can be read. Other rows "
            "have it wherever it can be read.",
        ),
    ] = False,
    conversion: Annotated[
        str | None,
        typer.Option(
            "--conversion",
            metavar="RECIPE",
            help="Also how fast this checkpoint is converted, into a temporary folder.",
        ),
    ] = None,
    quantize: options.Quantize = None,
    dtype: options.Dtype = None,
    kv_bits: options.FixedKVBits = "16",
    kv_rows: options.KVRows = "shared",
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write it all as JSON; - is standard output."),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Check and time every kernel first, and write it all: to attach to an issue.",
        ),
    ] = None,
    verbose: options.Verbose = False,
) -> int:
    """Measure speed and memory, beside what the machine allows.

    Files hold sizes and times, no names and no paths.  `bench compare` tells two of them apart,
    `bench plot` draws them.
    """
    if context.invoked_subcommand is not None:
        return 0
    name = options.require_model(model)
    from mlx_gemma4.bench.measure import QUICK, Workload
    from mlx_gemma4.bench.report import check_writable
    from mlx_gemma4.cli.bench_run import measure

    given = {
        "prompts": _lengths("--prompt", prompt),
        "depths": _lengths("--depth", depth),
        "batches": _lengths("--batch", batch),
        "tokens": tokens,
        "rounds": rounds,
    }
    workload = replace(
        QUICK if quick else Workload(),
        has_picture=image,
        has_sound=audio,
        **{key: value for key, value in given.items() if value is not None},
    )
    targets = {"--json": json_file, "--report": report}
    for option, target in targets.items():
        if target not in (None, "-"):
            check_writable(option, Path(target))
    document, is_whole = measure(
        name,
        workload,
        {
            "dtype": dtype,
            "quantize": None if quantize is None else int(quantize),
            "kv_bits": int(kv_bits),
            "kv_rows": kv_rows,
        },
        with_kernels=report is not None,
        with_power=power,
        conversion=conversion,
    )
    _write(document, [target for target in targets.values() if target is not None])
    if not is_whole:
        raise KeyboardInterrupt  # now that nothing is lost
    return 0


@app.command(cls=Command)
def compare(
    first: Annotated[str, typer.Argument(metavar="BEFORE", help="What bench --json wrote.")],
    second: Annotated[str, typer.Argument(metavar="AFTER", help="Another one.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare what is not the same, and say so.")
    ] = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Show how two measurements differ, and what of it is noise.

    Other bits per weight, another cache, model, or machine are refused, unless --anyway.
    """
    from mlx_gemma4.bench.compare import compare_documents
    from mlx_gemma4.bench.report import read_document

    before, after = read_document(Path(first)), read_document(Path(second))
    comparison = compare_documents(before, after, anyway=anyway)
    rows = [
        {
            "label": change.first.label,
            "first_s": change.first.median_s,
            "second_s": change.second.median_s,
            "speedup": change.speedup,
            "verdict": change.verdict,
            "first_j": change.first.unit_j,
            "second_j": change.second.unit_j,
            "energy_ratio": change.energy_ratio,
        }
        for change in comparison.changes
    ]
    if as_json:
        print(json.dumps({"rows": rows, "notes": comparison.notes}, indent=2))
        return 0
    print_table(*table_of_changes(comparison.changes), texts=(0, 4))
    for note in comparison.notes:
        say(f"note: {note}")
    return 0


@app.command(cls=Command)
def plot(
    files: Files,
    output: Annotated[str, typer.Option("--output", metavar="FILE", help="A .png, .svg, or .pdf.")],
    verbose: options.Verbose = False,
) -> int:
    """Draw measurements under their ceiling.

    Answers, shares of the ceiling, and memory beside its plan; needs the extra `bench`.
    """
    from mlx_gemma4.bench.plots import check_plot, plot_documents
    from mlx_gemma4.bench.report import check_writable, read_document

    path = Path(output)
    check_writable("--output", path)
    check_plot("--output", path)
    plot_documents([read_document(Path(file)) for file in files], path)
    print(path)
    return 0


def _write(document: "Document", targets: list[str]) -> None:
    """Write a document to its files, and print it for people, unless it goes to stdout itself."""
    from mlx_gemma4.bench.report import write_whole

    text = document.to_json()
    if "-" in targets:
        print(text, end="")
    else:
        print_document(document)
    for target in targets:
        if target != "-":
            write_whole(Path(target), text.encode())
            say(f"written: {target}")


def _lengths(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return lengths from a list with commas, each once."""
    if text is None:
        return None
    return tuple(sorted({parse_tokens(option, part) for part in text.split(",")}))
