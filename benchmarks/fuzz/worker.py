"""The process in which cases run: it may raise, hang, fill its memory, or die of one."""

import faulthandler
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from fuzz.case import Files, Target
from mlx_gemma4.errors import Gemma4Error

# Above what a target may take: so much is left to stacks of threads and to the allocator.
_SLACK_BYTES = 512 << 20
_FRAME = re.compile(r'File "[^"]*?(mlx_gemma4/[^"]*)", line (\d+)')
TAKEN, REFUSED = "taken", "refused"
GOOD: tuple[str, ...] = (TAKEN, REFUSED)


@dataclass(frozen=True)
class Limits:
    """After which time a case hangs.

    Attributes:
        processor_s: Of the processor, which on a busy machine is not the clock's.
        clock_s: For a case that only waits.
    """

    processor_s: float = 5.0
    clock_s: float = 120.0


@dataclass(frozen=True)
class Numbered:
    """Cases to be made and run: those with the numbers start..stop of a seed."""

    seed: int
    start: int
    stop: int


def serve(
    connection: Connection, target: Target, limits: Limits, log_path: Path, progress: Any
) -> None:
    """Run what is asked for until None comes; send each bad case, and None at the end of a request.

    Args:
        connection: Takes `Numbered` or `Files`; gives (number, kind, place, detail) of each bad
            case, and then None.
        target: What is run.
        limits: When one is exceeded, the traceback goes to the log, and the process ends.
        log_path: Where everything goes that is printed, here or in C.
        progress: Shared numbers, which outlive this process: of the case that is running, and how
            many were taken and refused before it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    os.environ["HF_HUB_OFFLINE"] = "1"
    log = log_path.open("a", encoding="utf-8")
    os.dup2(log.fileno(), sys.stderr.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    faulthandler.enable(log)
    # From C, whatever C is doing; and then the signal does what it does by default: it ends us.
    faulthandler.register(signal.SIGPROF, log, chain=True)
    warnings.simplefilter("ignore")
    real = target.read_real()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        bench = _Bench(target, Path(scratch), limits, log)
        for files in real:  # what is imported and cached is no case's memory
            bench.run(files)
        bench.limit_memory()
        connection.send(None)
        for request in iter(connection.recv, None):
            for number, files in _cases(target, real, request):
                progress[0] = number
                kind, place, detail = bench.run(files)
                if kind in GOOD:
                    progress[1 + GOOD.index(kind)] += 1
                else:
                    connection.send((number, kind, place, detail))
                if kind == "memory":  # whose peak would hide the next one's
                    break
            connection.send(None)


def _cases(target: Target, real: Sequence[Files], request: Numbered | Files) -> Any:
    if not isinstance(request, Numbered):
        return [(0, request)]
    numbers = range(request.start, request.stop)
    return ((number, target.make(real, request.seed, number)) for number in numbers)


class _Bench:
    """Runs one case after the other, and judges each."""

    def __init__(self, target: Target, folder: Path, limits: Limits, log: TextIO) -> None:
        self._target = target
        self._folder = folder
        self._limits = limits
        self._log = log
        self._most_bytes: float = float("inf")

    def limit_memory(self) -> None:
        """From now on, hold the target to its memory."""
        self._most_bytes = peak_bytes() + self._target.memory_bytes
        if sys.platform == "linux":  # elsewhere the peak alone tells, afterwards
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + self._target.memory_bytes + _SLACK_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def run(self, files: Files) -> tuple[str, str, str]:
        """Return kind, place, and detail of what a case does."""
        os.ftruncate(self._log.fileno(), 0)
        signal.setitimer(signal.ITIMER_PROF, self._limits.processor_s)
        faulthandler.dump_traceback_later(self._limits.clock_s, exit=True, file=self._log)
        try:
            verdict = self._judge(files)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            for path in self._folder.iterdir():
                path.unlink()
        if verdict[0] in GOOD and (peak := peak_bytes()) > self._most_bytes:
            more = peak - self._most_bytes + self._target.memory_bytes
            allowed = f"{self._target.memory_bytes >> 20} MiB are allowed"
            return "memory", "peak", f"the case took {int(more) >> 20} MiB; {allowed}"
        return verdict

    def _judge(self, files: Files) -> tuple[str, str, str]:
        try:
            self._target.run(files, self._folder)
        except Gemma4Error:
            return REFUSED, "", ""
        except MemoryError:
            trace = traceback.format_exc()
            return "memory", place_in(trace), trace
        except BaseException as error:  # a panic in Rust is no Exception
            trace = traceback.format_exc()
            return "exception", f"{type(error).__name__} at {place_in(trace)}", trace
        return TAKEN, "", ""


def peak_bytes() -> int:
    """Return the most memory that this process has held.

    On Linux ru_maxrss begins with what the parent held: a new program keeps the mark of the process
    that became it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(kilobytes) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def place_in(trace: str, *, is_newest_first: bool = False) -> str:
    """Return the package's line in which a traceback ends."""
    frames = _FRAME.findall(trace)
    if not frames:
        return "outside the package"
    file, line = frames[0 if is_newest_first else -1]
    return f"{file}:{line}"
