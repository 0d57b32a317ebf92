"""Where media come from: paths and bytes, checked before a decoder sees them.

Nothing is ever fetched from the network here: a prompt must not make the machine open connections.
"""

import io
import os
import re
from pathlib import Path
from typing import BinaryIO

from mlx_gemma4.errors import InputError, MissingExtraError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


def open_source(
    source: object, medium: str, allowed: str, name: str
) -> tuple[Path | io.BytesIO, str]:
    """Return something that a decoder can open, and the name by which messages call it.

    Args:
        source: What the caller was given: a path as str or Path, or a whole file as bytes.
        medium: "image", "sound", or "video".
        allowed: The types that the caller takes, for the message about any other.
        name: What to call bytes.

    Raises:
        InputError: A URL, a missing file, a folder, a pipe, an empty file, or another type.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise InputError(f"{name} is empty (0 bytes); pass the bytes of a whole {medium} file")
        return io.BytesIO(source), name
    if isinstance(source, str) and _URL.match(source):
        raise InputError(
            f"{name} is a URL ({source[:60]}); only files and bytes are read; "
            "download it first and pass its path"
        )
    if not isinstance(source, str | Path):
        raise InputError(f"{name} is of type {type(source).__name__}; pass {allowed}")
    path = Path(source).expanduser()
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"no such file: {source}; check the path of the {medium}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {str(source)[:200]!r}: {reason}") from None
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{source} is {kind}; pass the path of one {medium} file")
    if not size:
        raise InputError(f"{path.name} is empty (0 bytes); pass a whole {medium} file")
    return path, path.name


class _ClippedReader(io.BufferedReader):
    """A file of which a damaged header may ask more than there is: Python would make room first."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: It may not be read.
    """
    try:
        return _ClippedReader(io.FileIO(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def read_head(stream: Path | io.BytesIO, num_bytes: int = 64) -> bytes:
    """Return the first bytes, by which file formats are told apart.

    Raises:
        InputError: The file may not be read.
    """
    if isinstance(stream, io.BytesIO):
        return stream.getvalue()[:num_bytes]
    with open_file(stream) as file:
        return file.read(num_bytes)


def missing_extra(name: str, need: str) -> MissingExtraError:
    """Return the error for a file that only the extra `media` can read."""
    return MissingExtraError(f'{name} {need}; install it with: pip install "mlx-gemma4[media]"')
