"""Energy: what `powermetrics` prints and what RAPL counts, read; and what is broken, told.

The programs are scripts; what they print has the form of what real ones have printed.
"""

import os
import plistlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_gemma4.bench import power, power_sources
from mlx_gemma4.bench.power import EnergyMeter, open_meter
from mlx_gemma4.bench.power_sources import PowerError, Powermetrics, Rapl, sample_joules
from mlx_gemma4.errors import OptionError

# A sample has more than this, of which we read nothing: frequencies of each core, for instance.
CLUSTERS = [{"name": "E-Cluster", "freq_hz": 1.02e9, "cpus": [{"cpu": 0, "idle_ratio": 0.9}]}]
# macOS 13 and later.
COMBINED = {"cpu_power": 4280.0, "gpu_power": 8100.5, "ane_power": 120.0, "combined_power": 12500.5}
# A version without the sum.
POWERS = {"cpu_power": 4280.0, "cpu_energy": 428, "gpu_power": 8100.5, "ane_power": 120.0}
# macOS 12.
ENERGIES = {"cpu_energy": 428, "gpu_energy": 810, "ane_energy": 12, "package_energy": 1500}

SCRIPT = """#!{python}
import os, plistlib, sys, time
from pathlib import Path
Path({pid!r}).write_text(str(os.getpid()))
assert sys.argv[sys.argv.index("-f") + 1] == "plist", sys.argv
assert sys.argv[sys.argv.index("--samplers") + 1] == "cpu_power,gpu_power", sys.argv
interval_s = int(sys.argv[sys.argv.index("-i") + 1]) / 1000
flag, last = Path({flag!r}), time.perf_counter()
while True:
    time.sleep(interval_s)
    now = time.perf_counter()
    document = {{
        "is_delta": True, "elapsed_ns": round((now - last) * 1e9), "hw_model": "Mac16,5",
        "processor": {{"clusters": {clusters!r}, **{processor!r}}},
        "gpu": {{"freq_hz": 338.0, "idle_ratio": 0.87}},
    }}
    last = now
    {body}
    sys.stdout.buffer.write(plistlib.dumps(document) + b"\\0")
    sys.stdout.buffer.flush()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take readings often, wait long for each, and see only what a test puts there."""
    monkeypatch.setattr(power, "_IDLE_S", 0.0)
    monkeypatch.setattr(power, "_PATIENCE_S", 60.0)
    monkeypatch.setattr(power, "_RAPL_FOLDER", tmp_path / "powercap")
    monkeypatch.setattr(power_sources, "_POWERMETRICS_INTERVAL_MS", 20)
    monkeypatch.setattr(Powermetrics, "interval_s", 0.02)
    monkeypatch.setattr(Rapl, "interval_s", 0.005)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()


def write_program(folder: Path, name: str, text: str) -> None:
    program = folder / "bin" / name
    program.write_text(text)
    program.chmod(0o755)


def write_powermetrics(
    folder: Path, *, processor: dict[str, Any] = COMBINED, body: str = ""
) -> None:
    """Put a `powermetrics` on the PATH; `body` runs before each sample is printed."""
    values = {"python": sys.executable, "clusters": CLUSTERS}
    values |= {name: str(folder / name) for name in ("pid", "flag")}
    write_program(
        folder, "powermetrics", SCRIPT.format(processor=processor, body=body or "pass", **values)
    )


def is_running(folder: Path) -> bool:
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def wait(seconds: float) -> tuple[float, float]:
    start = time.perf_counter()
    time.sleep(seconds)
    return start, time.perf_counter()


@pytest.mark.parametrize(
    ("processor", "joules"), [(COMBINED, 1.25005), (POWERS, 1.25005), (ENERGIES, 1.25)]
)
def test_all_forms_of_a_sample_are_read(processor: dict[str, Any], joules: float) -> None:
    document = {"elapsed_ns": 100_000_000, "processor": {"clusters": CLUSTERS, **processor}}
    printed = plistlib.loads(plistlib.dumps(document))
    assert sample_joules(printed) == pytest.approx(joules)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"processor": COMBINED},
        {"elapsed_ns": 10**8},
        {"elapsed_ns": 0, "processor": COMBINED},
        {"elapsed_ns": 10**8, "processor": {"clusters": CLUSTERS}},
        {"elapsed_ns": 10**8, "processor": {"combined_power": -1.0}},
        {"elapsed_ns": 10**8, "processor": {"combined_power": float("nan")}},
        {"elapsed_ns": 10**8, "processor": {"combined_power": "much"}},
        {"elapsed_ns": 10**400, "processor": COMBINED},
    ],
)
def test_a_sample_that_tells_nothing_is_refused(document: Any) -> None:
    with pytest.raises((LookupError, TypeError, ValueError, ArithmeticError)):
        sample_joules(document)


