"""Answers in a file, a JSON object a line, each written as soon as it is complete.

A line is written at once or, if the process is killed in the middle, is a last line without an end,
which the next run drops.  That run also drops the errors, whose prompts are tried again, so that
in the end each prompt has one line.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlx_gemma4.errors import OptionError

_BEGIN = b'{"id": '  # of every line


class AnswerFile:
    """The file of a run, which no other writes to meanwhile; `open_answers` makes one.

    Attributes:
        path: Of the file.
        done: Fingerprints of the prompts that are answered, by `id_key` of their ids.
        num_errors: Lines with an error, which were dropped.
        is_cut: Whether the last line was half-written, and dropped.
    """

    def __init__(
        self, path: Path, file: BinaryIO, done: dict[str, str], num_errors: int, *, is_cut: bool
    ) -> None:
        self.path = path
        self.done = done
        self.num_errors = num_errors
        self.is_cut = is_cut
        self._file = file

    def write(self, line_id: str | int | None, fields: dict[str, Any]) -> None:
        """Add a line, which is on its way to the disk when this returns."""
        document = {"id": line_id, **fields}
        # Half of a surrogate pair becomes its escape, which is JSON too.
        text = json.dumps(document, ensure_ascii=False)
        _write(self._file, text.encode(errors="backslashreplace") + b"\n")


def id_key(line_id: str | int) -> str:
    """Return an id as text, which tells 1 from "1"."""
    return json.dumps(line_id)


@contextlib.contextmanager
def open_answers(path: Path) -> Iterator[AnswerFile]:
    """Open a file of answers to add to; a file without any is removed in the end.

    Raises:
        OptionError: It cannot be written, another run writes to it, or it holds something else.
    """
    path = path.resolve()  # what a link points to is replaced, not the link
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open_alone(path))
        done: dict[str, str] = {}
        num_errors, is_cut, is_whole = 0, False, True
        for content, record in _read_records(path):
            is_cut = record is None
            is_whole &= content.endswith(b"\n")
            if record is not None and "error" in record:
                num_errors += 1
            elif record is not None:
                done[id_key(record["id"])] = record["request"]
        if num_errors or not is_whole:
            file = stack.enter_context(_rewrite(path))
        try:
            yield AnswerFile(path, file, done, num_errors, is_cut=is_cut)
        finally:
            os.fsync(file.fileno())
            if not path.stat().st_size:
                path.unlink()


def _open_alone(path: Path) -> BinaryIO:
    """Open a file to append to that no other process has open so."""
    if path.exists() and not path.is_file():
        raise OptionError(f"{path} is not a file; choose another --output")
    try:
        file = cast(BinaryIO, path.open("ab", buffering=0))
    except OSError as error:
        raise OptionError(
            f"cannot write {path}: {error.strerror}; choose another --output"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise OptionError(
            f"another run is writing {path}; wait for it, or choose another --output"
        ) from None
    return file


def _read_records(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line and what it says; None for a last line that is only the beginning of one."""
    with path.open("rb") as file:
        for number, content in enumerate(file, 1):
            record = _parse(content)
            if record is None and not _is_beginning(content):
                raise OptionError(
                    f"line {number} of {path} is not an answer of this command; move that file, "
                    "or choose another --output"
                )
            yield content, record


def _is_beginning(content: bytes) -> bool:
    """Whether a line may be what a killed run, or a power cut, has left of one."""
    is_ours = content.startswith(_BEGIN) or _BEGIN.startswith(content) or not content.strip(b"\0")
    return is_ours and not content.endswith(b"\n")


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return a whole record, or None."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    if not isinstance(record, dict) or "id" not in record:
        return None
    is_answer = isinstance(record["id"], str | int) and isinstance(record.get("request"), str)
    return record if "error" in record or is_answer else None


def _rewrite(path: Path) -> BinaryIO:
    """Put a file without errors and half a line in the place of this one, and return it open."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    file = _open_alone(partial)
    for content, record in _read_records(path):
        if record is not None and "error" not in record:
            _write(file, content.rstrip(b"\n") + b"\n")
    os.fsync(file.fileno())
    os.replace(partial, path)
    return file


def _write(file: BinaryIO, content: bytes) -> None:
    """Write everything, also where the system takes it in pieces."""
    while content:
        content = content[file.write(content) :]
