"""`mlx-gemma4 kernels` and `mlx-gemma4 tune`: what they print, and their exit codes."""

import json

import mlx.core as mx
import pytest
from fake_kernels import CHIP, SIZES, fake_gpu, fake_kernel

from mlx_gemma4.cli import main
from mlx_gemma4.kernels import registry


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Return the folder of verdicts on a machine with one fast kernel, one slow, one wrong."""
    kernels = (
        fake_kernel("fast", plain_s=0.003),
        fake_kernel("slow", kernel_s=0.003),
        fake_kernel("wrong", kernel=lambda x: x),
    )
    fake_gpu(monkeypatch, tmp_path, *kernels)
    return tmp_path


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_one_line_says_so(capsys):
    assert main(["kernels"]) == 0
    shown = capsys.readouterr()
    count = len(registry.KERNELS)
    assert shown.out == f"no Metal device: all {count} kernels are off, and plain MLX runs\n"
    assert shown.err == ""


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_json_has_every_kernel(capsys):
    assert main(["kernels", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"] is document["file"] is None
    assert document["kernels"].keys() == registry.KERNELS.keys()
    for kernel in document["kernels"].values():
        assert kernel == {"state": "off", "reason": "no Metal device", "gain": None, "timings": []}


def test_nothing_is_known_before_the_first_start(gpu, capsys):
    assert main(["kernels"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not checked on this machine yet") == 3
    assert CHIP in shown
    assert list(gpu.iterdir()) == []


def test_a_table_has_state_gain_and_reason(gpu, capsys):
    registry.prepare(SIZES)
    assert main(["kernels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1:4]}
    assert lines[0].split() == ["kernel", "state", "gain", "reason"]
    assert rows["fast"][1] == "on"
    assert float(rows["fast"][2].removesuffix("x")) > 2
    assert rows["slow"][1] == "off"
    assert float(rows["slow"][2].removesuffix("x")) < 0.5
    assert rows["wrong"][:3] == ["wrong", "off", "failed"]
    assert "hidden size 256 in bfloat16" in lines[-1]


def test_json_has_the_timings(gpu, capsys):
    registry.prepare(SIZES)
    assert main(["kernels", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["chip"] == CHIP
    assert document["sizes"] == SIZES.key
    fast = document["kernels"]["fast"]
    (timing,) = fast["timings"]
    assert fast["state"] == "on"
    assert fast["gain"] == pytest.approx(timing["plain_ms"] / timing["kernel_ms"])


def test_a_wrong_variable_is_an_error(gpu, monkeypatch, capsys):
    monkeypatch.setenv("MLX_GEMMA4_KERNELS", "fast,quick")
    assert main(["kernels"]) == 2
    assert "MLX_GEMMA4_KERNELS names 'quick'; allowed are 0" in capsys.readouterr().err


def test_stale_verdicts_are_noted(gpu, capsys):
    (gpu / "kernels-Apple_M1-26.0-0.30.0-0123456789ab.json").write_text("{}")
    assert main(["kernels"]) == 0
    assert "note: ignored, being of another chip" in capsys.readouterr().err