def test_a_program_is_read_while_something_runs(tmp_path: Path) -> None:
    write_powermetrics(tmp_path)
    meter = open_meter(is_asked=True)
    assert meter is not None
    with meter:
        assert meter.facts.source == "powermetrics"
        assert meter.facts.idle_w > 0
        energies = meter.samples_j([wait(0.3), wait(0.6)])
        assert energies is not None
        assert min(energies) > 0
        start = time.perf_counter()
        assert meter.samples_j([(start, start + 0.01)]) is None
        assert meter.is_too_short
        assert meter.problem is None
    assert not is_running(tmp_path)


class Clock:
    """A source, and the time, which passes when a test lets it."""

    name: power_sources.SourceName = "rapl"
    covers = "this test"
    interval_s = 0.125  # a sum of these is exact

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._readings = 0.0, Queue[float | None]()
        self._readings.put(3.0)  # of before the meter was made: counts for nothing
        fake = SimpleNamespace(perf_counter=lambda: self.now, sleep=lambda s: self.run(s, 10))
        monkeypatch.setattr(power, "time", fake)

    def run(self, seconds: float, watts: float) -> tuple[float, float]:
        """Let time pass, with a reading in each interval; return when it was."""
        start = self.now
        while self.now < start + seconds:
            self.now += self.interval_s
            self._readings.put(watts * self.interval_s)
            self._readings.join()
        return start, self.now

    def readings(self) -> Iterator[float]:
        while (reading := self._readings.get()) is not None:
            yield reading
            self._readings.task_done()

    def joules(self, reading: float) -> float:
        return reading

    def close(self) -> None:
        self._readings.put(None)


def test_energy_is_that_of_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with EnergyMeter(clock) as meter:
        assert meter.facts.idle_w == pytest.approx(10)
        spans = [clock.run(1, 10), clock.run(2, 30), clock.run(1, 10)]
        assert meter.samples_j(spans) == pytest.approx((10, 60, 10))
        start, stop = clock.run(1, 40)
        between = (start + 0.05, stop - 0.1)  # between readings, power is taken to be even
        assert meter.samples_j([between]) == pytest.approx((0.85 * 40,))


def test_readings_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_MAX_BACKLOG", 3)
    clock = Clock(monkeypatch)
    with EnergyMeter(clock) as meter:
        span = clock.run(5, 20)
        assert len(meter._waiting) <= 3
        assert meter.samples_j([span]) == pytest.approx((100,))


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_a_sampler_that_dies_is_told(tmp_path: Path) -> None:
    write_powermetrics(
        tmp_path, body="if flag.exists(): sys.exit('powermetrics: second agent is running')"
    )
    meter = open_meter(is_asked=True)
    assert meter is not None
    with meter:
        (tmp_path / "flag").touch()
        wait_until(lambda: not is_running(tmp_path))
        for _ in range(2):
            assert meter.samples_j([wait(0.2)]) is None
            assert meter.problem == "powermetrics has ended: powermetrics: second agent is running"


def test_a_sampler_that_hangs_later_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_powermetrics(tmp_path, body="if flag.exists(): time.sleep(600)")
    meter = open_meter(is_asked=True)
    assert meter is not None
    monkeypatch.setattr(power, "_PATIENCE_S", 0.3)
    with meter:
        (tmp_path / "flag").touch()
        wait_until(lambda: meter.samples_j([wait(0.2)]) is None)  # one may be on its way
        assert meter.problem == "powermetrics told nothing for 0.3 s"
    assert not is_running(tmp_path)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("time.sleep(600)", "powermetrics told nothing for"),
        ("sys.exit(3)", "powermetrics has ended with exit code 3"),
        ("sys.exit('unrecognized sampler: gpu_power')", "ended: unrecognized sampler: gpu_power"),
        ("print('x' * 100_000, flush=True); continue", "something else than property lists"),
        ("print('rubbish</plist>', flush=True); continue", "or damaged ones"),
        ("document = {'elapsed_ns': 5}", "without the power of the chip"),
        ("document['processor'] = [1]", "without the power of the chip"),
    ],
)
def test_a_sampler_that_tells_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, says: str
) -> None:
    monkeypatch.setattr(power_sources, "_MAX_DOCUMENT_BYTES", 50_000)
    if "told nothing" in says:
        monkeypatch.setattr(power, "_PATIENCE_S", 1.5)
    write_powermetrics(tmp_path, body=body)
    with pytest.raises(OptionError) as caught:
        open_meter(is_asked=True)
    assert says in str(caught.value)
    assert "or leave out --power" in str(caught.value)
    assert not is_running(tmp_path)
    assert open_meter(is_asked=False) is None


