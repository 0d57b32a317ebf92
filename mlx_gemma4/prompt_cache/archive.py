"""Prompts that outlive the process: one in a file, or many in a folder under a budget.

A folder shares what prompts have in common: rows of a document are there once, whatever was asked
about it.  Its files never change; the least recently used go first, and none that another needs.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_gemma4.cache import LayerCache, SlidingCache
from mlx_gemma4.errors import PromptCacheError
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint, saved_arrays
from mlx_gemma4.prompt_cache.folder import (
    choose_unused,
    list_stored,
    remove,
    stored_files,
)
from mlx_gemma4.prompt_cache.keys import common_prefix
from mlx_gemma4.prompt_cache.line import Line, Snapshot, thin_out
from mlx_gemma4.prompt_cache.pieces import (
    SUFFIX,
    NewPiece,
    Piece,
    read_pieces,
    refusal,
    write_pieces,
)
from mlx_gemma4.prompt_cache.stops import Spacing

MAX_FOLDER_BYTES = 20 * 10**9

_MAX_RINGS = 4  # of one prompt on disk: the newest end, the root, and two between
_MakeCache = Callable[[], Sequence[LayerCache]]


class PromptArchive(ABC):
    """Stored prompts of one model; `open_archive` tells a file from a folder.

    Args:
        path: The file or the folder.
        fingerprint: Of the model.
        make_cache: Makes an empty prompt cache, `model.make_cache`.
        spacing: What is worth keeping.
        max_bytes: Of a folder.
        model_name: What people call the model.

    Attributes:
        notes: What could not be used, one line each.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        make_cache: _MakeCache,
        *,
        spacing: Spacing | None = None,
        max_bytes: int = MAX_FOLDER_BYTES,
        model_name: str = "",
    ) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.notes: list[str] = []
        self._fingerprint = fingerprint
        self._model_name = model_name
        self._make_cache = make_cache
        self._spacing = spacing or Spacing()
        self._known: dict[Path, tuple[tuple[int, int], list[Piece]]] = {}
        self._keys: dict[str, np.ndarray] = {}
        self._damaged: set[Path] = set()

    def load(self, keys: np.ndarray, known: int) -> Line | None:
        """Return the stored line from which most of `keys` is known, more than `known`, or None.

        Nothing else is read.

        Raises:
            PromptCacheError: The file is damaged; of a folder such files are left out, with a note.
        """
        while True:
            pieces = self._pieces()
            rows = {piece.id: piece for piece in pieces if piece.kind == "rows"}
            rings = {piece.id: piece for piece in pieces if piece.kind == "rings"}
            ids = self._ids(keys, {p for r in rows.values() for p in (r.start, r.stop)})
            try:
                end = self._find_end(keys, known, ids, rows, rings)
                if end is None:
                    return None
                chain = _chain(rows, end.id)
                on_the_way = [rings[p.id] for p in chain if p.id in rings]
                line = self._restore(chain, on_the_way)
            except PromptCacheError as error:
                self._leave_out(error)
                continue
            for piece in (*chain, on_the_way[-1]):
                with suppress(OSError):
                    os.utime(piece.file)  # what is used last goes last
            return line

    def _find_end(
        self,
        keys: np.ndarray,
        known: int,
        ids: Mapping[int, str],
        rows: Mapping[str, Piece],
        rings: Mapping[str, Piece],
    ) -> Piece | None:
        """Return the rows at whose end most of a prompt is known, more than `known`."""
        slack = min(
            (c.capacity - c.window for c in self._make_cache() if isinstance(c, SlidingCache)),
            default=0,
        )
        best = None
        for piece in rows.values():
            if piece.id not in rings or (piece.start and ids.get(piece.start) != piece.parent):
                continue
            common = self._common(piece, keys)
            # Rings can be cut back by their slack.
            if common > known and common >= piece.stop - slack and _chain(rows, piece.id):
                best, known = piece, common
        return best

    def _common(self, piece: Piece, keys: np.ndarray) -> int:
        """Return how far a prompt goes on as rows do whose start it has in common."""
        return piece.start + common_prefix(self._keys_of(piece), keys[piece.start :])

    def _keys_of(self, piece: Piece) -> np.ndarray:
        if piece.id not in self._keys:
            self._keys[piece.id] = piece.read_keys()
        return self._keys[piece.id]

    def partings(self, keys: np.ndarray) -> set[int]:
        """Return where stored prompts part from this one, after a common beginning."""
        rows = [piece for piece in self._pieces() if piece.kind == "rows"]
        ids = self._ids(keys, {piece.start for piece in rows})
        found: set[int] = set()
        for piece in rows:
            if piece.start == 0 or ids.get(piece.start) == piece.parent:
                try:
                    common = self._common(piece, keys)
                except PromptCacheError as error:
                    self._leave_out(error)
                    continue
                if common < piece.stop:
                    found.add(common)
        return found - {0}

    @abstractmethod
    def save(self, lines: Sequence[Line]) -> None:
        """Write what is not written yet; the newest line comes last.

        Raises:
            PromptCacheError: It cannot be written; what was there stays.
        """

    @abstractmethod
    def _pieces(self) -> list[Piece]:
        """Return what is stored for this model."""

    def _leave_out(self, error: PromptCacheError) -> None:
        raise error

    def _read(self, file: Path) -> list[Piece]:
        """Return the pieces of a file, whose header is read once as long as it is the same file."""
        try:
            status = file.stat()
        except OSError as error:
            raise refusal(file, f"it cannot be read ({error.strerror})") from None
        is_same = status.st_ino, status.st_size
        if self._known.get(file, (None,))[0] != is_same:
            self._known[file] = is_same, read_pieces(file, self._fingerprint)
        return self._known[file][1]

    def _ids(self, keys: np.ndarray, stops: Iterable[int]) -> dict[int, str]:
        """Return the id of each prefix of a prompt; of none that is longer than the prompt."""
        digest = hashlib.sha256(self._fingerprint.as_text().encode())
        ids: dict[int, str] = {}
        done = 0
        for stop in sorted(stop for stop in stops if stop <= len(keys)):
            digest.update(np.ascontiguousarray(keys[done:stop], "<u8").data)
            ids[stop], done = digest.hexdigest()[:32], stop
        return ids

    def _restore(self, chain: Sequence[Piece], rings: Sequence[Piece]) -> Line:
        """Return the line of rows from a prompt's start, and of rings up to their end."""
        keys = np.concatenate([self._keys_of(piece) for piece in chain])
        prompt_cache = list(self._make_cache())
        rows = [piece.read() for piece in chain]
        for index, layer_cache in enumerate(prompt_cache):
            if not isinstance(layer_cache, SlidingCache):
                parts = zip(*(of_piece[index] for of_piece in rows), strict=True)
                layer_cache.state = [mx.concatenate(list(part), axis=2) for part in parts]
                layer_cache.offset = len(keys)
        line = Line(keys, prompt_cache)
        for piece in rings:
            fresh = self._make_cache()
            restored: dict[int, SlidingCache] = {}
            for index, (array,) in piece.read().items():
                ring = fresh[index]
                assert isinstance(ring, SlidingCache)
                ring.restore(array, piece.stop)
                restored[index] = ring
            line.add(Snapshot(piece.stop, restored))
        line.rewind(line.snapshots[-1], len(keys))
        return line

    def _new_rows(self, line: Line, ids: dict[int, str], start: int, stop: int) -> NewPiece:
        layers = {
            index: [array[:, :, : stop - start] for array in saved_arrays(layer_cache, start)]
            for index, layer_cache in enumerate(line.prompt_cache)
            if not isinstance(layer_cache, SlidingCache)
        }
        keys = line.keys[start:stop]
        return NewPiece("rows", ids[stop], ids.get(start, ""), start, stop, layers, keys)

    def _new_rings(self, snapshot: Snapshot, ids: dict[int, str]) -> NewPiece:
        layers = {index: saved_arrays(ring, 0) for index, ring in snapshot.rings.items()}
        at = snapshot.offset
        return NewPiece("rings", ids[at], "", at, at, layers)

    def _worthy(self, line: Line, stored: Iterable[int] = ()) -> list[Snapshot]:
        """Return the few snapshots that are worth their place on disk, by ascending offset.

        Args:
            line: Whose.
            stored: Where the disk has rings already; where the line has not, none are returned.
        """
        places = {place.offset: place for place in line.places()}
        for stop in stored:
            places.setdefault(stop, Snapshot(stop, {}))
        worthy: list[Snapshot] = []
        for stop in sorted(places):
            before = worthy[-1].offset if worthy else 0
            if stop - before >= self._spacing.worth_keeping:
                worthy.append(places[stop])
        few = thin_out(worthy or [places[max(places)]])[-_MAX_RINGS:]
        return sorted(few, key=lambda snapshot: snapshot.offset)


