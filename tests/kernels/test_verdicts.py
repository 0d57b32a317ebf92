import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_gemma4.kernels import verdicts as module
from mlx_gemma4.kernels.tuning import Timing
from mlx_gemma4.kernels.verdicts import Machine, Verdicts, cache_folder, verdict_files

MACHINE = Machine("Apple M9 Max", "27.1", "0.32.4", "0123456789abcdef")


@pytest.fixture
def written(tmp_path):
    """Return verdicts that are in a file."""
    verdicts = Verdicts(MACHINE, tmp_path / MACHINE.file_name)
    verdicts.checks = {"good": None, "bad": "bfloat16, small: off"}
    verdicts.timings = {"old": {}, "new": {"good": [Timing("decode", 2.0, 1.0)]}}
    verdicts.write()
    return verdicts


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_was_written_is_read(written, tmp_path):
    found, notes = Verdicts.read(MACHINE, tmp_path)
    assert found == written
    assert list(found.timings) == ["old", "new"]
    assert notes == []
    assert os.listdir(tmp_path) == [MACHINE.file_name]  # and no scratch file


def test_the_name_has_chip_system_version_and_sources():
    assert MACHINE.file_name == "kernels-Apple_M9_Max-27.1-0.32.4-0123456789ab.json"


@pytest.mark.parametrize("field", ["chip", "system", "mlx_version", "sources"])
def test_another_machine_starts_anew(written, tmp_path, field):
    other = replace(MACHINE, **{field: "other"})
    found, notes = Verdicts.read(other, tmp_path)
    assert found.checks == found.timings == {}
    assert notes == []
    assert found.path != written.path


@pytest.mark.parametrize(
    "change",
    [
        lambda d: "",
        lambda d: "{",
        lambda d: "[1]",
        lambda d: json.dumps({**d, "machine": {**d["machine"], "chip": "Apple M1"}}),
        lambda d: json.dumps({name: part for name, part in d.items() if name != "checks"}),
        lambda d: json.dumps({**d, "checks": ["good"]}),
        lambda d: json.dumps({**d, "timings": {"new": {"good": [{"label": "decode"}]}}}),
        lambda d: json.dumps({**d, "timings": {"new": {"good": [timing(plain_ms="fast")]}}}),
        lambda d: json.dumps({**d, "timings": {"new": {"good": [timing(kernel_ms=0)]}}}),
        lambda d: json.dumps({**d, "running": ["good"]}),
        lambda d: "\udc80",
    ],
)
def test_a_broken_or_foreign_file_is_ignored_with_a_note(written, tmp_path, change):
    text = change(json.loads(written.path.read_text()))
    written.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found, (note,) = Verdicts.read(MACHINE, tmp_path)
    assert found.checks == found.timings == {}
    assert str(written.path) in note
    assert "ignored" in note
    found.write()
    assert Verdicts.read(MACHINE, tmp_path) == (found, [])


def timing(**change):
    return {"label": "decode", "plain_ms": 1.0, "kernel_ms": 1.0, **change}


def test_a_failed_write_leaves_the_old_file(written, tmp_path, monkeypatch):
    before = written.path.read_text()
    written.checks["more"] = None

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        written.write()
    assert written.path.read_text() == before
    assert os.listdir(tmp_path) == [MACHINE.file_name]


def test_a_process_that_ended_while_trying_has_failed_the_kernel(written, tmp_path):
    written.running = ("good", dead_process())
    written.write()
    found, _ = Verdicts.read(MACHINE, tmp_path)
    assert "the process ended" in (found.checks["good"] or "")
    assert Verdicts.read(MACHINE, tmp_path)[0].running is None  # and that was written


def test_a_process_that_is_still_trying_has_not(written, tmp_path):
    written.running = ("good", os.getppid())
    written.write()
    found, _ = Verdicts.read(MACHINE, tmp_path)
    assert found.checks["good"] is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_trial_that_is_left_leaves_no_mark(written, tmp_path, error):
    def leave():
        with written.trying("good"):
            assert json.loads(written.path.read_text())["running"] == ["good", os.getpid()]
            raise error

    with pytest.raises(error):
        leave()
    assert json.loads(written.path.read_text())["running"] is None


def test_forgetting_keeps_other_models(written):
    written.timings["old"]["good"] = [Timing("decode", 3.0, 1.0)]
    written.forget(["good", "unknown"], "new")
    assert written.checks == {"bad": "bfloat16, small: off"}
    assert written.timings == {"old": {"good": [Timing("decode", 3.0, 1.0)]}, "new": {}}


def test_the_model_asked_for_last_is_last(written):
    written.timings_of("old")
    assert list(written.timings) == ["new", "old"]
    assert written.timings_of("third") == {}


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("darwin", {}, "home/Library/Caches/mlx-gemma4"),
        ("linux", {}, "home/.cache/mlx-gemma4"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/mlx-gemma4"),
        ("darwin", {"MLX_GEMMA4_CACHE": "/mine", "XDG_CACHE_HOME": "/xdg"}, "/mine"),
        ("linux", {"MLX_GEMMA4_CACHE": "~/mine"}, "home/mine"),
    ],
)
def test_cache_folder(monkeypatch, tmp_path, platform, environment, expected):
    for name in ("XDG_CACHE_HOME", "MLX_GEMMA4_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**environment, "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.sys, "platform", platform)
    assert cache_folder() == tmp_path / expected


def test_only_verdicts_are_listed(written, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    assert verdict_files(tmp_path) == [written.path]
    assert verdict_files(Path("/nowhere")) == []


@pytest.mark.parametrize(
    ("info", "chip"),
    [
        ({"device_name": "Apple M9", "architecture": "applegpu_g19s"}, "Apple M9"),
        ({"architecture": "applegpu_g19s"}, "applegpu_g19s"),
        ({}, "unknown chip"),
    ],
)
def test_the_machine_at_hand(monkeypatch, info, chip):
    monkeypatch.setattr(mx, "device_info", lambda _: info)
    monkeypatch.setattr(module.platform, "mac_ver", lambda: ("27.2", ("", "", ""), "arm64"))
    machine = Machine.at_hand("abc")
    assert (machine.chip, machine.system, machine.sources) == (chip, "27.2", "abc")
    assert machine.mlx_version == mx.__version__  # type: ignore[attr-defined]
