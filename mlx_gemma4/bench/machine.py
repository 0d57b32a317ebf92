"""The machine at hand, as far as speeds depend on it: no names of hosts or users, no paths.

What cannot be read is None, never a guess.  The ceiling is Apple's figure where the chip is in
`chips.py` and the GPU computes; elsewhere it is what this machine was measured to do.
"""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np

from mlx_gemma4 import __version__
from mlx_gemma4.bench.chips import CHIPS, Chip

# Chips whose smaller bin has less bandwidth, in GB/s; the others differ in cores alone.
_SMALLER_BANDWIDTH = {"M3 Max": 300.0, "M4 Max": 410.0, "M5 Max": 460.0}

_COPY_BYTES = 256 << 20  # far more than any cache holds
_MATRIX_ROWS = {"gpu": 4096, "cpu": 1024}
_ATTEMPTS = 5  # the fastest counts: a ceiling, not an average
_COMMAND_TIMEOUT_S = 20
_POWER_SUPPLIES = Path("/sys/class/power_supply")
_THERMAL_ZONES = Path("/sys/class/thermal")


@dataclass(frozen=True)
class State:
    """What changes from one hour to the next.

    Attributes:
        power: Where the current comes from.
        is_low_power: Whether the system saves energy.
        thermal: What it says of its temperature.
        load_average: Processes that wanted to run, in the last minute.
    """

    power: Literal["mains", "battery"] | None
    is_low_power: bool | None
    thermal: str | None
    load_average: float


@dataclass(frozen=True)
class Machine:
    """What a speed means nothing without.

    Attributes:
        chip: "Apple M4 Max", or the processor's name.
        device: Where MLX computes.
        gpu_cores: Of an Apple chip.
        cpu_cores: That this process may use.
        memory_bytes: Of the whole machine.
        system: Name and version.
        versions: Of Python and of the libraries that compute.
        blas: The library that was preloaded for products on the CPU.
        copy_gb_per_s: Measured; reading and writing count, in 10^9 bytes.
        matmul_tflops: Measured, of a product of two matrices, in 10^12 operations a second.
        state: At the start.
    """

    chip: str
    device: Literal["gpu", "cpu"]
    gpu_cores: int | None
    cpu_cores: int
    memory_bytes: int
    system: str
    versions: dict[str, str]
    blas: str | None
    copy_gb_per_s: float
    matmul_tflops: float
    state: State

    @property
    def apple_chip(self) -> Chip | None:
        """The chip as Apple describes it; None where that is no measure of what runs."""
        return find_chip(self.chip, self.gpu_cores) if self.device == "gpu" else None

    @property
    def ceiling(self) -> Chip:
        """What limits a program here."""
        measured = Chip(self.chip, self.copy_gb_per_s, self.cpu_cores, self.matmul_tflops)
        return self.apple_chip or measured


def describe_machine() -> Machine:
    """Return this machine; takes some seconds, since it is measured too."""
    is_mac = sys.platform == "darwin"
    device = "gpu" if mx.default_device().type == mx.gpu else "cpu"
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cpu_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    preloaded = [Path(word).name for word in re.split(r"[ :]+", os.environ.get("LD_PRELOAD", ""))]
    return Machine(
        chip=_chip_name(is_mac),
        device=device,
        gpu_cores=parse_gpu_cores(_run("system_profiler", "SPDisplaysDataType")),
        cpu_cores=cpu_cores,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=_system_name(is_mac),
        versions={
            "python": platform.python_version(),
            "mlx-gemma4": __version__,
            "mlx": getattr(mx, "__version__", "unknown"),
            "numpy": np.__version__,
        },
        blas=next((name for name in preloaded if "blas" in name.lower()), None),
        copy_gb_per_s=measure_copy(device, cpu_cores) / 1e9,
        matmul_tflops=measure_matmul(device) / 1e12,
        state=read_state(),
    )


def find_chip(name: str, gpu_cores: int | None) -> Chip | None:
    """Return an Apple chip with so many cores; None if it is not in the table.

    Args:
        name: As macOS has it, "Apple M4 Max".
        gpu_cores: None is the largest bin.
    """
    largest = next((chip for chip in CHIPS if name == f"Apple {chip.name}"), None)
    if largest is None or gpu_cores is None or gpu_cores >= largest.cores:
        return largest
    share = gpu_cores / largest.cores
    bandwidth = _SMALLER_BANDWIDTH.get(largest.name, largest.bandwidth_gb_per_s)
    matrix = largest.matrix_tflops and share * largest.matrix_tflops
    return replace(
        largest,
        bandwidth_gb_per_s=bandwidth,
        cores=gpu_cores,
        vector_tflops=share * largest.vector_tflops,
        matrix_tflops=matrix,
    )