class FileArchive(PromptArchive):
    """One prompt in one file, the newest of those that are saved."""

    def save(self, lines: Sequence[Line]) -> None:
        """Write the newest line, if it has what the file has not; else the file stays as it is."""
        if not lines:
            return
        line = lines[-1]
        places = self._worthy(line)
        ids = self._ids(line.keys, [place.offset for place in places])
        stored = {piece.id: piece.stop for piece in self._pieces() if piece.kind == "rings"}
        if set(ids.values()) <= stored.keys():
            return
        if stored and not stored.keys() & set(ids.values()):
            self.notes.append(
                f"{self.path} held another prompt, of {max(stored.values()):,} tokens; it is "
                "replaced (a folder keeps several)"
            )
        pieces: list[NewPiece] = []
        start = 0
        for place in places:
            pieces.append(self._new_rows(line, ids, start, place.offset))
            pieces.append(self._new_rings(place, ids))
            start = place.offset
        write_pieces(self.path, self._fingerprint, pieces, self._model_name)

    def _pieces(self) -> list[Piece]:
        return self._read(self.path) if self.path.exists() else []


class FolderArchive(PromptArchive):
    """Many prompts in a folder, one piece a file."""

    def save(self, lines: Sequence[Line]) -> None:
        """Write what the folder has not; then keep its budget."""
        for line in lines:
            self._save(line)
        stored = list_stored(self.path)
        remove(choose_unused(stored, max_bytes=self.max_bytes))

    def _save(self, line: Line) -> None:
        pieces = [piece for piece in self._pieces() if piece.stop <= len(line.keys)]
        ids = self._ids(line.keys, {piece.stop for piece in pieces})
        own = [piece for piece in pieces if ids[piece.stop] == piece.id]
        rows = {piece.stop for piece in own if piece.kind == "rows"}
        rings = {piece.stop: piece for piece in own if piece.kind == "rings"}
        places = self._worthy(line, rings)
        ids = self._ids(line.keys, rows | rings.keys() | {place.offset for place in places})
        for place in places:
            stop = place.offset
            if stop not in rows:
                start = max((row for row in rows if row < stop), default=0)
                self._write(self._new_rows(line, ids, start, stop))
                rows.add(stop)
            if stop not in rings:
                self._write(self._new_rings(place, ids))
        for stop in rings.keys() - {place.offset for place in places}:
            with suppress(OSError):
                rings[stop].file.unlink()

    def _write(self, piece: NewPiece) -> None:
        file = self.path / f"{piece.id}.{piece.kind}{SUFFIX}"
        write_pieces(file, self._fingerprint, [piece], self._model_name)

    def _pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        for file in stored_files(self.path):
            if file in self._damaged:
                continue
            try:
                pieces += self._read(file)
            except PromptCacheError as error:
                if not error.is_foreign:  # what is of another model is left to that model
                    self._leave_out(error)
        return pieces

    def _leave_out(self, error: PromptCacheError) -> None:
        if error.file is None:
            raise error
        self._damaged.add(error.file)
        self.notes.append(str(error))


