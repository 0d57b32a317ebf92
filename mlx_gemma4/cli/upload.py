"""`mlx-gemma4 upload`: a converted checkpoint to the Hugging Face Hub."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.terminal import ProgressBar, is_styled, say

if TYPE_CHECKING:
    from mlx_gemma4.convert.upload import Upload

Folder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="A checkpoint that mlx-gemma4 convert has made.")
]
Repo = Annotated[
    str, typer.Option("--repo", metavar="USER/NAME", help="The repository; made if there is none.")
]
Private = Annotated[bool, typer.Option("--private", help="Nobody else may see the repository.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Verify, and show the files and the model card; upload nothing."
    ),
]


def upload(
    folder: Folder,
    repo: Repo,
    private: Private = False,
    dry_run: DryRun = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Upload a converted checkpoint to the Hugging Face Hub.

    It is verified first.  An interrupted upload goes on where it stopped when it is started again,
    and nothing of it is seen before all of it has arrived.
    """
    from mlx_gemma4.convert.upload import upload as run

    try:
        with ProgressBar("verifying", in_bytes=True) as bar:
            done = run(
                Path(folder).expanduser(),
                repo,
                private=private,
                dry_run=dry_run,
                progress=bar.update,
                show_transfer=is_styled(sys.stderr) and not as_json,
            )
    except KeyboardInterrupt:
        say(f"the same command goes on with what has not arrived at {repo} yet")
        raise
    if as_json:
        print(json.dumps(_document(done, dry_run=dry_run), ensure_ascii=False, indent=2))
    else:
        _print(done)
    for note in done.notes:
        say(f"note: {note}")
    return 0


def _document(done: "Upload", *, dry_run: bool) -> dict[str, object]:
    return {
        "repo": done.repo,
        "dry_run": dry_run,
        "url": done.url,
        "bytes": done.nbytes,
        "files": [{"name": file.name, "bytes": file.nbytes} for file in done.files],
        "left_out": list(done.left_out),
        "notes": list(done.notes),
        "card": done.card,
    }


def _print(done: "Upload") -> None:
    from mlx_gemma4.memory import format_bytes

    size = format_bytes(done.nbytes)
    if done.url is not None:
        print(f"{done.repo}: {len(done.files)} files, {size}, at {done.url}")
        return
    width = max(len(file.name) for file in done.files)
    for file in done.files:
        print(f"{file.name:<{width}}  {format_bytes(file.nbytes):>12}")
    print(f"\n{done.repo}: {len(done.files)} files, {size}; nothing was uploaded\n")
    print(done.card, end="" if done.card.endswith("\n") else "\n")
