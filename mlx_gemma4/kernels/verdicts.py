"""What was found out about kernels on this machine, kept in a JSON file from one start to the next.

Chip, macOS, MLX's version and the kernels' sources are part of the file's name and of its content,
so that a change of any of them starts anew.  A file that cannot be read, or that says something
else than its name, is ignored with a note; one is written whole or not at all.
"""

import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_gemma4.kernels.tuning import Timing

CACHE_VARIABLE = "MLX_GEMMA4_CACHE"

_PREFIX = "kernels-"
_MLX_VERSION: str = getattr(mx, "__version__", "unknown")  # MLX's type stubs do not have it


@dataclass(frozen=True)
class Machine:
    """What a verdict holds for.

    Attributes:
        chip: Such as "Apple M4 Max".
        system: Version of macOS.
        mlx_version: Of the installed MLX.
        sources: Hash of the kernels, in hexadecimal.
    """

    chip: str
    system: str
    mlx_version: str
    sources: str

    @classmethod
    def at_hand(cls, sources: str) -> "Machine":
        """Return this machine, which has a Metal device."""
        device = mx.device_info(mx.gpu)
        chip = device.get("device_name") or device.get("architecture") or "unknown chip"
        return cls(str(chip), platform.mac_ver()[0] or "unknown", _MLX_VERSION, sources)

    @property
    def file_name(self) -> str:
        """Name of the file of its verdicts."""
        parts = (self.chip, self.system, self.mlx_version, self.sources[:12])
        return _PREFIX + "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts) + ".json"


def cache_folder() -> Path:
    """Return the folder for what may be thrown away: $MLX_GEMMA4_CACHE, or the system's place."""
    path = os.environ.get(CACHE_VARIABLE)
    if not path:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        caches = "~/Library/Caches" if sys.platform == "darwin" else caches
        path = f"{caches}/mlx-gemma4"
    # Unlike Path.expanduser, this raises nothing for a user without a home.
    return Path(os.path.expanduser(path))


def verdict_files(folder: Path) -> list[Path]:
    """Return the files of verdicts in a folder, of whatever machine."""
    return sorted(folder.glob(f"{_PREFIX}*.json"))


@dataclass
class Verdicts:
    """The content of a file of verdicts.

    Attributes:
        machine: For which they hold.
        path: Of the file.
        checks: By kernel, why it failed its self-check; None if it passed.
        timings: By `Sizes.key`, the last one tuned last, then by kernel; no timing if a kernel
            does not fit these sizes.
        running: The kernel that is being tried, and the process that tries it.
    """

    machine: Machine
    path: Path
    checks: dict[str, str | None] = field(default_factory=dict)
    timings: dict[str, dict[str, list[Timing]]] = field(default_factory=dict)
    running: tuple[str, int] | None = None

    @classmethod
    def read(cls, machine: Machine, folder: Path) -> tuple["Verdicts", list[str]]:
        """Return what is known of a machine, and notes about what was ignored."""
        path = folder / machine.file_name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            verdicts = cls._from_document(machine, path, document)
        except FileNotFoundError:
            return cls(machine, path), []
        except (OSError, ValueError) as error:
            note = f"kernel verdicts in {path} are ignored ({error}); kernels are checked anew"
            return cls(machine, path), [note]
        verdicts._note_crash()
        return verdicts, []

    @classmethod
    def _from_document(cls, machine: Machine, path: Path, document: Any) -> "Verdicts":
        try:
            if document["machine"] != asdict(machine):
                raise ValueError("they are of another machine")
            checks = {
                str(name): None if reason is None else str(reason)
                for name, reason in document["checks"].items()
            }
            timings = {
                str(key): {
                    str(name): [_read_timing(timing) for timing in of_kernel]
                    for name, of_kernel in of_sizes.items()
                }
                for key, of_sizes in document["timings"].items()
            }
            running = document["running"]
            if running is not None:
                running = str(running[0]), int(running[1])
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"damaged: {type(error).__name__}: {error}") from None
        return cls(machine, path, checks, timings, running)

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        document = {name: part for name, part in asdict(self).items() if name != "path"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".", suffix=".json")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
            os.replace(name, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Leave a mark in the file while a kernel runs: a driver may take the process with it."""
        try:
            self._mark((name, os.getpid()))
            yield
        finally:
            self._mark(None)

    def timings_of(self, sizes_key: str) -> dict[str, list[Timing]]:
        """Return the timings of a model, to be read and added to; they are the last ones now."""
        timings = self.timings[sizes_key] = self.timings.pop(sizes_key, {})
        return timings

    def forget(self, names: Iterable[str], sizes_key: str) -> None:
        """Drop the checks of kernels, and their timings for a model."""
        for name in names:
            self.checks.pop(name, None)
            self.timings.get(sizes_key, {}).pop(name, None)

    def _mark(self, running: tuple[str, int] | None) -> None:
        self.running = running
        # A disk that cannot be written to is reported once, when all is done.
        with suppress(OSError):
            self.write()

    def _note_crash(self) -> None:
        """Record the kernel during whose trial a process ended without another word."""
        if self.running is not None and not is_alive(self.running[1]):
            reason = "the process ended while it ran; mlx-gemma4 tune tries it again"
            self.checks[self.running[0]] = reason
            self._mark(None)


def hash_sources(parts: Mapping[str, str]) -> str:
    """Return one hash of texts by name, in hexadecimal."""
    digest = hashlib.sha256()
    for name, text in sorted(parts.items()):
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


def _read_timing(document: Any) -> Timing:
    timing = Timing(
        str(document["label"]), float(document["plain_ms"]), float(document["kernel_ms"])
    )
    if not (timing.plain_ms > 0 and timing.kernel_ms > 0):
        raise ValueError(f"damaged: a timing is {timing}")
    return timing


def is_alive(process: int) -> bool:
    """Whether a process with this number runs."""
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