def _chain(rows: Mapping[str, Piece], name: str) -> list[Piece]:
    """Return the pieces of rows from a prompt's start to one of them; none if one is missing."""
    chain: list[Piece] = []
    start = rows[name].stop if name in rows else 0
    while name:
        piece = rows.get(name)
        if piece is None or piece.stop != start or piece.start >= start:
            return []
        chain.append(piece)
        start, name = piece.start, piece.parent
    return chain[::-1] if start == 0 else []


def open_archive(
    path: str | Path,
    fingerprint: Fingerprint,
    make_cache: _MakeCache,
    *,
    spacing: Spacing | None = None,
    max_bytes: int = MAX_FOLDER_BYTES,
    model_name: str = "",
) -> PromptArchive:
    """Return the archive at a path: a file if there is one, or if it ends in .safetensors.

    Raises:
        PromptCacheError: The file is damaged, or of another model, dtype, version, cache layout,
            or chat template.
    """
    path = Path(os.path.expanduser(path))
    is_file = path.is_file() or (path.suffix == SUFFIX and not path.is_dir())
    archive = (FileArchive if is_file else FolderArchive)(
        path,
        fingerprint,
        make_cache,
        spacing=spacing,
        max_bytes=max_bytes,
        model_name=model_name,
    )
    if is_file:
        archive._pieces()
    return archive
