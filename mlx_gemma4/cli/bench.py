"""`mlx-gemma4 bench`: how fast a checkpoint runs here, how far from the limit, at what quality."""

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.bench_tables import print_document, print_table, show_speed
from mlx_gemma4.cli.commands import Command, Group
from mlx_gemma4.cli.sizes import parse_tokens
from mlx_gemma4.cli.terminal import ProgressBar, Waiting, say
from mlx_gemma4.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from mlx_gemma4.bench.facts import KernelFinding, Quality
    from mlx_gemma4.bench.machine import Machine
    from mlx_gemma4.bench.measure import Workload
    from mlx_gemma4.bench.report import Document, Row
    from mlx_gemma4.config import Config

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
    quantize: options.Quantize = None,
    dtype: options.Dtype = None,
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
    document, is_whole = _measure(
        name,
        workload,
        {"dtype": dtype, "quantize": None if quantize is None else int(quantize)},
        with_kernels=report is not None,
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

    Other bits per weight, another model, or another machine are refused, unless --anyway.
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
        }
        for change in comparison.changes
    ]
    if as_json:
        print(json.dumps({"rows": rows, "notes": comparison.notes}, indent=2))
        return 0
    cells = [
        (
            change.first.label,
            show_speed(change.first),
            show_speed(change.second),
            f"{change.speedup:.2f}x",
            change.verdict,
        )
        for change in comparison.changes
    ]
    print_table(("measure", "before", "after", "speed", ""), cells, texts=(0, 4))
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


def _measure(
    name: str, workload: "Workload", load_options: dict[str, Any], *, with_kernels: bool
) -> tuple["Document", bool]:
    """Return what was measured, and whether all of it was."""
    from mlx_gemma4.bench.facts import describe_model
    from mlx_gemma4.bench.machine import describe_machine
    from mlx_gemma4.bench.measure import Bench
    from mlx_gemma4.bench.report import Document
    from mlx_gemma4.bench.starts import load_model, measure_starts
    from mlx_gemma4.config import Config
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.weights import check_quantize, open_checkpoint

    folder = find_checkpoint(name)
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    _check_media(checkpoint.config, workload)
    if load_options["quantize"] is not None:
        check_quantize(checkpoint, load_options["quantize"])
    recipe, quality = _read_conversion(folder, load_options["quantize"])
    rows: list[Row] = []
    notes: list[str] = []
    waiting = Waiting("")

    def progress(text: str) -> None:
        nonlocal waiting
        waiting.hide()
        waiting = Waiting(f"{text} ...")
        waiting.show()

    try:
        progress("the machine")
        machine = describe_machine()
        waiting.hide()
        kernels = _check_kernels(checkpoint.config, load_options["dtype"]) if with_kernels else ()
        rows += measure_starts(name, load_options, workload.rounds, progress)
        model, processor, row = load_model(name, load_options, workload.rounds, progress)
        rows.append(row)
        facts = describe_model(checkpoint, model, load_options["quantize"], recipe)
        measuring = Bench(model, processor, facts, workload, machine.ceiling, progress)
        is_whole = True
        try:
            for row in measuring.rows():
                rows.append(row)  # one by one: those before an interruption are kept
        except KeyboardInterrupt:
            is_whole = False
            notes.append("interrupted: what comes after these rows was not measured")
        notes += [*(model.notes or ()), *measuring.notes]
    finally:
        waiting.hide()
    notes += _warnings(machine)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    document = Document(now, machine, facts, tuple(rows), quality, kernels, tuple(notes))
    return document, is_whole


def _check_media(config: "Config", workload: "Workload") -> None:
    """Refuse media for which the checkpoint has no front end, before anything takes long."""
    for option, is_asked, front_end in (
        ("--image", workload.has_picture, config.vision_config),
        ("--audio", workload.has_sound, config.audio_config),
    ):
        if is_asked and front_end is None:
            raise OptionError(f"{option}: this checkpoint has no front end for it; leave it out")


def _check_kernels(config: "Config", dtype: str | None) -> tuple["KernelFinding", ...]:
    """Return what was found of every kernel on the shapes of a model."""
    import mlx.core as mx

    from mlx_gemma4.bench.facts import check_kernels
    from mlx_gemma4.kernels.kernel import Sizes

    sizes = Sizes.from_config(config.text_config, getattr(mx, dtype or config.dtype))
    with ProgressBar("checking kernels") as bar:
        return check_kernels(sizes, bar.update)


def _read_conversion(folder: Path, quantize: int | None) -> tuple[str | None, "Quality | None"]:
    """Return recipe and quality of a checkpoint that `convert` has made, as far as they are known.

    Somebody's own recipe is "custom": its name is theirs.
    """
    from mlx_gemma4.bench.facts import Quality
    from mlx_gemma4.config.section import read_json
    from mlx_gemma4.convert.card import read_record
    from mlx_gemma4.convert.conversion import QUALITY_FILE
    from mlx_gemma4.convert.recipe import recipe_names

    try:
        recipe = read_record(folder).recipe
    except CheckpointError:
        return None, None
    recipe = recipe if recipe in recipe_names() else "custom"
    file = folder / QUALITY_FILE
    if quantize is not None or not file.is_file():
        return recipe, None
    report = read_json(file)
    try:
        figures = report["kinds"]["all"]
        numbers = {
            key: None if figures.get(key) is None else float(figures[key])
            for key in ("perplexity", "reference_perplexity")
        }
        quality = Quality(
            int(report["prompts"]),
            float(figures["mean_kl"]),
            float(figures["top1_agreement"]),
            **numbers,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}); remove it, or convert again"
        ) from None
    return recipe, quality


def _warnings(machine: "Machine") -> list[str]:
    """Return what makes these figures worth less."""
    state, notes = machine.state, []
    if state.load_average > machine.cpu_cores / 2:
        notes.append(
            f"the machine was busy (load average {state.load_average:.1f} on {machine.cpu_cores} "
            "cores): these figures are too low; measure again when nothing else runs"
        )
    if state.power == "battery" or state.is_low_power:
        notes.append("on battery, or saving energy: measure again on mains power")
    if machine.apple_chip is None:
        notes.append("ceilings are what this machine was measured to do, not its maker's figures")
    return notes


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
