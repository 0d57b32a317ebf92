"""Checkpoints by name: a folder, the bundled demo, or a download from the Hugging Face Hub.

Nothing is downloaded that is not read, and nothing large before a small file could refuse it.
"""

import contextlib
import errno
import functools
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
_INDEX = "model.safetensors.index.json"
_WEIGHTS = [_INDEX, "model.safetensors", "model-*.safetensors"]

# Google's own header has 85 kB: one request has all of it.
_HEAD_BYTES = 1 << 17
_MAX_HEADER_BYTES = 32 << 20


@dataclass(frozen=True)
class Outline:
    """A checkpoint of which everything is known but its weights.

    Attributes:
        folder: With the small files, and files of weights; of one that is not here, the header
            and a hole in the place of its tensors, which reads as zeros and takes no room.
        missing_bytes: To download before the weights are here; 0 if they are.
    """

    folder: Path
    missing_bytes: int


@dataclass(frozen=True)
class _Plan:
    """What a download brings.

    Attributes:
        commit: Of the repository.
        folder: In the Hub cache, where all files are in the end.
        files: Name, bytes, and whether it is to be downloaded, of each.
    """

    commit: str
    folder: Path
    files: Sequence[tuple[str, int, bool]]

    @property
    def missing_bytes(self) -> int:
        """Bytes to download."""
        return sum(nbytes for _, nbytes, is_missing in self.files if is_missing)


def find_checkpoint(
    name: str | Path,
    *,
    with_weights: bool = True,
    check: Callable[[Path], object] = Config.from_folder,
) -> Path:
    """Return the folder of a checkpoint, downloading it if `name` is one of the Hub's.

    Args:
        name: A folder, a name on the Hub, or "demo".
        with_weights: False downloads the small files alone: config, tokenizer, template.
        check: Called with a folder of the Hub cache as soon as config.json is in it, and before
            anything large is; raises if it is not what is wanted.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be downloaded; or what `check`
            raises.
    """
    folder = _find_folder(name)
    if folder is not None:
        return folder
    return _download(str(name), _FILES + _WEIGHTS if with_weights else _FILES, check)


@contextlib.contextmanager
def outline_checkpoint(
    name: str | Path, *, check: Callable[[Path], object] = Config.from_folder
) -> Iterator[Outline]:
    """Have a checkpoint's headers without its weights, for as long as the `with` lasts.

    Of each file of weights on the Hub only its beginning is asked for.  A folder, and what is in
    the Hub cache, is there as it is, and stays.

    Args:
        name: As for `find_checkpoint`.
        check: As for `find_checkpoint`.

    Raises:
        CheckpointError: As `find_checkpoint`; or a file has no header that can be read.
    """
    folder = _find_folder(name)
    if folder is not None:
        yield Outline(folder, 0)
        return
    with tempfile.TemporaryDirectory(prefix="mlx-gemma4-") as scratch:
        yield _outline(str(name), Path(scratch) / str(name), check)


def cache_folder() -> Path:
    """Return where the Hub's library keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is, or will be."""
    return shutil.disk_usage(existing_parent(folder)).free


def existing_parent(folder: Path) -> Path:
    """Return a folder, or the one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _find_folder(name: str | Path) -> Path | None:
    """Return the folder of a checkpoint that is here; None for a name on the Hub."""
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
        return None
    shown = text if len(text) <= 200 else text[:197] + "..."
    raise CheckpointError(
        f"no such folder: {shown!r}; pass a folder with a checkpoint, a name on the Hugging Face "
        f'Hub such as google/gemma-4-12B-it, or "{DEMO}"'
    )


def _download(name: str, patterns: list[str], check: Callable[[Path], object]) -> Path:
    """Return the Hub cache's folder with these files; an interrupted download resumes."""
    import huggingface_hub  # takes a third of a second, which folders need not wait for

    with _explained(name):
        plan = _plan_download(name, patterns)
        if plan is None:  # no connection: then everything comes from the cache, or nothing
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
        if not plan.missing_bytes:
            return plan.folder
        if plan.missing_bytes > free_bytes(cache_folder()):
            raise CheckpointError(_disk_full(name, f"needs {format_bytes(plan.missing_bytes)}"))
        # The config first: a model of another kind is refused before 24 GB have come.
        _fetch(name, plan, ["config.json"])
        check(plan.folder)
        _fetch(name, plan, patterns)
    return plan.folder


