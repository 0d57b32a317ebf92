"""Files of stored prompts, of whatever model: what they are, and which can go."""

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_gemma4.errors import PromptCacheError
from mlx_gemma4.kernels.verdicts import cache_folder
from mlx_gemma4.prompt_cache.pieces import (
    SUFFIX,
    Piece,
    read_model_name,
    read_pieces,
    remove_partial,
)

# Of a file in a folder, whatever it holds by now.
_OUR_NAME = re.compile(r"[0-9a-f]{32}\.(rows|rings)\.safetensors")


@dataclass(frozen=True)
class StoredFile:
    """A file of stored prompts.

    Attributes:
        file: Where it lies.
        nbytes: Of the file.
        unused_s: Seconds since it was written or last used.
        model_name: What people call its model; "" if nobody has said.
        pieces: What it holds; nothing if it is damaged.
        problem: Why it cannot be used, with any model; "" if it can.
    """

    file: Path
    nbytes: int
    unused_s: float
    model_name: str = ""
    pieces: tuple[Piece, ...] = ()
    problem: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it is a stored prompt, or was one: nothing else is ever removed."""
        return bool(self.pieces or _OUR_NAME.fullmatch(self.file.name))


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt that is stored, in one file or in several.

    Attributes:
        name: Of the file that holds its end.
        model_name: What people call its model.
        tokens: Its length.
        stops: Positions from which it can be gone on with, ascending.
        nbytes: Of all files it rests on, also those that other prompts share.
        unused_s: Seconds since it was written or last used.
    """

    name: str
    model_name: str
    tokens: int
    stops: tuple[int, ...]
    nbytes: int
    unused_s: float


def default_folder() -> Path:
    """Return the folder of stored prompts for those who name none."""
    return cache_folder() / "prompts"


def stored_files(path: Path) -> list[Path]:
    """Return the safetensors files of a folder, or the file itself; none if nothing is there."""
    if path.is_dir():
        return sorted(f for f in path.glob(f"*{SUFFIX}") if not f.name.startswith("."))
    return [path] if path.is_file() else []


def list_stored(path: Path) -> list[StoredFile]:
    """Return what is stored in a folder or a file, the least recently used first."""
    stored: list[StoredFile] = []
    for file in stored_files(path):
        try:
            status = file.stat()
        except OSError:  # somebody else has removed it
            continue
        unused_s = max(0.0, time.time() - status.st_mtime)
        try:
            pieces, name, problem = tuple(read_pieces(file)), read_model_name(file), ""
        except PromptCacheError as error:
            pieces, name, problem = (), "", str(error)
        stored.append(StoredFile(file, status.st_size, unused_s, name, pieces, problem))
    return sorted(stored, key=lambda s: -s.unused_s)


def list_prompts(stored: Sequence[StoredFile]) -> list[StoredPrompt]:
    """Return the prompts that files hold, the last used first."""
    rows = {p.id: (p, s) for s in stored for p in s.pieces if p.kind == "rows"}
    rings = {p.id: s for s in stored for p in s.pieces if p.kind == "rings"}
    parents = {piece.parent for piece, _ in rows.values()}
    prompts: list[StoredPrompt] = []
    for end in rows.keys() - parents:
        last, last_file = rows[end]
        files, stops, name = {last_file.file: last_file}, [], end
        while name in rows:
            piece, one = rows[name]
            files[one.file] = one
            if name in rings:
                files[rings[name].file] = rings[name]
                stops.append(piece.stop)
            name = piece.parent if piece.start else ""
        prompts.append(
            StoredPrompt(
                last_file.file.name,
                last_file.model_name,
                last.stop,
                tuple(sorted(stops)),
                sum(one.nbytes for one in files.values()),
                last_file.unused_s,
            )
        )
    return sorted(prompts, key=lambda prompt: (prompt.unused_s, prompt.name))


def choose_unused(
    stored: Sequence[StoredFile], *, max_bytes: int | None = None, unused_s: float | None = None
) -> list[StoredFile]:
    """Return files to remove: the least recently used, and none that another one rests on.

    Args:
        stored: From `list_stored`.
        max_bytes: What stays at most.
        unused_s: What was not used for so long goes.
    """
    left, chosen = [one for one in stored if one.is_ours], list[StoredFile]()
    while left:
        is_over = max_bytes is not None and sum(s.nbytes for s in left) > max_bytes
        worst = [
            one
            for one in left
            if (is_over or (unused_s is not None and one.unused_s >= unused_s))
            and not _is_needed(one, left)
        ]
        if not worst:
            return chosen
        first = min(worst, key=lambda one: (not one.problem, -one.unused_s))
        ends = {piece.id for piece in first.pieces if piece.kind == "rows"}
        # The rings of rows that go are of no use without them.
        gone = [s for s in left if s is first or (s.pieces and {p.id for p in s.pieces} <= ends)]
        left = [s for s in left if s not in gone]
        chosen += gone
    return chosen


def _is_needed(one: StoredFile, stored: Sequence[StoredFile]) -> bool:
    """Whether another file rests on one."""
    ids = {piece.id for piece in one.pieces}
    others = [p for s in stored if s is not one for p in s.pieces if p.kind == "rows"]
    is_parent = any(piece.parent in ids for piece in others)
    if any(piece.kind == "rows" for piece in one.pieces):
        return is_parent
    # Rings: the root's are needed by all that will ever part from it, those of an end go with it.
    mine = [piece for piece in others if piece.id in ids]
    return bool(mine) and (not is_parent or not mine[0].parent)


def remove(stored: Iterable[StoredFile]) -> None:
    """Remove files; one that is gone already is no error.

    Raises:
        PromptCacheError: The folder does not allow it.
    """
    for one in stored:
        remove_partial(one.file)
        try:
            with suppress(FileNotFoundError):
                one.file.unlink()
        except OSError as error:
            raise PromptCacheError(
                f"cannot remove {one.file}: {error.strerror}; check the folder's permissions"
            ) from None
