"""What macOS and Linux say, read; and the ceiling that follows."""

import getpass
import json
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bench_documents import MACHINE

from mlx_gemma4.bench import machine
from mlx_gemma4.bench.machine import (
    describe_machine,
    find_chip,
    measure_copy,
    measure_matmul,
    parse_gpu_cores,
    parse_low_power,
    parse_power,
    parse_thermal,
    read_mains,
    read_temperature,
)


@pytest.mark.parametrize(
    ("name", "cores", "bandwidth", "tflops"),
    [
        ("Apple M4 Max", 40, 546, 16.2),
        ("Apple M4 Max", 32, 410, 16.2 * 0.8),
        ("Apple M3 Max", 30, 300, 14.2 * 0.75),
        ("Apple M1 Max", 24, 400, 10.6 * 0.75),
        ("Apple M5 Max", 32, 460, 55.0 * 0.8),
        ("Apple M4 Pro", None, 273, 8.1),
    ],
)
def test_smaller_bins_have_less(name, cores, bandwidth, tflops) -> None:
    chip = find_chip(name, cores)
    assert chip is not None
    assert chip.bandwidth_gb_per_s == bandwidth
    assert chip.prompt_tflops == pytest.approx(tflops)


def test_the_ceiling_is_apples_figure_or_what_was_measured() -> None:
    assert MACHINE.ceiling.bandwidth_gb_per_s == 546
    for other in (replace(MACHINE, chip="Apple M9"), replace(MACHINE, device="cpu")):
        assert other.apple_chip is None
        assert other.ceiling.bandwidth_gb_per_s == MACHINE.copy_gb_per_s
        assert other.ceiling.prompt_tflops == MACHINE.matmul_tflops


def test_what_macos_says() -> None:
    displays = "    Apple M4 Max:\n      Type: GPU\n      Total Number of Cores: 32\n"
    assert parse_gpu_cores(displays) == 32
    assert parse_power("Now drawing from 'AC Power'\n -InternalBattery-0 100%") == "mains"
    assert parse_power("Now drawing from 'Battery Power'\n") == "battery"
    assert parse_low_power(" sleep 1\n lowpowermode         1\n") is True
    assert parse_low_power(" powermode            2\n") is False
    limited = "CPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 80\n"
    assert parse_thermal(limited) == "limited to 80 %"
    assert parse_thermal(limited.replace("80", "100")) == "no limit"
    assert parse_thermal("Note: No thermal warning level has been recorded\n") == "no warning"
    nothing = [parse(" ") for parse in (parse_gpu_cores, parse_power, parse_thermal)]
    assert nothing == [None, None, None]
    assert parse_low_power("") is None


def test_what_linux_says(tmp_path: Path) -> None:
    assert read_mains(tmp_path) is None
    assert read_temperature(tmp_path) is None
    files = {"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery"}
    files |= {
        "thermal_zone0/temp": "41000",
        "thermal_zone1/temp": "63500",
        "thermal_zone2/temp": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert read_mains(tmp_path) == "mains"
    (tmp_path / "AC/online").write_text("0\n")
    assert read_mains(tmp_path) == "battery"
    assert read_temperature(tmp_path) == "64 C"


def test_speeds_count_bytes_and_operations(monkeypatch) -> None:
    monkeypatch.setattr(machine, "_fastest", lambda function: (function(), 0.5)[1])
    monkeypatch.setattr(machine, "_COPY_BYTES", 1 << 20)
    assert measure_copy("cpu", 2) == 2 * (1 << 20) / 0.5
    assert measure_matmul("cpu") == 2 * 1024**3 / 0.5


def test_this_machine_is_described_without_names(monkeypatch) -> None:
    monkeypatch.setattr(machine, "_COPY_BYTES", 8 << 20)
    monkeypatch.setattr(machine, "_ATTEMPTS", 1)
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/some where/libopenblas.so.0:/lib/other.so")
    here = describe_machine()
    assert here.blas == "libopenblas.so.0"
    assert here.ceiling.bandwidth > 1e8
    assert here.ceiling.prompt_tflops > 1e-4
    text = json.dumps(asdict(here))
    for secret in (socket.gethostname(), str(Path.home()), "/usr/lib"):
        assert secret not in text
    assert f'"{getpass.getuser()}"' not in text
