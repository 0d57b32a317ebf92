"""Checkpoints by name: a folder, the bundled demo, or a download from the Hugging Face Hub.

Nothing is downloaded that is not read, and nothing large before a small file could refuse it.
"""

import errno
import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from mlx_gemma4.config import Config
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.memory import format_bytes

DEMO = "demo"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# The files of a checkpoint that are read; a repository often has others as large again.
_FILES = [
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",  # whose license a conversion carries on
]
_REQUIRED = ("config.json", "tokenizer.json")
_WEIGHTS = ["model.safetensors.index.json", "model.safetensors", "model-*.safetensors"]


def find_checkpoint(name: str | Path, *, with_weights: bool = True) -> Path:
    """Return the folder of a checkpoint, downloading it if `name` is one of the Hub's.

    Args:
        name: A folder, a name on the Hub, or "demo".
        with_weights: False downloads the small files alone: config, tokenizer, template.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be downloaded.
    """
    text = str(name)
    if text == DEMO:
        return Path(__file__).with_name(DEMO)
    folder = Path(text).expanduser()
    try:
        # The empty name would be the current folder.
        is_folder, exists = bool(text) and folder.is_dir(), bool(text) and folder.exists()
    except (OSError, ValueError):  # a name that no file can have
        is_folder = exists = False
    if is_folder:
        return folder
    if exists:
        raise CheckpointError(
            f"{text} is a file; a checkpoint is a folder with config.json, *.safetensors, and "
            "tokenizer.json; pass the folder"
        )
    if isinstance(name, str) and _HUB_NAME.fullmatch(text):
        return _download(text, _FILES + _WEIGHTS if with_weights else _FILES)
    shown = text if len(text) <= 200 else text[:197] + "..."
    raise CheckpointError(
        f"no such folder: {shown!r}; pass a folder with a checkpoint, a name on the Hugging Face "
        f'Hub such as google/gemma-4-12B-it, or "{DEMO}"'
    )


def _download(name: str, patterns: list[str]) -> Path:
    """Return the Hub cache's folder with these files; an interrupted download resumes."""
    import huggingface_hub  # takes a third of a second, which folders need not wait for

    try:
        planned = _plan_download(name, patterns)
        if planned is None:  # no connection: then everything comes from the cache, or nothing
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
        commit, missing_bytes, folder = planned
        if not missing_bytes:
            return folder
        if missing_bytes > _free_bytes(_cache_folder()):
            raise CheckpointError(_disk_full(name, f"needs {format_bytes(missing_bytes)}"))
        # The config first: a model of another kind is refused before 24 GB have come.
        huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=["config.json"])
        Config.from_folder(folder)
        huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=patterns)
    except CheckpointError:
        raise
    # Besides its own, the library lets those of its HTTP client and of its transfer through.
    except Exception as error:
        raise CheckpointError(_explain(name, error)) from error
    return folder


def _plan_download(name: str, patterns: list[str]) -> tuple[str, int, Path] | None:
    """Return commit, bytes to download, and folder of a Hub checkpoint; None without the Hub."""
    import huggingface_hub
    from huggingface_hub.errors import DryRunError
    from huggingface_hub.utils import tqdm

    try:
        files = huggingface_hub.snapshot_download(
            name,
            allow_patterns=patterns,
            dry_run=True,
            tqdm_class=cast(Any, functools.partial(tqdm, disable=True)),
        )
    except DryRunError:
        return None
    is_wanted = not set(patterns).isdisjoint(_WEIGHTS)
    if is_wanted and not any(file.filename.endswith(".safetensors") for file in files):
        raise CheckpointError(
            f"{name} has no model.safetensors; pickled weights (.bin), which can run any code, and "
            "GGUF are not read; take a checkpoint with safetensors"
        )
    names = {file.filename for file in files}
    if lacking := [required for required in _REQUIRED if required not in names]:
        raise CheckpointError(
            f"{name} has no {' and no '.join(lacking)}; it is no checkpoint, or one in a format "
            "that is not read, as GGUF; check the name, or take a checkpoint with safetensors"
        )
    missing_bytes = sum(file.file_size or 0 for file in files if file.will_download)
    return files[0].commit_hash, missing_bytes, Path(files[0].local_path).parent


def _cache_folder() -> Path:
    """Return where the Hub's library keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _disk_full(name: str, need: str) -> str:
    cache = _cache_folder()
    return (
        f"{name} {need}, and the disk with the Hub cache ({cache}) has "
        f"{format_bytes(_free_bytes(cache))} free; make room, or set HF_HOME to a folder on "
        "another disk, and repeat: the download goes on where it stopped"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(name: str, error: Exception) -> str:
    """Say in one line why a download failed, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    for cause in _causes(error):
        if getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause):
            return _disk_full(name, "does not fit")
        if isinstance(cause, PermissionError):
            return (
                f"{name}: no permission to write {cause.filename or _cache_folder()}; set HF_HOME "
                "to a folder of yours"
            )
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is gated; accept its conditions at https://huggingface.co/{name}, then log "
            "in with: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is neither a folder here nor a model on the Hugging Face Hub; check the "
            "spelling; a private one needs: hf auth login"
        )
    if isinstance(error, HfHubHTTPError):
        reason = str(error).strip().splitlines()[0]
        return f"the Hugging Face Hub refused {name} ({reason}); try again later"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{name} is neither a folder here nor complete in the Hub cache ({_cache_folder()}), "
            "and HF_HUB_OFFLINE is set; unset it to download, or pass a folder"
        )
    if any(isinstance(cause, OSError) for cause in _causes(error)):
        return (
            f"{name} is neither a folder here nor complete in the Hub cache ({_cache_folder()}), "
            "and the Hub cannot be reached; check the network and repeat, or pass a folder"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot download {name} ({reason}); repeat, and it goes on where it stopped"