def test_nobody_is_asked_for_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    write_powermetrics(tmp_path)
    with pytest.raises(OptionError, match="powermetrics is for root"):  # there is no sudo
        open_meter(is_asked=True)
    write_program(tmp_path, "sudo", "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    with pytest.raises(OptionError, match="powermetrics has ended: sudo: a password is required"):
        open_meter(is_asked=True)
    write_program(tmp_path, "sudo", '#!/bin/sh\n[ "$1" = -n ] || exit 9\nshift\nexec "$@"\n')
    assert open_meter(is_asked=False) is None
    assert not (tmp_path / "pid").exists()
    meter = open_meter(is_asked=True)
    assert meter is not None
    meter.close()
    assert not is_running(tmp_path)


def test_a_sampler_that_may_not_be_killed_ends_with_its_pipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_powermetrics(tmp_path)
    source = Powermetrics(["powermetrics"])
    meter = EnergyMeter(source)

    def refuse() -> None:
        raise PermissionError

    monkeypatch.setattr(source._process, "terminate", refuse)
    monkeypatch.setattr(source._process, "kill", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    meter.close()
    assert not is_running(tmp_path)


def write_zones(folder: Path, **zones: tuple[str, int, int]) -> None:
    """Write zones of powercap: name, counter, and where it begins anew."""
    for zone, (name, counter, wrap) in zones.items():
        path = folder / "powercap" / zone.replace("_", ":").replace("rapl", "intel-rapl")
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "energy_uj").write_text(f"{counter}\n")
        (path / "max_energy_range_uj").write_text(f"{wrap}\n")


def test_packages_and_memory_are_counted_and_no_part_twice(tmp_path: Path) -> None:
    write_zones(
        tmp_path,
        rapl_0=("package-0", 5_000_000, 262_143_328_850),
        rapl_0_0=("core", 4_000_000, 262_143_328_850),
        rapl_0_1=("dram", 1_000_000, 65_712_999_613),
        rapl_1=("psys", 9_000_000, 262_143_328_850),
    )
    source = Rapl(tmp_path / "powercap")
    assert source.covers == "package-0, dram"
    assert next(source.readings()) == [5_000_000, 1_000_000]


def test_a_counter_begins_anew(tmp_path: Path) -> None:
    write_zones(tmp_path, rapl_0=("package-0", 0, 10_000_000), rapl_0_0=("dram", 0, 6_000_000))
    source = Rapl(tmp_path / "powercap")
    assert source.joules([9_000_000, 1_000_000]) == 0.0  # the first has none before it
    assert source.joules([500_000, 2_000_000]) == 2.5
    assert source.joules([700_000, 1_000_000]) == 0.2 + 5.0


def test_counters_are_read_while_something_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_zones(tmp_path, rapl_0=("package-0", 0, 3_000_000))
    # 20 W, from a counter that begins anew several times meanwhile.
    monkeypatch.setattr(Rapl, "_read", lambda self: [round(20e6 * time.perf_counter()) % 3_000_001])
    meter = open_meter(is_asked=False)
    assert meter is not None
    with meter:
        energies = meter.samples_j([wait(0.4)])
        assert energies is not None
        assert energies[0] > 0
        assert (meter.facts.source, meter.facts.covers) == ("rapl", "package-0")


def test_counters_that_vanish_are_told(tmp_path: Path) -> None:
    write_zones(tmp_path, rapl_0=("package-0", 7, 3_000_000))
    with EnergyMeter(Rapl(tmp_path / "powercap")) as meter:
        (tmp_path / "powercap" / "intel-rapl:0" / "energy_uj").unlink()
        assert meter.samples_j([wait(0.2)]) is None
        assert meter.problem is not None
        assert meter.problem.startswith("RAPL's counters cannot be read any more")


@pytest.mark.parametrize(
    ("content", "says"),
    [("many", "cannot be read: invalid literal"), ("", "cannot be read: invalid literal")],
)
def test_counters_that_are_none_are_refused(tmp_path: Path, content: str, says: str) -> None:
    write_zones(tmp_path, rapl_0=("package-0", 0, 3_000_000))
    (tmp_path / "powercap" / "intel-rapl:0" / "energy_uj").write_text(content)
    with pytest.raises(PowerError, match=says):
        Rapl(tmp_path / "powercap")


def test_what_would_allow_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert open_meter(is_asked=False) is None
    with pytest.raises(OptionError) as caught:
        open_meter(is_asked=True)
    assert "there is no powermetrics; there is no" in str(caught.value)
    write_zones(tmp_path, rapl_0=("package-0", 0, 3_000_000))

    def refuse(_: Rapl) -> list[int]:
        raise PermissionError

    monkeypatch.setattr(Rapl, "_read", refuse)
    with pytest.raises(OptionError) as caught:
        open_meter(is_asked=True)
    assert "energy_uj cannot be read by you" in str(caught.value)
    assert "make the counters readable" in str(caught.value)
