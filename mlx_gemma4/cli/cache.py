"""`mlx-gemma4 cache`: prompts that are stored, and room made among them."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.commands import Command, Group
from mlx_gemma4.cli.sizes import parse_memory
from mlx_gemma4.cli.terminal import say
from mlx_gemma4.errors import OptionError

if TYPE_CHECKING:
    from mlx_gemma4.prompt_cache.folder import StoredFile, StoredPrompt

_WIDTH = 120  # of a table that goes to no terminal
_SECONDS_PER_DAY = 86_400
_TIMES = ((_SECONDS_PER_DAY, "d"), (3600, "h"), (60, "min"), (1, "s"))

Place = Annotated[
    str | None,
    typer.Argument(
        metavar="PATH",
        help="A folder, or a file, of --prompt-cache. Default: the folder of this program.",
        show_default=False,
    ),
]

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def describe(context: typer.Context) -> None:
    """Show prompts that are stored on disk, or remove some."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command("list", cls=Command)
def list_command(
    path: Place = None, as_json: options.AsJson = False, verbose: options.Verbose = False
) -> int:
    """Show which prompts are stored."""
    from mlx_gemma4.prompt_cache.folder import list_prompts, list_stored

    place = _find(path)
    stored = list_stored(place)
    prompts = list_prompts(stored)
    if as_json:
        document = {
            "path": str(place),
            "bytes": sum(one.nbytes for one in stored),
            "prompts": [dataclasses.asdict(prompt) for prompt in prompts],
            "files": [_describe(one) for one in stored],
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return 0
    _print_prompts(place, stored, prompts)
    return 0


@app.command("prune", cls=Command)
def prune_command(
    path: Place = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="SIZE", help="Keep at most so much, such as 10GB."),
    ] = None,
    unused_days: Annotated[
        float | None,
        typer.Option("--unused-days", metavar="N", min=0, help="Remove what N days saw no use of."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all of it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Remove stored prompts.

    The least recently used go first, and nothing that another prompt rests on.
    """
    from mlx_gemma4.memory import format_bytes
    from mlx_gemma4.prompt_cache.folder import choose_unused, list_stored, remove

    if (budget is not None) + (unused_days is not None) + everything != 1:
        raise OptionError("say what to remove, with one of --budget, --unused-days, and --all")
    max_bytes = None if budget is None else parse_memory("--budget", budget)
    unused_s = None if unused_days is None else unused_days * _SECONDS_PER_DAY
    place = _find(path)
    stored = list_stored(place)
    chosen = choose_unused(stored, max_bytes=0 if everything else max_bytes, unused_s=unused_s)
    size = sum(one.nbytes for one in chosen)
    what = f"{len(chosen):,} of {len(stored):,} files, {format_bytes(size)}, in {place}"
    if chosen and not (yes or _confirm(f"remove {what}? [y/N]")):
        say("nothing was removed")
        return 0
    remove(chosen)
    if as_json:
        removed = [str(one.file) for one in chosen]
        print(json.dumps({"path": str(place), "bytes": size, "removed": removed}, indent=2))
    else:
        print(f"removed {what}" if chosen else f"nothing to remove in {place}")
    return 0


def _find(path: str | None) -> Path:
    """Return the place that is meant; the default one may not be there yet.

    Raises:
        OptionError: Nothing is at the path.
    """
    from mlx_gemma4.prompt_cache.folder import default_folder

    if path is None:
        return default_folder()
    place = Path(path).expanduser()
    if not place.exists():
        raise OptionError(f"{path} does not exist; allowed is a folder or file of --prompt-cache")
    return place


def _confirm(question: str) -> bool:
    """Ask on the terminal; anything but yes is no.

    Raises:
        OptionError: There is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise OptionError(f"{question.removesuffix(' [y/N]')} Nobody is there to ask; give --yes")
    say(question, end=" ")
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _describe(stored: "StoredFile") -> dict[str, object]:
    return {
        "file": str(stored.file),
        "bytes": stored.nbytes,
        "unused_s": round(stored.unused_s, 1),
        "problem": stored.problem or None,
    }


def _print_prompts(
    place: Path, stored: "Sequence[StoredFile]", prompts: "Sequence[StoredPrompt]"
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mlx_gemma4.memory import format_bytes

    if prompts:
        table = Table(box=None, pad_edge=False)
        table.add_column("tokens", justify="right")
        table.add_column("size", justify="right")
        table.add_column("last used", justify="right")
        for heading in ("model", "goes on from", "file"):
            table.add_column(heading, overflow="fold")
        for prompt in prompts:
            table.add_row(
                f"{prompt.tokens:,}",
                format_bytes(prompt.nbytes),
                f"{_age(prompt.unused_s)} ago",
                Text(prompt.model_name or "?"),
                ", ".join(f"{stop:,}" for stop in prompt.stops) or "nowhere",
                Text(prompt.name),
            )
        width = None if sys.stdout.isatty() else _WIDTH
        Console(highlight=False, width=width).print(table)
        print()
    total = format_bytes(sum(one.nbytes for one in stored))
    count = len(prompts)
    print(f"{count:,} prompt{'s' * (count != 1)}, {total} in all, in {place}")
    for one in stored:
        if one.problem:
            say(f"note: {one.problem}")


def _age(seconds: float) -> str:
    unit, name = next((u, n) for u, n in _TIMES if seconds >= u or u == 1)
    return f"{seconds // unit:.0f} {name}"
