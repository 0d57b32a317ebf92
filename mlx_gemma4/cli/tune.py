"""`mlx-gemma4 tune`: check kernels anew, and time them thoroughly on a model's shapes."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.kernels import print_report
from mlx_gemma4.cli.terminal import ProgressBar, say
from mlx_gemma4.errors import OptionError

if TYPE_CHECKING:
    from mlx_gemma4.kernels.kernel import Sizes

Show = Annotated[bool, typer.Option("--show", help="Only show what was found out; nothing is run.")]
Reset = Annotated[
    bool, typer.Option("--reset", help="Only forget what was found out, on every chip and version.")
]


def tune(
    model: options.Model = None,
    dtype: options.Dtype = None,
    show: Show = False,
    reset: Reset = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Check the Metal kernels, and keep those that are faster.

    Each kernel is compared with plain MLX and timed against it, on the shapes of a model.  Loading
    a model for the first time does the same in short.  No weights are read.
    """
    if show and reset:
        raise OptionError("--show and --reset exclude each other; give one of them")
    from mlx_gemma4.kernels import registry

    if reason := registry.absence():
        raise OptionError(
            f"{reason}: there is nothing to tune; kernels run on a Mac with Apple silicon, "
            "elsewhere plain MLX does"
        )
    if reset:
        _forget(as_json=as_json)
        return 0
    sizes = None
    if model or not show:
        sizes = _read_sizes(options.require_model(model), dtype)
    if sizes and not show:
        with ProgressBar("tuning") as bar:
            notes = registry.prepare(sizes, thorough=True, progress=bar.update)
        for note in notes:
            say(f"note: {note}")
    print_report(registry.report(sizes), as_json=as_json, with_cases=True)
    return 0


def _read_sizes(name: str, dtype: str | None) -> "Sizes":
    """Return the sizes of a model in the dtype that loading would choose on a GPU."""
    import mlx.core as mx

    from mlx_gemma4.config import Config
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.kernels.kernel import Sizes

    config = Config.from_folder(find_checkpoint(name, with_weights=False))
    return Sizes.from_config(config.text_config, getattr(mx, dtype or config.dtype))


def _forget(*, as_json: bool) -> None:
    from mlx_gemma4.kernels.verdicts import cache_folder, verdict_files

    files = verdict_files(cache_folder())
    for path in files:
        path.unlink(missing_ok=True)
    if as_json:
        print(json.dumps({"removed": [str(path) for path in files]}, indent=2))
    else:
        count = len(files)
        print(f"{count} file{'s' * (count != 1)} of verdicts removed from {cache_folder()}")
