"""Energy that the chip takes while something runs, where the system lets it be read.

A thread takes readings of a source (`power_sources`); what a span of time took lies between those
around it, interpolated.  Energy is that of the whole chip, whoever uses it: what it takes at rest
is measured and told, and is not subtracted.
"""

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self

import numpy as np

from mlx_gemma4.bench.power_sources import PowerError, Powermetrics, Rapl, Source, SourceName
from mlx_gemma4.errors import OptionError

Span = tuple[float, float]  # when something began and ended, of time.perf_counter

# A sample of fewer readings says little: at either end some of it may be its neighbour's.
_MIN_READINGS = 5
_IDLE_S = 3.0
_PATIENCE_S = 10.0  # for a reading
# Readings that wait to be parsed: doing that while something is measured would disturb it.
_MAX_BACKLOG = 600
_RAPL_FOLDER = Path("/sys/class/powercap")


@dataclass(frozen=True)
class PowerFacts:
    """What energies of a document are.

    Attributes:
        source: What told them.
        covers: Whose energy it is.
        idle_w: Taken before anything was measured, for some seconds; it is part of all energies.
    """

    source: SourceName
    covers: str
    idle_w: float


class EnergyMeter:
    """Readings of a source, and the energy of what has run meanwhile.

    Making it takes some seconds, in which nothing else should run: power at rest is measured.

    Attributes:
        facts: What its energies are.
        problem: Why energy that was asked for is missing; None while none is.
        is_too_short: Whether something took too little time for its energy to be told.

    Args:
        source: Not yet read.

    Raises:
        PowerError: The source tells nothing.
    """

    def __init__(self, source: Source) -> None:
        self.problem: str | None = None
        self.is_too_short = False
        self._source = source
        self._waiting: deque[tuple[float, Any]] = deque()
        self._times, self._joules = [0.0], [0.0]
        self._last_s = -math.inf
        self._end: str | None = None  # why there are no more readings
        self._changed = Condition()
        self._thread = Thread(target=self._gather, daemon=True)
        self._thread.start()
        try:
            self.facts = self._measure_idle()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shortest_s(self) -> float:
        """The shortest span whose energy is told."""
        return _MIN_READINGS * self._source.interval_s

    def samples_j(self, spans: Sequence[Span]) -> tuple[float, ...] | None:
        """Return the energy of each span in joules.

        Args:
            spans: In order; since the meter was made.

        Returns:
            None, and a `problem`, if the source has stopped; None, and `is_too_short`, if one of
            them is.
        """
        if min(stop - start for start, stop in spans) < self.shortest_s:
            self.is_too_short = True
            return None
        self._read_up_to(spans[-1][1])
        if self.problem is not None:
            return None
        totals = np.interp(np.array(spans), self._times, self._joules)  # [spans, 2]
        return tuple(float(stop - start) for start, stop in totals)

    def close(self) -> None:
        """End the readings."""
        self._source.close()
        self._thread.join(1.0)

    def _measure_idle(self) -> PowerFacts:
        self._read_up_to(time.perf_counter())
        if self.problem is not None:
            raise PowerError(self.problem)
        # What the first reading tells lies before it.
        self._times, self._joules = self._times[-1:], [0.0]
        start = time.perf_counter()
        time.sleep(max(_IDLE_S, self.shortest_s))
        stop = time.perf_counter()
        taken_j = self.samples_j([(start, stop)])
        if taken_j is None:
            raise PowerError(self.problem or f"{self._source.name} tells nothing")
        return PowerFacts(self._source.name, self._source.covers, taken_j[0] / (stop - start))

    def _gather(self) -> None:
        """Take readings until there are no more; runs in a thread."""
        end = "there are no more readings"
        try:
            for reading in self._source.readings():
                with self._changed:
                    self._last_s = time.perf_counter()
                    self._waiting.append((self._last_s, reading))
                    if len(self._waiting) > _MAX_BACKLOG:
                        self._read_one()
                    self._changed.notify()
        except PowerError as error:
            end = str(error)
        with self._changed:
            self._end = end
            self._changed.notify()

    def _read_up_to(self, moment: float) -> None:
        """Wait for a reading after a moment, and read all that have come."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._last_s >= moment or self._end is not None, _PATIENCE_S
            )
            if self._last_s < moment and self.problem is None:
                silent = f"{self._source.name} told nothing for {_PATIENCE_S:g} s"
                self.problem = self._end or silent
            try:
                while self._waiting:
                    self._read_one()
            except PowerError as error:
                self.problem = str(error)

    def _read_one(self) -> None:
        moment, reading = self._waiting.popleft()
        self._joules.append(self._joules[-1] + self._source.joules(reading))
        self._times.append(moment)


def open_meter(*, is_asked: bool) -> EnergyMeter | None:
    """Return a meter of this machine's energy; None if nothing can be read without asking.

    Args:
        is_asked: Whether somebody wants it: `sudo` is then tried too, which asks for no password.

    Raises:
        OptionError: It is wanted, and nothing can be read.
    """
    reasons: list[str] = []
    for open_source in (lambda: _open_powermetrics(may_ask=is_asked), lambda: Rapl(_RAPL_FOLDER)):
        try:
            return EnergyMeter(open_source())
        except PowerError as error:
            reasons.append(str(error))
    if not is_asked:
        return None
    raise OptionError(
        f"--power: no energy can be read here ({'; '.join(reasons)}); on macOS run it as root, or "
        "allow `sudo powermetrics` without a password (`sudo -v` does for some minutes); on Linux "
        "run it as root, or make the counters readable; or leave out --power"
    )


def _open_powermetrics(*, may_ask: bool) -> Powermetrics:
    if shutil.which("powermetrics") is None:
        raise PowerError("there is no powermetrics")
    if os.geteuid() == 0:
        return Powermetrics(["powermetrics"])
    if not may_ask or shutil.which("sudo") is None:
        raise PowerError("powermetrics is for root")
    return Powermetrics(["sudo", "-n", "powermetrics"])
