"""`--kv-bits auto`: what was chosen is said on stderr and stands in the document."""

import gc
import json
from pathlib import Path
from typing import Any

import demo_memory
import mlx.core as mx
import pytest

from mlx_gemma4 import api
from mlx_gemma4.cli import main
from mlx_gemma4.memory import MemoryLimit

MAX_TOKENS = 4
ASK = ["generate", "--model", "demo", "--temp", "0", "--max-tokens", str(MAX_TOKENS)]
PROMPT = f"Say the third word: red blue green. {'and ' * 4500}"


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine hold what such a prompt takes with 8 bits, and not with 16."""
    gc.collect()
    model, processor = api.load("demo", check_limits=False)
    context_bytes = demo_memory.between(len(processor(PROMPT)) + MAX_TOKENS)
    weights_bytes = max(model.nbytes, mx.get_active_memory())
    limit = MemoryLimit(weights_bytes + context_bytes, "this test can hold")
    monkeypatch.setattr(api, "machine_limit", lambda: limit)


def answer(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    assert main([*ASK, *options, "--json"]) == 0
    output, errors = capsys.readouterr()
    return json.loads(output), errors


@pytest.mark.usefixtures("between")
def test_it_is_chosen_for_each_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    chosen, errors = answer(capsys, PROMPT)
    assert chosen["kv_bits"] == 8
    assert "note: global layers keep int8 rows, since 16 bits do not fit; so it needs" in errors
    assert "; this test can hold 1" in errors
    asked, errors = answer(capsys, PROMPT, "--kv-bits", "8")
    assert (asked["kv_bits"], asked["tokens"]) == (8, chosen["tokens"])
    assert "int8" not in errors
    short, errors = answer(capsys, "Say this again: tiger lemon")
    assert short["kv_bits"] == 16
    assert "int8" not in errors


@pytest.mark.usefixtures("between")
@pytest.mark.parametrize("options", [["--kv-bits", "16"], ["--prompt-cache", "kept"]])
def test_16_bits_are_kept_to_where_they_are_asked_for_or_shared(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*ASK, PROMPT, *options]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert " --kv-bits 8 (" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "kept").exists()
