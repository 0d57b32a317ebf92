"""A converted checkpoint taken to the Hugging Face Hub: verified, whole, and nothing besides.

The Hub's library uploads by content: a file that has arrived is not sent again, and with hf-xet not
even the parts of one.  One commit makes all of it visible, so an interrupted upload leaves the
repository as it was, and the same call goes on.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gemma4 import __version__
from mlx_gemma4.config.section import read_json
from mlx_gemma4.convert import verify
from mlx_gemma4.convert.card import CARD_FILE
from mlx_gemma4.convert.source import COPIED_FILES
from mlx_gemma4.errors import CheckpointError, OptionError
from mlx_gemma4.weights import INDEX_FILE, SINGLE_FILE

_OWN_FILES = {
    "config.json",
    INDEX_FILE,
    SINGLE_FILE,
    CARD_FILE,
    "quality.json",
    "LICENSE",
    "NOTICE",
    *COPIED_FILES,
}
# What mlx-lm would read as weights: from an earlier upload that had more files.
_WEIGHTS_FILE = re.compile(r"model[^/]*\.safetensors")
_AGAIN = "repeat the same command: what has arrived is not sent again"
_HIDDEN = "***"


@dataclass(frozen=True)
class UploadedFile:
    """A file of the checkpoint, by its name in the folder and in the repository."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Upload:
    """What was uploaded, or would be.

    Attributes:
        repo: Name on the Hub.
        url: Of the repository; None if this was a dry run.
        files: In the order of their names.
        left_out: What the folder has besides them.
        card: The model card.
        notes: One line each.
    """

    repo: str
    url: str | None
    files: tuple[UploadedFile, ...]
    left_out: tuple[str, ...]
    card: str
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
    show_transfer: bool = False,
) -> Upload:
    """Upload a converted checkpoint, making the repository if there is none.

    Weights of an earlier upload that are no part of this one are removed from the repository's
    present state, where loaders would read them too; its history keeps them.

    Args:
        folder: That `convert` has made; it is verified first.
        repo: "user/name" on the Hub.
        private: The repository must not be public.
        dry_run: Verify, and tell what would be uploaded; the Hub is not asked anything.
        progress: Called with (bytes verified, bytes in all).
        show_transfer: Let the Hub's library show on stderr how far it is.

    Raises:
        OptionError: `repo` is no name for a repository.
        CheckpointError: The folder does not verify; or nobody is logged in, the Hub refuses, or it
            cannot be reached.
    """
    _check_name(repo)
    token = None if dry_run else _find_token(repo)  # before gigabytes are read for nothing
    recipe = verify.verify_checkpoint(folder, progress=progress).conversion.get("recipe")
    files, left_out = list_files(folder)
    card = _read_card(folder)
    notes = (
        [f"left out, being no part of the checkpoint: {', '.join(left_out)}"] if left_out else []
    )
    if token is None:
        return Upload(repo, None, files, left_out, card, tuple(notes))
    with _scrubbed_log(token), _transfer_display(show_transfer):
        try:
            url, more_notes = _send(folder, repo, files, str(recipe), token, private=private)
        except CheckpointError:
            raise
        # Besides its own, the library lets those of its HTTP client and of its transfer through.
        except Exception as error:
            message = _scrub(_explain(repo, error), token)
            raise CheckpointError(message) from _scrubbed(error, token)
    notes += [_scrub(note, token) for note in more_notes]
    return Upload(repo, url, files, left_out, card, tuple(notes))


def list_files(folder: Path) -> tuple[tuple[UploadedFile, ...], tuple[str, ...]]:
    """Return the files of a checkpoint, and the names of whatever else lies in its folder."""
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    wanted = _OWN_FILES | (set(weight_map.values()) if isinstance(weight_map, Mapping) else set())
    files, left_out = [], []
    for path in sorted(folder.iterdir()):
        if path.name in wanted and path.is_file():
            files.append(UploadedFile(path.name, path.stat().st_size))
        else:
            left_out.append(f"{path.name}/" if path.is_dir() else path.name)
    return tuple(files), tuple(left_out)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        is_name = repo.count("/") == 1 and repo.isascii()
    except HFValidationError:
        is_name = False
    if not is_name:
        raise OptionError(
            f"{repo[:100]!r} is no name for a repository; allowed is USER/NAME, with letters, "
            "digits, '-', '_', and '.', at most 96 in all, such as me/gemma-4-12b-it-q4"
        )


