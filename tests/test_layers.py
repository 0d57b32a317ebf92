"""The layers of ARCHITECTURE.md hold, and the check that says so can fail."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

LINT_IMPORTS = Path(sysconfig.get_path("scripts")) / "lint-imports"


def check_layers(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [LINT_IMPORTS, "--no-logo", "--no-cache", "--config", "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture
def copied_sources(repository: Path, tmp_path: Path) -> Path:
    """Return a folder with a copy of the package that may be broken."""
    only_python = shutil.ignore_patterns("__pycache__", "*.safetensors", "samples")
    shutil.copytree(repository / "mlx_gemma4", tmp_path / "mlx_gemma4", ignore=only_python)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


def test_layers_hold(copied_sources: Path) -> None:
    result = check_layers(copied_sources)
    assert result.returncode == 0, result.stdout


def test_an_import_from_above_is_caught(copied_sources: Path) -> None:
    with (copied_sources / "mlx_gemma4" / "errors.py").open("a") as file:
        file.write("\n\ndef climb():\n    import mlx_gemma4.generation\n")
    result = check_layers(copied_sources)
    assert result.returncode == 1
    assert "mlx_gemma4.errors is not allowed to import mlx_gemma4.generation" in result.stdout


def test_a_module_without_a_layer_is_caught(copied_sources: Path) -> None:
    (copied_sources / "mlx_gemma4" / "unplaced.py").write_text('"""Belongs nowhere."""\n')
    result = check_layers(copied_sources)
    assert result.returncode == 1
    assert "mlx_gemma4.unplaced" in result.stdout


@pytest.mark.parametrize("name", ["mlx_lm", "torch", "transformers"])
def test_another_runtime_is_caught(copied_sources: Path, name: str) -> None:
    with (copied_sources / "mlx_gemma4" / "errors.py").open("a") as file:
        file.write(f"\n\ndef borrow():\n    import {name}\n")
    result = check_layers(copied_sources)
    assert result.returncode == 1
    assert f"mlx_gemma4 is not allowed to import {name}" in result.stdout
