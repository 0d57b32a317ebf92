"""Cases given to workers, their findings told apart, confirmed, minimised, and kept."""

import hashlib
import multiprocessing
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

from fuzz.case import Files, Finding, Target
from fuzz.worker import GOOD, Limits, Numbered, place_in, serve

LIMITS = Limits()
_REQUEST = 25  # cases that are asked for at a time
_MINIMISING_TRIALS = 300
_DETAIL_CHARACTERS = 6000
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class _Bad:
    """What a worker says of a bad case, or what is said of a worker that a case has ended."""

    number: int
    kind: str
    place: str
    detail: str


class Worker:
    """A process for one target, begun anew whenever a case has ended it."""

    def __init__(self, target: Target, limits: Limits = LIMITS) -> None:
        self._target = target
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-log-")
        self._log = Path(self._folder.name) / "log"
        self._log.touch()
        self._progress: Any = _SPAWN.RawArray("Q", 1 + len(GOOD))
        self._process: Any = None
        self._connection: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def run(self, request: Numbered | Files) -> Iterator[_Bad | Counter[str]]:
        """Yield each bad case, and counts of the good ones."""
        rest: Numbered | Files | None = request
        while rest is not None:
            self._start()
            self._progress[:] = [rest.start if isinstance(rest, Numbered) else 0, 0, 0]
            self._connection.send(rest)
            is_whole = yield from self._answers()
            yield Counter(dict(zip(GOOD, self._progress[1:], strict=True)))
            rest = None if is_whole else self._rest(rest)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def _answers(self) -> Generator[_Bad, None, bool]:
        """Yield what a worker sends; return whether it has run all that was asked for."""
        is_whole = True
        try:
            while (answer := self._connection.recv()) is not None:
                yield (bad := _Bad(*answer))
                is_whole = bad.kind != "memory"
        except (EOFError, ConnectionError):
            yield self._obituary()
            is_whole = False
        if not is_whole:
            self.stop()
        return is_whole

    def _start(self) -> None:
        if self._process is not None:
            return
        self._connection, other = _SPAWN.Pipe()
        arguments = (other, self._target, self._limits, self._log, self._progress)
        self._process = _SPAWN.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        other.close()
        try:
            self._connection.recv()
        except EOFError:
            detail = self._obituary().detail
            raise RuntimeError(f"{self._target.name}: its real files fail: {detail}") from None

    def _rest(self, request: Numbered | Files) -> Numbered | None:
        start = self._progress[0] + 1
        if not isinstance(request, Numbered) or start >= request.stop:
            return None
        return replace(request, start=start)

    def _obituary(self) -> _Bad:
        """Say what ended the process: our own alarm, a signal, or an allocator."""
        self._process.join()
        code = self._process.exitcode
        log = self._log.read_text(encoding="utf-8", errors="replace")
        place = place_in(log, is_newest_first=True)
        number = self._progress[0]
        if "Timeout (" in log or code == -signal.SIGPROF:
            return _Bad(number, "hang", place, log)
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Bad(number, "crash", f"{cause} at {place}", f"{cause}\n{log}")


@dataclass
class Hunt:
    """One run over a target.

    Attributes:
        seed: Of all cases.
        folder: Where the first case of each defect is kept; None keeps none.
        limits: After which a case hangs.
        counts: Cases by what became of them: taken, refused, or the kind of a finding.
        findings: The first of each place, and how often there were such.
        is_stopped: Set it to have `run` end after a few cases more.
    """

    target: Target
    seed: int
    folder: Path | None = None
    limits: Limits = LIMITS
    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[tuple[str, str], tuple[Finding, int]] = field(default_factory=dict)
    is_stopped: bool = False
    _lock: Lock = field(default_factory=Lock)

    def run(
        self, start: int, stop: int, advance: Callable[[int], None] = lambda count: None
    ) -> None:
        """Run the cases start..stop in one worker; threads may do so side by side.

        Args:
            start: Number of the first case.
            stop: Number after the last.
            advance: Called with how many cases more are done.
        """
        with Worker(self.target, self.limits) as worker:
            for at in range(start, stop, _REQUEST):
                if self.is_stopped:
                    return
                for answer in worker.run(Numbered(self.seed, at, min(at + _REQUEST, stop))):
                    with self._lock:
                        self._count(answer)
                    advance(1 if isinstance(answer, _Bad) else answer.total())

    def _count(self, answer: "_Bad | Counter[str]") -> None:
        if isinstance(answer, Counter):
            self.counts += answer
            return
        self.counts[answer.kind] += 1
        key = (answer.kind, answer.place)
        if key in self.findings:
            finding, times = self.findings[key]
            self.findings[key] = (finding, times + 1)
            return
        files = self.target.make(self.target.read_real(), self.seed, answer.number)
        finding = Finding(
            self.target.name,
            self.seed,
            answer.number,
            answer.kind,
            answer.place,
            answer.detail[-_DETAIL_CHARACTERS:],
            files,
        )
        finding = minimise(self.target, finding, self.limits)
        self.findings[key] = (finding, 1)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            finding.save(self.folder / name_of(finding))


def name_of(finding: Finding) -> str:
    """Return the name of a finding's file: alike for the same defect."""
    digest = hashlib.sha256(finding.place.encode()).hexdigest()[:8]
    return f"{finding.target}-{finding.kind}-{digest}.zip"


def replay(target: Target, files: Files, limits: Limits = LIMITS) -> _Bad | Counter[str]:
    """Run one case in a fresh worker, and return what became of it."""
    with Worker(target, limits) as worker:
        return next(worker.run(files))  # what is wrong with it comes first


def minimise(target: Target, finding: Finding, limits: Limits) -> Finding:
    """Return the finding with all bytes left out that it does without.

    A hang or a crash costs seconds a trial and is only repeated, not made smaller.
    """
    with Worker(target, limits) as worker:

        def is_same(files: Files) -> bool:
            answer, *_ = worker.run(files)
            # Where a hang is when its time is over is chance.
            return isinstance(answer, _Bad) and (
                (answer.kind, answer.place) == (finding.kind, finding.place)
                or answer.kind == finding.kind == "hang"
            )

        if not is_same(finding.files):
            return replace(finding, is_repeatable=False)
        if finding.kind != "exception":
            return finding
        files, trials = dict(finding.files), _MINIMISING_TRIALS
        for name in files:
            step = len(files[name]) // 2
            while step and trials:
                at = 0
                while at < len(files[name]) and trials:
                    shorter = files[name][:at] + files[name][at + step :]
                    trials -= 1
                    if is_same(files | {name: shorter}):
                        files[name] = shorter
                    else:
                        at += step
                step //= 2
        return replace(finding, files=files)