def _find_token(repo: str) -> str:
    """Return the token of whoever is logged in."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"{repo} cannot be uploaded: HF_HUB_OFFLINE is set; unset it, or look at what would be "
            "uploaded with --dry-run"
        )
    try:
        token = huggingface_hub.get_token()
    except Exception as error:  # an unreadable file, an exchange of tokens that failed
        raise CheckpointError(
            f"cannot read the token of the Hugging Face Hub ({type(error).__name__}); log in again "
            "with: hf auth login"
        ) from None
    if not token:
        raise CheckpointError(
            "nobody is logged in to the Hugging Face Hub; log in with: hf auth login, with a token "
            "that may write; or set HF_TOKEN to one"
        )
    return token


def _read_card(folder: Path) -> str:
    try:
        return (folder / CARD_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise CheckpointError(
            f"{folder} has no model card that can be read ({CARD_FILE}); convert the checkpoint "
            "again, or write one"
        ) from None


def _send(
    folder: Path,
    repo: str,
    files: tuple[UploadedFile, ...],
    recipe: str,
    token: str,
    *,
    private: bool,
) -> tuple[str, list[str]]:
    """Make the repository, send the files, and return its address and what there is to note."""
    import huggingface_hub

    hub = huggingface_hub.HfApi(token=token, library_name="mlx-gemma4", library_version=__version__)
    # None leaves it to the organization, which may want its repositories private.
    url = str(hub.create_repo(repo, private=True if private else None, exist_ok=True))
    info = hub.model_info(repo)
    if private and not info.private:
        raise CheckpointError(
            f"{repo} is there already and public, and --private was asked for; choose another "
            f"--repo, or make it private at {url}/settings"
        )
    notes = [f"{repo} is private"] if info.private and not private else []
    names = [file.name for file in files]
    there = [sibling.rfilename for sibling in info.siblings or ()]
    stale = [name for name in there if _WEIGHTS_FILE.fullmatch(name) and name not in names]
    if stale:
        notes.append(f"removed, being of an earlier upload: {', '.join(stale)}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        hub.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=names,
            delete_patterns=stale or None,
            commit_message=f"{recipe}, converted by mlx-gemma4 {__version__}",
        )
    notes += [
        " ".join(str(warning.message).split())
        for warning in caught
        if issubclass(warning.category, UserWarning)
    ]
    return url, notes


@contextmanager
def _transfer_display(is_shown: bool) -> Iterator[None]:
    """Have the library's own display or not, whose switch is the process's."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    is_switched = not is_shown and not are_progress_bars_disabled()
    if is_switched:
        disable_progress_bars()
    try:
        yield
    finally:
        if is_switched:
            enable_progress_bars()


# No token is ever printed: neither in messages, nor in tracebacks, nor in the library's log.


def _scrub(text: str, token: str) -> str:
    """Return a text without the token, other tokens, and the signatures of upload addresses."""
    text = text.replace(token, _HIDDEN)
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", _HIDDEN, text)
    text = re.sub(r"(?i)\b(bearer\s+)[^\s\"',]+", rf"\1{_HIDDEN}", text)
    return re.sub(r"(https?://[^\s?\"']+)\?[^\s\"']*", r"\1", text)


def _scrubbed(error: Exception, token: str) -> Exception | None:
    """Return an error fit for a traceback; None if something in it cannot be scrubbed."""
    for cause in _causes(error):
        cause.args = tuple(_scrub(a, token) if isinstance(a, str) else a for a in cause.args)
        if _scrub(str(cause), token) != str(cause) or _scrub(repr(cause), token) != repr(cause):
            return None
    return error


class _ScrubbingFilter(logging.Filter):
    """Takes tokens out of the log."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _scrub(record.getMessage(), self._token), ()
        return True


@contextmanager
def _scrubbed_log(token: str) -> Iterator[None]:
    """Keep the token out of what the Hub's library logs to stderr."""
    handlers = list(logging.getLogger("huggingface_hub").handlers)
    scrubbing = _ScrubbingFilter(token)
    for handler in handlers:
        handler.addFilter(scrubbing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(scrubbing)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _explain(repo: str, error: Exception) -> str:
    """Say in one line why an upload failed, and what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _explain_status(repo, cause)
    for cause in causes:
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"{repo}: cannot read {cause.filename} ({cause.strerror}); mend that and repeat"
    if any(isinstance(cause, OSError) or _is_of_http_client(cause) for cause in causes):
        return f"{repo}: the Hub cannot be reached, or the connection broke; {_AGAIN}"
    reasons = dict.fromkeys([_reason(error), _reason(causes[-1])])
    return f"cannot upload {repo} ({' '.join(reasons)}); {_AGAIN}"


def _is_of_http_client(error: BaseException) -> bool:
    """Whether an error is of the library's HTTP client, whichever its version has."""
    return type(error).__module__.startswith(("httpx", "httpcore"))


def _explain_status(repo: str, error: Any) -> str:
    """Say what an answer of the Hub means."""
    from huggingface_hub import constants

    status: int = error.response.status_code
    is_of_hub = str(error.response.request.url).startswith(f"{constants.ENDPOINT}/")
    if status == 401 and is_of_hub:
        return f"{repo}: the Hub does not accept the token (401); log in again with: hf auth login"
    if status == 403 and is_of_hub:
        return (
            f"no permission to write {repo} (403); choose a --repo of your own or of an "
            "organization in which you may write, or log in with a token that may write: "
            "hf auth login"
        )
    if status == 429:
        return f"{repo}: the Hub has had too many requests (429); wait some minutes, and {_AGAIN}"
    if status >= 500:
        return f"{repo}: the Hub has a fault of its own ({status}); wait a little, and {_AGAIN}"
    if not is_of_hub:
        return f"{repo}: the Hub's storage broke off ({status}); {_AGAIN}"
    return f"the Hub refused {repo} ({_reason(error)}); mend that, and {_AGAIN}"


def _reason(error: BaseException) -> str:
    """Return the first lines of an error as one: the library writes paragraphs."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
