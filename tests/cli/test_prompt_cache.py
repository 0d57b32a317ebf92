"""`generate --prompt-cache`: less is read the second time, and it is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_gemma4.cli import main

ASK = ["generate", "--model", "demo", "--temp", "0", "Say this again: tiger lemon cloud plane"]


def answer(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    assert main([*ASK, *options, "--json"]) == 0
    output, errors = capsys.readouterr()
    return json.loads(output), errors


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
@pytest.mark.parametrize("kv", [[], ["--kv-bits", "8", "--kv-rows", "value"]], ids=["16", "8"])
def test_a_prompt_is_known_again(
    tmp_path: Path, name: str, kv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = ["--prompt-cache", str(tmp_path / name), *kv]
    plain, _ = answer(capsys, *kv)
    first, _ = answer(capsys, *path)
    second, errors = answer(capsys, *path)
    assert first["tokens"] == second["tokens"] == plain["tokens"]
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, plain["prompt_tokens"] - 1)
    assert f"({second['cached_tokens']} known)" in errors


def test_another_layout_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ["--prompt-cache", str(tmp_path / "kept.safetensors")]
    answer(capsys, *path)
    content = (tmp_path / "kept.safetensors").read_bytes()
    assert main([*ASK, *path, "--kv-bits", "8"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "kept in another layout" in errors
    assert errors.count("\n") == 1
    assert (tmp_path / "kept.safetensors").read_bytes() == content