def _outline(name: str, scratch: Path, check: Callable[[Path], object]) -> Outline:
    """Return a checkpoint of the Hub, in a folder to be made if its weights are not here."""
    import huggingface_hub

    patterns = _FILES + _WEIGHTS
    with _explained(name):
        plan = _plan_download(name, patterns)
        if plan is None:
            return Outline(
                Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns)), 0
            )
        if not plan.missing_bytes:
            return Outline(plan.folder, 0)
        _fetch(name, plan, ["config.json"])
        check(plan.folder)
        _fetch(name, plan, [*_FILES, _INDEX])
        scratch.mkdir(parents=True)
        for file, nbytes, _ in plan.files:
            if (plan.folder / file).exists():
                (scratch / file).symlink_to((plan.folder / file).absolute())
                continue
            with (scratch / file).open("wb") as stream:
                stream.write(_read_head(name, plan.commit, file))
                stream.truncate(nbytes)
    return Outline(scratch, plan.missing_bytes)


def _fetch(name: str, plan: _Plan, patterns: list[str]) -> None:
    import huggingface_hub

    huggingface_hub.snapshot_download(name, revision=plan.commit, allow_patterns=patterns)


def _read_head(name: str, commit: str, file: str) -> bytes:
    """Return the beginning of a safetensors file on the Hub, to the end of its header.

    Source: safetensors' format description: u64 length, JSON, then the tensors.
    """
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(name, file, revision=commit)
    head = _read_start(url, _HEAD_BYTES)
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file} of {name} is no safetensors file: it begins with {head[:8].hex() or 'nothing'}"
            f", a header of {length:,} bytes; take another checkpoint, or tell its owner"
        )
    return head[: 8 + length] if 8 + length <= len(head) else _read_start(url, 8 + length)


def _read_start(url: str, count: int) -> bytes:
    """Return the first bytes of a file; a server that knows no ranges is left off there."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # Compressed, a range would be one of other bytes.
    headers = build_hf_headers() | {
        "Range": f"bytes=0-{count - 1}",
        "Accept-Encoding": "identity",
    }
    start = bytearray()
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        if response.is_error:
            response.read()  # the reason, which the next line makes part of its error
        hf_raise_for_status(response)
        for part in response.iter_bytes():
            start += part
            if len(start) >= count:
                break
    return bytes(start[:count])


def _plan_download(name: str, patterns: list[str]) -> _Plan | None:
    """Return what of a Hub checkpoint is to be downloaded; None without the Hub."""
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
    return _Plan(
        files[0].commit_hash,
        Path(files[0].local_path).parent,
        [(file.filename, file.file_size or 0, file.will_download) for file in files],
    )


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever the Hub's library raises into an error that says what to do."""
    try:
        yield
    except CheckpointError:
        raise
    # Besides its own, the library lets those of its HTTP client and of its transfer through.
    except Exception as error:
        raise CheckpointError(_explain(name, error)) from error


def _disk_full(name: str, need: str) -> str:
    cache = cache_folder()
    return (
        f"{name} {need}, and the disk with the Hub cache ({cache}) has "
        f"{format_bytes(free_bytes(cache))} free; make room, or set HF_HOME to a folder on "
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
                f"{name}: no permission to write {cause.filename or cache_folder()}; set HF_HOME "
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
            f"{name} is neither a folder here nor complete in the Hub cache ({cache_folder()}), "
            "and HF_HUB_OFFLINE is set; unset it to download, or pass a folder"
        )
    if any(isinstance(cause, OSError) for cause in _causes(error)):
        return (
            f"{name} is neither a folder here nor complete in the Hub cache ({cache_folder()}), "
            "and the Hub cannot be reached; check the network and repeat, or pass a folder"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot download {name} ({reason}); repeat, and it goes on where it stopped"
