"""The typer application: its commands, and what is said of the whole program."""

from typing import Annotated

import typer

from mlx_gemma4 import __version__
from mlx_gemma4.cli import (
    batch,
    bench,
    cache,
    convert,
    demo,
    evaluate,
    generate,
    inspect,
    kernels,
    plan,
    tune,
    upload,
    verify,
)
from mlx_gemma4.cli.commands import Command, Group

# Help in plain text: rendering it with rich takes longer than everything else that --help does.
app = typer.Typer(
    name="mlx-gemma4",
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(cls=Command)(generate.generate)
app.command(cls=Command)(batch.batch)
app.command(cls=Command)(inspect.inspect)
app.command(cls=Command)(demo.demo)
app.command(cls=Command)(convert.convert)
app.command(cls=Command)(verify.verify)
app.command(cls=Command)(evaluate.evaluate)
app.command(cls=Command)(upload.upload)
app.command(cls=Command)(plan.plan)
app.command(cls=Command)(kernels.kernels)
app.command(cls=Command)(tune.tune)
app.add_typer(bench.app, name="bench")
app.add_typer(cache.app, name="cache")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"mlx-gemma4 {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Gemma 4 12B on Apple silicon: text, pictures, sound, and video in, text out."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
