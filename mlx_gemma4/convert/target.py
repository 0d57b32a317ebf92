"""The folder that a conversion makes: refused before, hidden meanwhile, named at the end.

Everything is written into a hidden folder beside the target, which takes its name by one rename.
Until then the target is as it was.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlx_gemma4.convert.estimate import peak_memory_bytes
from mlx_gemma4.convert.plan import ConversionPlan
from mlx_gemma4.convert.source import Source
from mlx_gemma4.errors import CheckpointError, MemoryLimitError, OptionError
from mlx_gemma4.hub import cache_folder, existing_parent, free_bytes
from mlx_gemma4.memory import format_bytes, machine_limit

PROGRESS_FILE = "progress.json"
_LOCK_FILE = "lock"
_SPARE_BYTES = 64 << 20  # for what is no tensor: tokenizer, configs, card


def partial_folder_of(target: Path) -> Path:
    """Return where a conversion is while it is not finished."""
    return target.parent / f".{target.name}.partial"


@contextlib.contextmanager
def open_partial(target: Path) -> Iterator[Path]:
    """Make or take up the hidden folder; no other process has it meanwhile.

    Raises:
        OptionError: It cannot be made, or another process has it.
    """
    partial = partial_folder_of(target)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = (partial / _LOCK_FILE).open("w")
    except OSError as error:
        raise _not_writable(target, error.strerror) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OptionError(
                f"another run is converting into {target}; wait for it, or choose another --output"
            ) from None
        try:
            yield partial
        finally:
            # A run that was refused before it did anything leaves nothing.
            if partial.is_dir() and [path.name for path in partial.iterdir()] == [_LOCK_FILE]:
                shutil.rmtree(partial)


def check_target(source: Source, target: Path, force: bool) -> None:
    """Refuse a target that must not be replaced.

    Raises:
        OptionError: It is the source, no folder, no checkpoint, or there and `force` is not set.
    """
    if target.exists() and source.folder.resolve() == target.resolve():
        raise OptionError(f"{target} is the source itself; choose another --output")
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise OptionError(f"{target} is there and no folder; choose another --output")
    if not any(target.iterdir()):
        return
    if not force:
        raise OptionError(
            f"{target} is there already; choose another --output, or replace it with --force"
        )
    if not (target / "config.json").is_file():
        raise OptionError(
            f"{target} is no checkpoint (it has no config.json), and --force replaces nothing "
            "else; choose another --output"
        )


def check_before_download(
    plan: ConversionPlan, target: Path, missing_bytes: int, *, force: bool = False
) -> None:
    """Refuse a conversion that could not be finished, before its source is downloaded.

    Args:
        plan: Made from the source's headers.
        target: The folder to make.
        missing_bytes: To download into the Hub cache.
        force: As for `convert`.

    Raises:
        OptionError: As `check_target`; or nothing can be written beside the target.
        CheckpointError: The disk has too little room for the result, or for it and the download.
        MemoryLimitError: This machine has too little memory.
    """
    check_target(plan.source, target, force)
    needed_bytes, limit = peak_memory_bytes(plan), machine_limit()
    if needed_bytes > limit.limit_bytes:
        raise MemoryLimitError(
            f"recipe {plan.recipe.name} needs about {format_bytes(needed_bytes)} of memory; "
            f"{limit.source} {format_bytes(limit.limit_bytes)}; take a recipe that learns nothing, "
            "or another machine"
        )
    beside, cache = existing_parent(target.parent), existing_parent(cache_folder())
    if not beside.is_dir():
        raise _not_writable(target, os.strerror(errno.ENOTDIR))
    if not os.access(beside, os.W_OK | os.X_OK):
        raise _not_writable(target, os.strerror(errno.EACCES))
    partial = partial_folder_of(target)
    # What an interrupted run has left is kept, or gone before anything is written.
    kept_bytes = sum(file.stat().st_size for file in partial.glob("*") if file.is_file())
    result_bytes = max(0, plan.nbytes + _SPARE_BYTES - kept_bytes)
    is_shared = beside.stat().st_dev == cache.stat().st_dev
    free = free_bytes(beside)
    if result_bytes + is_shared * missing_bytes <= free:
        return
    if not is_shared:
        raise _too_little_room(result_bytes, beside, free, "make room, or choose another --output")
    raise _too_little_room(
        result_bytes,
        beside,
        free,
        "make room, or have them on two disks: --output says where the result goes, and HF_HOME "
        "where downloads do",
        after=f" after a download of {format_bytes(missing_bytes)} to {cache_folder()}",
    )


def check_room(plan: ConversionPlan, partial: Path, nbytes: int) -> None:
    """Refuse to write files for which the disk has too little room.

    Args:
        plan: With the names of all files.
        partial: The hidden folder.
        nbytes: Of the files that are not finished.

    Raises:
        CheckpointError: There is too little.
    """
    free = shutil.disk_usage(partial).free
    # What a run has begun and not finished is written over.
    begun = (
        sum(
            file.stat().st_size for shard in plan.shards if (file := partial / shard.file).is_file()
        )
        - sum(shard.nbytes for shard in plan.shards)
        + nbytes
    )
    if nbytes and nbytes + _SPARE_BYTES > free + max(0, begun):
        raise _too_little_room(
            nbytes + _SPARE_BYTES,
            partial.parent,
            free,
            "make room, or choose another --output; what is done is kept",
        )


def empty_partial(partial: Path) -> None:
    """Remove what an earlier run has left, but for the lock that this one holds."""
    for path in partial.iterdir():
        if path.name != _LOCK_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def name_partial(partial: Path, target: Path, force: bool) -> None:
    """Give the finished folder its name, once all of it is on the disk."""
    for path in partial.iterdir():
        if path.name not in (PROGRESS_FILE, _LOCK_FILE):
            sync(path)
    sync(partial)
    old = target.parent / f".{target.name}.replaced"
    if force and target.exists() and any(target.iterdir()):
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    elif target.exists():
        target.rmdir()  # empty, or it would have been refused
    partial.rename(target)
    for name in (PROGRESS_FILE, _LOCK_FILE):
        (target / name).unlink(missing_ok=True)
    sync(target)
    sync(target.parent)
    if old.exists():
        shutil.rmtree(old)


def sync(path: Path) -> None:
    """Have a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems know no fsync of folders
            raise
    finally:
        os.close(descriptor)


def _not_writable(target: Path, reason: str | None) -> OptionError:
    return OptionError(
        f"cannot write beside {target}: {reason}; choose a folder of yours with --output"
    )


def _too_little_room(
    nbytes: int, folder: Path, free: int, advice: str, after: str = ""
) -> CheckpointError:
    return CheckpointError(
        f"this writes {format_bytes(nbytes)}{after}, and the disk of {folder.resolve()} has "
        f"{format_bytes(free)} free; {advice}"
    )
