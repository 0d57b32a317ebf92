"""Target and Case: what is fed with what, and how a case is kept in a file."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

Files = Mapping[str, bytes]
"""One input: files of a folder by their names."""

_HEAD = "case.json"
_FOLDER = "files/"


@dataclass(frozen=True)
class Target:
    """A part of the package that reads what others have written.

    Attributes:
        name: On the command line.
        read_real: Returns real inputs, which the package takes as they are.
        mutate: Makes a case of them, by the numbers that it draws.
        run: Feeds a case to the package; the folder is empty, and emptied afterwards.  Returns
            if the package takes it, and raises what the package raises.
        memory_bytes: That a case may add to what a worker holds.
    """

    name: str
    read_real: Callable[[], Sequence[Files]]
    mutate: Callable[[Random, Sequence[Files]], Files]
    run: Callable[[Files, Path], None]
    memory_bytes: int

    def make(self, real: Sequence[Files], seed: int, index: int) -> Files:
        """Return a case; the same three numbers and real inputs always give the same."""
        return self.mutate(Random(f"{self.name} {seed} {index}"), real)


@dataclass(frozen=True)
class Finding:
    """A case in which the package did what it must not.

    Attributes:
        target: Its name.
        seed: Of the run, and `index`: of the case in it.
        kind: "exception", "hang", "memory", or "crash".
        place: Line of the package, and what happened there: alike for cases of one defect.
        detail: Traceback, or what else is known.
        files: The case.
        is_repeatable: Whether it happened in a fresh worker too.
    """

    target: str
    seed: int
    index: int
    kind: str
    place: str
    detail: str
    files: Files
    is_repeatable: bool = True

    def save(self, path: Path) -> None:
        """Write the case to a zip file, in which its files can be looked at."""
        names = ("target", "seed", "index", "kind", "place", "detail", "is_repeatable")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            head = {name: getattr(self, name) for name in names}
            archive.writestr(_HEAD, json.dumps(head, indent=2))
            for name, content in self.files.items():
                archive.writestr(_FOLDER + name, content)

    @classmethod
    def load(cls, path: Path) -> "Finding":
        """Read what `save` wrote."""
        with zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read(_HEAD))
            files = {
                name.removeprefix(_FOLDER): archive.read(name)
                for name in archive.namelist()
                if name.startswith(_FOLDER)
            }
        return cls(**head, files=files)


def write_files(files: Files, folder: Path) -> Path:
    """Write a case into a folder, and return the folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
