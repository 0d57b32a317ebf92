"""`mlx-gemma4 verify`: whether a converted checkpoint is as it was written."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.terminal import ProgressBar

Folder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="A checkpoint that mlx-gemma4 convert has made.")
]


def verify(
    folder: Folder,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Check the files of a converted checkpoint.

    Headers, shapes, config, and the checksum of every tensor; exit code 2 if something is wrong.
    """
    from mlx_gemma4.convert.verify import verify_checkpoint
    from mlx_gemma4.memory import format_bytes

    with ProgressBar("verifying", in_bytes=True) as bar:
        found = verify_checkpoint(Path(folder).expanduser(), progress=bar.update)
    if as_json:
        document = {
            "folder": folder,
            "tensors": found.num_tensors,
            "bytes": found.nbytes,
            "recipe": found.conversion.get("recipe"),
            "source": found.conversion.get("source"),
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return 0
    print(f"{folder}: all {found.num_tensors:,} tensors, {format_bytes(found.nbytes)}, are intact")
    return 0
