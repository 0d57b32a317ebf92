"""The page of results says what its files say; the set that makes them makes what it names."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from bench_documents import make_document
from bench_set import FORMS, Form, make_form, widen_scales
from results_table import RESULTS, show_figure, write_page

from mlx_gemma4.config import Config
from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.weights import open_checkpoint


def test_the_page_is_what_the_files_say() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert page == write_page(RESULTS), "run: make results"


def test_a_changed_figure_changes_the_page(tmp_path: Path) -> None:
    documents = (json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/*.json")))
    document = next(document for document in documents if "help" in document.get("cases", {}))
    target = tmp_path / "chip" / "a.json"
    target.parent.mkdir()
    target.write_text(json.dumps(document))
    before = write_page(tmp_path)
    document["cases"]["help"]["programs"]["mlx-gemma4"]["wall_s"]["median"] = 123.0
    target.write_text(json.dumps(document))
    assert "| 123 |" in write_page(tmp_path)
    assert "| 123 |" not in before


def test_who_died_at_the_limit_is_said_in_the_row(tmp_path: Path) -> None:
    source = next(path for path in sorted(RESULTS.glob("*/*.json")) if "peers" in path.read_text())
    document = json.loads(source.read_text())
    figure = {"temporary_bytes": {"median": 3.67e8}, "cache_bytes_per_token": {"median": 1234.5}}
    case = {"programs": {"mlx-gemma4": figure, "mlx-lm": {}}, "ratios": {}}
    limit = {"limit_bytes": 16_000_000_000, "limits_reached": ["mlx-lm"]}
    errors = {"mlx-lm": "died at 16 GB: SIGSEGV"}
    document["cases"] = {"memory at 131,072": {**case, **limit, "errors": errors}}
    document["command"] = "benchmarks/peers.py build/heads"
    (tmp_path / "chip").mkdir()
    (tmp_path / "chip" / "a.json").write_text(json.dumps(document))
    page = write_page(tmp_path)
    assert "| memory at 131,072: temporary, MB | 367 | died at 16 GB |" in page
    assert "| memory at 131,072: cache, bytes a token | 1,234 | died at 16 GB |" in page
    assert "* memory at 131,072, mlx-lm: died at 16 GB: SIGSEGV" in page
    assert "; `benchmarks/peers.py build/heads`." in page


def test_plans_stand_beside_what_was_measured(tmp_path: Path) -> None:
    row = {"bits": 4, "tokens": 3072, "step": 1024, "picture": 280, "is_one_chunk": False}
    sizes = {"planned_bytes": 400_000_000, "measured_bytes": 300_000_000}
    far, near = (
        {"model": "mid", **row, **sizes},
        {"model": "heads", **row, **sizes, "bits": None, "picture": 0, "measured_bytes": 4e8},
    )
    peers = next(path for path in sorted(RESULTS.glob("*/*.json")) if "peers" in path.read_text())
    machine = json.loads(peers.read_text())["machine"]
    document = {"what": "memory", "commit": "abc1234", "command": "bench_memory.py", "rows": []}
    document |= {"machine": machine, "versions": {"mlx-gemma4": "0.1.0", "mlx": "0.32.4"}}
    document |= {"date": "2026-11-24T00:00:00+00:00", "rows": [far, near]}
    (tmp_path / "chip").mkdir()
    (tmp_path / "chip" / "a.json").write_text(json.dumps(document))
    page = write_page(tmp_path)
    assert (
        "| mid, 4 bits | 3,072, 2 pictures of 280 | 1,024 | in full | 400 MB | 300 MB | 0.750 |"
        in page
    )
    assert "| heads | 3,072 | 1,024 | in full | 400 MB | 400 MB | 1.000 |" in page
    assert "1 of 2 within 5 % or 50 MB." in page


def test_a_document_of_bench_has_its_rows(tmp_path: Path) -> None:
    (tmp_path / "chip").mkdir()
    text = make_document(notes=("left out",)).to_json()
    (tmp_path / "chip" / "a.json").write_text(text)
    page = write_page(tmp_path)
    assert "## chip/a.json" in page
    assert "| decode 64 after 2,048 | 63.4 tokens/s | 2 % | 79 % | 10 % | | |" in page
    assert "quality of q4: mean KL 0.01000" in page
    assert "* left out" in page


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        ({"median": 2.0, "is_noisy": True}, "2~ (4.00, 3.00 to 5.00)"),
        ({"median": 2.0}, "2 (4.00, 3.00 to 5.00)"),
        (None, ""),
    ],
)
def test_a_figure_with_mark_and_ratio(figure: dict | None, shown: str) -> None:
    case = {
        "programs": {"peer": {"wall_s": figure} if figure else {}},
        "ratios": {"peer": {"wall_s": 4.0}},
        "ratio_ranges": {"peer": {"wall_s": [3.0, 5.0]}},
    }
    assert show_figure(case, "peer", "wall_s", 1.0) == shown


def test_wide_scales_are_the_same_model(tmp_path: Path) -> None:
    source = open_source(find_checkpoint("demo"), "demo")
    convert(source, read_recipe("q4"), tmp_path / "q4")
    widen_scales(tmp_path, tmp_path / "q4-float32")
    narrow, wide = (
        open_checkpoint(tmp_path / name, Config.from_folder(tmp_path / name))
        for name in ("q4", "q4-float32")
    )
    assert wide.quantization == narrow.quantization
    dtypes = {tensor.dtype for tensor in wide.tensors.values()}
    assert dtypes == {"U32", "F32"}
    before: Any = mx.load(str(tmp_path / "q4" / "model.safetensors"))
    after: Any = mx.load(str(tmp_path / "q4-float32" / "model.safetensors"))
    for name, array in before.items():
        assert mx.array_equal(array.astype(after[name].dtype), after[name]).item(), name


def test_a_form_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(_: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_form("float32", Form(fail, "", "", 1), tmp_path)
    assert not (tmp_path / "float32").exists()
    assert set(FORMS) >= {"float32", "bfloat16", "q4"}
