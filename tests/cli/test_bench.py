"""`mlx-gemma4 bench`: what it prints and writes, and what it refuses."""

import json
import shutil
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import mlx.core as mx
import pytest
from bench_documents import MACHINE, POWER, ROWS, make_document

from mlx_gemma4 import hub
from mlx_gemma4.bench import machine, power, starts
from mlx_gemma4.bench.machine import State
from mlx_gemma4.bench.measure import Bench
from mlx_gemma4.bench.power_sources import Rapl
from mlx_gemma4.bench.report import Row, read_document
from mlx_gemma4.cli import main, options
from mlx_gemma4.convert import conversion
from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.kernels import registry

SHORT = ["--prompt", "24", "--depth", "24", "--tokens", "2", "--rounds", "1"]
QUALITY = {
    "prompts": 3,
    "kinds": {"all": {"mean_kl": 0.25, "top1_agreement": 0.5, "perplexity": 7.0}},
}


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch, tmp_path):
    """Have this machine described without measuring it, and no processes started."""
    monkeypatch.setattr(power, "_RAPL_FOLDER", tmp_path / "powercap")
    here = replace(MACHINE, chip="a processor", device="cpu", state=State(None, None, None, 0.1))
    monkeypatch.setattr(machine, "describe_machine", lambda: here)
    monkeypatch.setattr(starts, "measure_starts", lambda *_: iter([ROWS[0]]))
    monkeypatch.delenv("MLX_GEMMA4_MODEL", raising=False)


@pytest.fixture
def documents(tmp_path):
    """Return the paths of two files that differ in bits alone."""
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, bits in zip(paths, (16.0, 4.5), strict=True):
        path.write_text(make_document(model={"bits_per_weight": bits}).to_json())
    return [str(path) for path in paths]


