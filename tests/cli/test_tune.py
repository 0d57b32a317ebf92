"""`mlx-gemma4 tune`: what it runs, shows, forgets, and refuses."""

import json

import mlx.core as mx
import pytest
from fake_kernels import fake_gpu, fake_kernel

from mlx_gemma4.cli import main
from mlx_gemma4.kernels import trial


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Return the folder of verdicts on a machine with one fast kernel and one wrong."""
    monkeypatch.setattr(trial, "_THOROUGH_SAMPLES", 3)
    monkeypatch.delenv("MLX_GEMMA4_MODEL", raising=False)
    kernels = fake_kernel("fast", plain_s=0.003), fake_kernel("wrong", kernel=lambda x: x)
    fake_gpu(monkeypatch, tmp_path, *kernels)
    return tmp_path


@pytest.mark.parametrize("arguments", [["--model", "demo"], ["--show"], ["--reset"]])
def test_without_a_gpu_it_says_so(monkeypatch, capsys, arguments):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert main(["tune", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: no Metal device: there is nothing to tune; ")
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_tunes_on_the_shapes_of_a_model(gpu, capsys):
    assert main(["tune", "--model", "demo"]) == 0
    shown = capsys.readouterr()
    assert "case 0:" in shown.out
    assert "hidden size 192 in " in shown.out
    assert "note: kernel wrong is off, plain MLX runs instead" in shown.err
    (path,) = gpu.iterdir()
    (key,) = json.loads(path.read_text())["timings"]
    assert "-192-640-2-1-256-1-512-128-128" in key


def test_a_dtype_may_be_chosen(gpu, capsys):
    assert main(["tune", "--model", "demo", "--dtype", "float16", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sizes"].startswith("float16-192-")
    assert document["kernels"]["fast"]["state"] == "on"
    assert document["kernels"]["wrong"]["state"] == "off"


def test_show_runs_nothing(gpu, capsys):
    assert main(["tune", "--show"]) == 0
    assert main(["tune", "--show", "--model", "demo"]) == 0
    assert "not checked on this machine yet" in capsys.readouterr().out
    assert list(gpu.iterdir()) == []


def test_show_tells_models_apart(gpu, capsys):
    assert main(["tune", "--model", "demo", "--dtype", "float16"]) == 0
    capsys.readouterr()
    assert main(["tune", "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"]["fast"]["gain"] > 1
    assert main(["tune", "--show", "--json", "--model", "demo", "--dtype", "bfloat16"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"]["fast"]["gain"] is None


def test_reset_forgets_everything_of_ours_and_nothing_else(gpu, capsys):
    assert main(["tune", "--model", "demo"]) == 0
    (gpu / "kernels-Apple_M1-26.0-0.30.0-0123456789ab.json").write_text("{}")
    (gpu / "other.json").write_text("{}")
    capsys.readouterr()
    assert main(["tune", "--reset"]) == 0
    assert capsys.readouterr().out == f"2 files of verdicts removed from {gpu}\n"
    assert [path.name for path in gpu.iterdir()] == ["other.json"]
    assert main(["tune", "--reset", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": []}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no model was named"),
        (["--show", "--reset"], "--show and --reset exclude each other"),
        (["--model", "demo", "--dtype", "int4"], "--dtype is 'int4'; allowed are"),
    ],
)
def test_mistakes_are_told(gpu, capsys, arguments, says):
    assert main(["tune", *arguments]) == 2
    assert says in capsys.readouterr().err
