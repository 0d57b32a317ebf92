"""What tells energy: macOS's `powermetrics`, and the RAPL counters of Linux.

`powermetrics` has not been run on a Mac with this code.  What it prints is taken from its manual
page and from what programs that read it expect: a property list a sample, with NUL between them;
`elapsed_ns`; and in `processor` either `combined_power` (macOS 13 and later), or `cpu_power`,
`gpu_power`, and `ane_power`, in mW, or `cpu_energy`, `gpu_energy`, and `ane_energy` (macOS 12), in
mJ.  Its manual page calls these figures estimates, which do not compare one device with another.

Source: powermetrics(1); tlkh/asitop, asitop/parsers.py of several versions, and its issues 43 and
51; Documentation/power/powercap/powercap.rst of Linux.
"""

import math
import os
import plistlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, Literal, Protocol
from xml.parsers.expat import ExpatError

SourceName = Literal["powermetrics", "rapl"]

_POWERMETRICS_INTERVAL_MS = 100
_RAPL_INTERVAL_S = 0.02
_MAX_DOCUMENT_BYTES = 4 << 20
_END = b"</plist>"
_PARTS = ("cpu", "gpu", "ane")


class PowerError(Exception):
    """Energy cannot be read; the message says why."""


class Source(Protocol):
    """Something that tells energy.

    Attributes:
        name: Of it.
        covers: Whose energy it is.
        interval_s: Between readings.
    """

    name: SourceName
    covers: str
    interval_s: float

    def readings(self) -> Iterator[Any]:
        """Yield what is read, each when it is there; cheap, since something else is measured.

        Raises:
            PowerError: There will be no more.
        """
        ...

    def joules(self, reading: Any) -> float:
        """Return the energy between the reading before, of which it was called last, and this one.

        Raises:
            PowerError: The reading tells none.
        """
        ...

    def close(self) -> None:
        """End the readings."""
        ...


class Powermetrics:
    """The chip's power as macOS estimates it: what `powermetrics` prints.

    Args:
        command: That starts it, with `sudo` or without.
    """

    name: SourceName = "powermetrics"
    covers = "CPU, GPU, and neural engine; no memory, no display"
    interval_s = _POWERMETRICS_INTERVAL_MS / 1000

    def __init__(self, command: Sequence[str]) -> None:
        options = ["--samplers", "cpu_power,gpu_power", "-f", "plist", "-b", "1"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close
        try:
            self._process = subprocess.Popen(
                [*command, *options, "-i", str(_POWERMETRICS_INTERVAL_MS)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            self._errors.close()
            raise PowerError(f"powermetrics cannot be started: {error.strerror}") from None

    def readings(self) -> Iterator[bytes]:
        """Yield property lists."""
        assert self._process.stdout is not None
        buffer = b""
        with suppress(OSError, ValueError):  # closed meanwhile
            while part := os.read(self._process.stdout.fileno(), 1 << 16):
                *documents, buffer = (buffer + part).split(_END)
                yield from (document.strip(b"\0 \r\n\t") + _END for document in documents)
                if len(buffer) > _MAX_DOCUMENT_BYTES:
                    raise PowerError("powermetrics prints something else than property lists")
        raise PowerError(f"powermetrics has ended{self._complaint()}")

    def joules(self, reading: bytes) -> float:
        """Return the energy of a sample."""
        try:
            document = plistlib.loads(reading)
            return sample_joules(document)
        except (ExpatError, LookupError, TypeError, ValueError, ArithmeticError):
            raise PowerError(
                "powermetrics prints property lists without the power of the chip, or damaged ones"
            ) from None

    def close(self) -> None:
        """End the program: what is run by `sudo` may not be told to, but cannot write any more."""
        with suppress(OSError):
            self._process.terminate()
        try:
            self._process.wait(2.0 if os.geteuid() == 0 else 0.2)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                self._process.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        self._errors.close()

    def _complaint(self) -> str:
        """Return the first line of what the program has said."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        try:
            self._errors.seek(0)
            lines = self._errors.read(4096).decode(errors="replace").split("\n")
        except ValueError:
            return ""
        said = next((line.strip() for line in lines if line.strip()), "")
        return f": {said[:200]}" if said else f" with exit code {self._process.returncode}"


class Rapl:
    """The counters of Intel's and AMD's processors: packages, and memory where it is counted.

    Args:
        folder: With the zones.

    Raises:
        PowerError: There are none, or they cannot be read.
    """

    name: SourceName = "rapl"
    interval_s = _RAPL_INTERVAL_S

    def __init__(self, folder: Path) -> None:
        self._counters: list[Path] = []
        self._ranges: list[int] = []  # where each counter begins anew, in microjoules
        names: list[str] = []
        for zone in sorted(folder.glob("intel-rapl:*")):
            with suppress(OSError):
                name = (zone / "name").read_text(encoding="utf-8").strip()
                # Other zones are parts of a package, or the whole machine with it.
                if name.startswith("package") or name == "dram":
                    names.append(name)
                    self._counters.append(zone / "energy_uj")
                    self._ranges.append(int((zone / "max_energy_range_uj").read_text()))
        if not names:
            raise PowerError(f"there is no {folder}/intel-rapl:*")
        self.covers = ", ".join(dict.fromkeys(names))
        self._is_closed = Event()
        self._last: list[int] | None = None
        try:
            self._read()
        except PermissionError:
            raise PowerError(f"{folder}/intel-rapl:*/energy_uj cannot be read by you") from None
        except (OSError, ValueError) as error:
            raise PowerError(f"{folder}/intel-rapl:*/energy_uj cannot be read: {error}") from None

    def readings(self) -> Iterator[list[int]]:
        """Yield all counters."""
        try:
            while True:
                yield self._read()
                if self._is_closed.wait(self.interval_s):
                    return
        except (OSError, ValueError) as error:
            raise PowerError(f"RAPL's counters cannot be read any more: {error}") from None

    def joules(self, reading: list[int]) -> float:
        """Return the energy since the reading before; a counter below its last has begun anew."""
        last, self._last = self._last or reading, reading
        microjoules = sum(
            now - before + (wrap if now < before else 0)
            for now, before, wrap in zip(reading, last, self._ranges, strict=True)
        )
        return microjoules / 1e6

    def close(self) -> None:
        """End the readings."""
        self._is_closed.set()

    def _read(self) -> list[int]:
        return [int(counter.read_text()) for counter in self._counters]


def sample_joules(document: Any) -> float:
    """Return the energy that a property list of `powermetrics` tells.

    Raises:
        LookupError: It tells none; also TypeError and ValueError, for what cannot be true.
    """
    processor, elapsed_s = document["processor"], document["elapsed_ns"] / 1e9
    if "combined_power" in processor:
        joules = processor["combined_power"] * elapsed_s / 1e3
    elif "cpu_power" in processor:
        milliwatts = [processor.get(f"{part}_power", 0) for part in _PARTS]
        joules = sum(milliwatts) * elapsed_s / 1e3
    else:
        processor["cpu_energy"]  # a sample without it tells nothing
        joules = sum(processor.get(f"{part}_energy", 0) for part in _PARTS) / 1e3
    if not (math.isfinite(joules) and joules >= 0 and elapsed_s > 0):
        raise ValueError("a power below 0, or a time")
    return joules