def test_a_table_and_a_file(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert main(["bench", "--model", "demo", *SHORT, "--image", "--json", str(path)]) == 0
    shown = capsys.readouterr()
    for text in ("prefill 24", "decode 2 after 24", "picture, embedded", "of bandwidth", "planned"):
        assert text in shown.out
    assert "16.00 bits per weight, float32 activations" in shown.out
    assert "note: ceilings are what this machine was measured to do" in shown.err
    document = read_document(path)
    assert document.quality is None
    assert {row.measure for row in document.rows} >= {"load", "prefill", "decode", "picture"}
    text = path.read_text()
    for secret in (socket.gethostname(), str(Path.home()), str(tmp_path), "demo"):
        assert secret not in text


KV_BITS = get_args(get_args(options.FixedKVBits)[0])


@pytest.mark.parametrize("kv_bits", KV_BITS)
@pytest.mark.parametrize("kv_rows", ["shared", "value"])
def test_every_cache_is_measured(tmp_path, capsys, kv_bits, kv_rows):
    path = tmp_path / "out.json"
    line = ["bench", "--model", "demo", *SHORT, "--json", str(path)]
    assert main([*line, "--kv-bits", kv_bits, "--kv-rows", kv_rows]) == 0
    model = read_document(path).model
    assert (model.kv_bits, model.kv_rows) == (int(kv_bits), kv_rows)
    shown = capsys.readouterr().out
    assert ("8-bit cache" in shown) == (kv_bits == "8")
    assert ("values alone" in shown) == (kv_rows == "value")


@pytest.fixture
def counters(monkeypatch, tmp_path):
    """Have counters that say 20 W, and no idle time."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "262143328850")):
        (zone / name).write_text(text)
    monkeypatch.setattr(Rapl, "_read", lambda self: [round(20e6 * time.perf_counter())])
    monkeypatch.setattr(Rapl, "interval_s", 0.005)
    monkeypatch.setattr(power, "_IDLE_S", 0.0)


def test_energy_stands_beside_speed(counters, tmp_path, capsys):
    path = tmp_path / "out.json"
    line = ["bench", "--model", "demo", "--prompt", "200", "--depth", "600", "--tokens", "8"]
    assert main([*line, "--rounds", "2", "--power", "--json", str(path)]) == 0
    shown = capsys.readouterr()
    assert "energy by rapl: package-0; 20 W at rest, which are part of it" in shown.out
    document = read_document(path)
    assert document.power is not None
    assert document.power.idle_w == pytest.approx(20, rel=0.2)
    rows = {row.label: row for row in document.rows}
    for label in (
        "prefill 600",
        "prefill 600, chunks of 128",
        "prefill 600, chunks of 512",
        "request 32 after 200, quoting",
        "request 32 after 200, quoting, lookup",
    ):
        assert rows[label].power_w == pytest.approx(20, rel=0.2), label
        assert f"{rows[label].unit_j:.3g} J/token" in shown.out
    assert not any("energy is missing" in note for note in document.notes)
    text = path.read_text()
    for secret in (socket.gethostname(), str(Path.home()), str(tmp_path), "demo"):
        assert secret not in text


def test_energy_is_taken_along_and_its_lack_is_said(counters, monkeypatch, tmp_path, capsys):
    path = tmp_path / "out.json"
    line = ["bench", "--model", "demo", "--prompt", "600", "--depth", "600", "--tokens", "2"]
    assert main([*line, "--rounds", "1", "--json", str(path)]) == 0
    rows = {row.label: row for row in read_document(path).rows}
    assert rows["prefill 600"].samples_j is not None
    assert not any("quoting" in label for label in rows)
    monkeypatch.setattr(Rapl, "interval_s", 0.5)
    assert main([*line, "--rounds", "1", "--json", str(path)]) == 0
    document = read_document(path)
    assert {row.samples_j for row in document.rows} == {None}
    assert any(note.startswith("no energy where a sample takes") for note in document.notes)
    assert "less than 2.5 s" in capsys.readouterr().err


def test_counters_that_stop_cost_no_row(counters, monkeypatch, tmp_path, capsys):
    rows = Bench.rows

    def stop(_):
        raise OSError("ada has taken it")

    def stopping(self):
        yield next(rows(self))
        monkeypatch.setattr(Rapl, "_read", stop)
        time.sleep(0.05)
        yield from rows(self)

    monkeypatch.setattr(Bench, "rows", stopping)
    path = tmp_path / "out.json"
    line = ["bench", "--model", "demo", "--prompt", "600", "--depth", "600", "--tokens", "2"]
    assert main([*line, "--rounds", "1", "--power", "--json", str(path)]) == 0
    document = read_document(path)
    assert {row.samples_j for row in document.rows if row.measure == "prefill"} == {None}
    assert "energy is missing in some rows: rapl stopped telling it" in document.notes
    assert "ada has taken it" in capsys.readouterr().err
    assert "ada" not in path.read_text()


def test_power_is_refused_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["bench", "--model", "demo", *SHORT, "--power"]) == 2
    shown = capsys.readouterr()
    assert "--power: no energy can be read here (there is no powermetrics; there is no" in shown.err
    assert "on Linux run it as root" in shown.err
    assert shown.out == ""


def test_a_conversion_is_measured_and_removed(monkeypatch, tmp_path, capsys):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    recipe = tmp_path / "secret.toml"
    recipe.write_text((Path("convert/recipes") / "q8.toml").read_text())
    before = sorted(find_checkpoint("demo").iterdir())
    for name, case in (("q4", "q4"), (str(recipe), "custom")):
        path = tmp_path / "out.json"
        line = ["bench", "--model", "demo", *SHORT, "--conversion", name, "--json", str(path)]
        assert main(line) == 0
        row = read_document(path).rows[0]
        assert (row.label, row.unit, len(row.samples_s)) == (f"conversion, {case}", "GB", 1)
        weights = find_checkpoint("demo") / "model.safetensors"
        assert row.amount == pytest.approx(weights.stat().st_size / 1e9, rel=0.01)
        assert "secret" not in path.read_text()
        assert list(temporary.iterdir()) == []
    assert sorted(find_checkpoint("demo").iterdir()) == before
    assert "GB/s" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError("disk full"), 1)])
def test_a_conversion_that_breaks_leaves_nothing(monkeypatch, tmp_path, error, code):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[Path] = []

    def broken(source, recipe, target):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        made.append(target)
        raise error

    monkeypatch.setattr(conversion, "convert", broken)
    assert main(["bench", "--model", "demo", *SHORT, "--conversion", "q4"]) == code
    assert made
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_without_room_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(hub, "free_bytes", lambda _: 1 << 20)
    assert main(["bench", "--model", "demo", *SHORT, "--conversion", "q4"]) == 2
    shown = capsys.readouterr().err
    assert "--conversion q4 writes" in shown
    assert "1.0 MB are free; make room, set TMPDIR" in shown


def test_compare_shows_energy(tmp_path, capsys):
    for name, joules in (("a.json", 32.0), ("b.json", 16.0)):
        row = replace(ROWS[2], samples_j=(joules,) * 3)
        document = make_document(rows=(*ROWS[:2], row), power=POWER)
        (tmp_path / name).write_text(document.to_json())
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert main(["bench", "compare", *files]) == 0
    shown = capsys.readouterr().out
    assert "energy before" in shown
    assert "0.5 J/token  0.25 J/token   0.50x" in shown
    assert main(["bench", "compare", *files, "--json"]) == 0
    *others, last = json.loads(capsys.readouterr().out)["rows"]
    assert (last["first_j"], last["second_j"], last["energy_ratio"]) == (0.5, 0.25, 0.5)
    assert {row["energy_ratio"] for row in others} == {None}


def test_json_may_go_to_stdout(capsys):
    assert main(["bench", "--model", "demo", *SHORT, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["what"] == "mlx-gemma4 bench"


def test_quality_stands_beside_speed(tmp_path, capsys):
    source = open_source(find_checkpoint("demo"), "demo")
    folder = tmp_path / "q4"
    convert(source, read_recipe("q4"), folder, evaluate=lambda _: QUALITY)
    path = tmp_path / "out.json"
    assert main(["bench", "--model", str(folder), *SHORT, "--json", str(path)]) == 0
    assert "quality of q4: mean KL 0.25000, same top token 50.00 %" in capsys.readouterr().out
    document = read_document(path)
    assert document.quality is not None
    assert (document.quality.mean_kl, document.quality.reference_perplexity) == (0.25, None)
    assert document.model.recipe == "q4"
    assert 4.5 < document.model.bits_per_weight < 8
    assert str(tmp_path) not in path.read_text()
    (folder / "quality.json").write_text('{"prompts": 3}')
    assert main(["bench", "--model", str(folder), *SHORT]) == 2
    assert "quality.json is damaged" in capsys.readouterr().err


def test_a_report_has_every_kernel(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    path = tmp_path / "report.json"
    assert main(["bench", "--model", "demo", *SHORT, "--report", str(path)]) == 0
    findings = read_document(path).kernels
    assert [finding.name for finding in findings] == sorted(registry.KERNELS)
    assert "kernel sliding_decode: off, no Metal device" in capsys.readouterr().out


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch, tmp_path, capsys):
    rows = Bench.rows

    def interrupted(self):
        yield next(rows(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "rows", interrupted)
    path = tmp_path / "out.json"
    assert main(["bench", "--model", "demo", *SHORT, "--json", str(path)]) == 130
    document = read_document(path)
    assert [row.label for row in document.rows] == ["load", "load", "first token, warm"]
    assert document.notes[0].startswith("interrupted")
    assert "interrupted" in capsys.readouterr().err


def test_a_busy_machine_is_said(monkeypatch, capsys):
    here = replace(MACHINE, device="cpu", cpu_cores=2, state=State("battery", True, None, 3.0))
    monkeypatch.setattr(machine, "describe_machine", lambda: here)
    assert main(["bench", "--model", "demo", *SHORT]) == 0
    notes = capsys.readouterr().err
    assert "the machine was busy (load average 3.0 on 2 cores)" in notes
    assert "on battery, or saving energy" in notes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no model was named"),
        (["--model", "demo", "--prompt", "512,many"], "--prompt is 'many'; allowed is"),
        (["--model", "demo", "--depth", ""], "--depth is ''; allowed is"),
        (["--model", "demo", "--rounds", "0"], "--rounds is '0'; allowed is"),
        (["--model", "demo", "--json", "no/out.json"], "--json is no/out.json, but there is no"),
        (["--model", "demo", "--conversion", "q5"], "q5"),
        (["--model", "demo", "--kv-bits", "4"], "--kv-bits is '4'; allowed"),
        (["--model", "demo", "--report", "/"], "--report is /, a folder"),
        (["compare", "no.json", "no.json"], "cannot read no.json"),
        (["plot", "no.json", "--output", "a.gif"], "--output is a.gif; allowed endings"),
    ],
)
def test_mistakes_are_told(monkeypatch, tmp_path, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.out == ""


def test_media_without_a_front_end_are_refused(tmp_path, capsys):
    folder = shutil.copytree(find_checkpoint("demo"), tmp_path / "text")
    config = json.loads((folder / "config.json").read_text()) | {"vision_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["bench", "--model", str(folder), *SHORT, "--image"]) == 2
    assert "--image: this checkpoint has no front end" in capsys.readouterr().err


def test_compare_refuses_other_bits(documents, capsys):
    assert main(["bench", "compare", *documents]) == 2
    shown = capsys.readouterr()
    assert "these are not to be compared: bits per weight 16.00 and 4.50" in shown.err
    assert shown.out == ""


def test_compare_shows_each_row_when_told(documents, capsys):
    assert main(["bench", "compare", *documents, "--anyway"]) == 0
    shown = capsys.readouterr()
    assert "decode 64 after 2,048" in shown.out
    assert "within noise" in shown.out
    assert "note: not the same: bits per weight 16.00 and 4.50" in shown.err
    assert main(["bench", "compare", *documents, "--anyway", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["speedup"] for row in rows] == [1.0] * len(ROWS)


def test_compare_shows_what_is_faster(tmp_path, capsys):
    faster = tuple(
        Row(**{**vars(row), "samples_s": tuple(s / 2 for s in row.samples_s)}) for row in ROWS
    )
    for name, rows in (("a.json", ROWS), ("b.json", faster)):
        (tmp_path / name).write_text(make_document(rows=rows).to_json())
    assert main(["bench", "compare", *(str(tmp_path / name) for name in ("a.json", "b.json"))]) == 0
    shown = capsys.readouterr().out
    assert shown.count("2.00x  faster") == 3


def test_plots_of_files_and_of_media(documents, repository, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    assert main(["bench", "plot", *documents, "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    picture = str(repository / "tests" / "data" / "shapes.png")
    sound = str(repository / "mlx_gemma4" / "demo" / "samples" / "keys.wav")
    media = ["--image", picture, "--audio", sound, "--plot", str(tmp_path / "b.svg")]
    assert main(["inspect", "--model", "demo", *media]) == 0
    drawn = (tmp_path / "b.svg").read_text()
    assert "<!-- shapes.png: 9 x 7 patches -->" in drawn
    assert "keys.wav: 15 frames of 40 ms" in drawn


def test_a_plot_of_nothing_is_refused(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    line = ["inspect", "--model", "demo", "hi", "--plot", str(tmp_path / "a.png")]
    assert main(line) == 2
    assert "there is nothing to plot" in capsys.readouterr().err
