"""What the package exports, and which modules its commands import."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mlx_gemma4

# Each costs more at start-up than everything that is ours.
NEVER = {"torch", "transformers", "mlx_lm", "mlx_vlm", "scipy"}
# Imports one command and says which top-level modules were loaded by the end of it.
REPORT = """
import json, sys
from mlx_gemma4.cli import main
try:
    code = main()
finally:
    names = {name.partition(".")[0] for name, module in sys.modules.items() if module}
    with open(%r, "w") as file:
        json.dump(sorted(names), file)
sys.exit(code)
"""


def imported_by(report: Path, *arguments: str) -> set[str]:
    """Run a command line in its own process and return the top-level modules it imported."""
    code = REPORT % str(report)
    # CI is not passed on: rich looks at it to decide whether a terminal is there.
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(report.read_text()))


def test_all_is_the_namespace() -> None:
    exported = {name: getattr(mlx_gemma4, name) for name in mlx_gemma4.__all__}
    public = {
        name
        for name, value in vars(mlx_gemma4).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public <= set(exported)
    assert set(exported) <= set(dir(mlx_gemma4))


def test_exports_say_what_they_do() -> None:
    for name in mlx_gemma4.__all__:
        if not name.startswith("_"):
            assert getattr(mlx_gemma4, name).__doc__, name


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        mlx_gemma4.__getattr__("nothing_of_ours")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"]])
def test_help_imports_no_library_of_the_model(tmp_path: Path, arguments: list[str]) -> None:
    imported = imported_by(tmp_path / "modules.json", *arguments)
    assert not imported & (NEVER | {"mlx", "numpy", "PIL", "tokenizers", "huggingface_hub"})


def test_generate_imports_only_what_its_input_needs(tmp_path: Path) -> None:
    arguments = ["generate", "--model", "demo", "--max-tokens", "1", "Hi"]
    imported = imported_by(tmp_path / "modules.json", *arguments)
    assert "mlx" in imported
    unneeded = {"av", "soundfile", "soxr", "pillow_heif", "huggingface_hub", "matplotlib"}
    assert not imported & (NEVER | unneeded)