def measure_copy(device: str, threads: int) -> float:
    """Return the bytes a second that copying moves, those read and those written."""
    if device == "gpu":
        source = mx.random.uniform(shape=(_COPY_BYTES // 4,))
        mx.eval(source)
        return 2 * _COPY_BYTES / _fastest(lambda: mx.eval(source + 1))
    # MLX copies with one thread on the CPU, but others may use them all.
    parts = [np.ones(_COPY_BYTES // 4 // threads, np.float32) for _ in range(threads)]
    targets = [np.empty_like(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(lambda: list(pool.map(np.copyto, targets, parts)))
    return 2 * sum(part.nbytes for part in parts) / seconds


def measure_matmul(device: str) -> float:
    """Return the operations a second of a product of two matrices.

    On the GPU in bfloat16; on the CPU in float32 by NumPy, whose BLAS is a good one everywhere.
    """
    rows = _MATRIX_ROWS[device]
    if device == "gpu":
        matrix = mx.random.uniform(shape=(rows, rows)).astype(mx.bfloat16)
        mx.eval(matrix)
        return 2 * rows**3 / _fastest(lambda: mx.eval(matrix @ matrix))
    values = np.random.default_rng(0).random((rows, rows), np.float32)
    return 2 * rows**3 / _fastest(lambda: values @ values)


def read_state() -> State:
    """Return what changes from one hour to the next."""
    load_average = os.getloadavg()[0]
    if sys.platform == "darwin":
        return State(
            parse_power(_run("pmset", "-g", "batt")),
            parse_low_power(_run("pmset", "-g")),
            parse_thermal(_run("pmset", "-g", "therm")),
            load_average,
        )
    power = read_mains(_POWER_SUPPLIES)
    return State(power, None, read_temperature(_THERMAL_ZONES), load_average)


def parse_gpu_cores(text: str) -> int | None:
    """Return the cores of the GPU from what `system_profiler SPDisplaysDataType` says."""
    found = re.search(r"Total Number of Cores: (\d+)", text)
    return int(found.group(1)) if found else None


def parse_power(text: str) -> Literal["mains", "battery"] | None:
    """Return where the current comes from, by `pmset -g batt`."""
    found = re.search(r"drawing from '(AC|Battery) Power'", text)
    if not found:
        return None
    return "mains" if found.group(1) == "AC" else "battery"


def parse_low_power(text: str) -> bool | None:
    """Return whether the low power mode is on, by `pmset -g`."""
    found = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)", text, re.MULTILINE)
    return found.group(1) == "1" if found else None


def parse_thermal(text: str) -> str | None:
    """Return in a few words what `pmset -g therm` says of the temperature."""
    if limit := re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text):
        return "no limit" if limit.group(1) == "100" else f"limited to {limit.group(1)} %"
    if re.search(r"No thermal warning level has been recorded", text):
        return "no warning"
    if level := re.search(r"[Tt]hermal warning level\D*(\d+)", text):
        return f"warning level {level.group(1)}"
    return None


def read_mains(folder: Path) -> Literal["mains", "battery"] | None:
    """Return where the current comes from, by Linux's list of supplies; None without one."""
    supplies = {path: _read(path / "type") for path in sorted(folder.glob("*"))}
    if any(kind == "Mains" and _read(path / "online") == "1" for path, kind in supplies.items()):
        return "mains"
    return "battery" if "Battery" in supplies.values() else None


def read_temperature(folder: Path) -> str | None:
    """Return the highest temperature that Linux knows of; None if it knows none."""
    readings = [_read(path) for path in folder.glob("thermal_zone*/temp")]
    degrees = [int(text) / 1000 for text in readings if re.fullmatch(r"\d+", text)]
    return f"{max(degrees):.0f} C" if degrees else None


def _chip_name(is_mac: bool) -> str:
    if is_mac:
        return _run("sysctl", "-n", "machdep.cpu.brand_string").strip() or "unknown chip"
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _system_name(is_mac: bool) -> str:
    if is_mac:
        return f"macOS {platform.mac_ver()[0]}"
    # A kernel's own name may be anything; its numbers are enough.
    found = re.match(r"\d+(\.\d+)*", platform.release())
    return f"{platform.system()} {found.group(0) if found else ''}".strip()


def _fastest(function: Callable[[], object]) -> float:
    function()  # allocates
    seconds = []
    for _ in range(_ATTEMPTS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _run(*command: str) -> str:
    """Return what a command of macOS prints; nothing where it is not there or fails."""
    if sys.platform != "darwin":
        return ""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
