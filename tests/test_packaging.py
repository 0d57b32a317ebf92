"""The wheel holds what running needs and nothing else, and runs outside the clone."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mlx_gemma4

DEMO_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "model.safetensors",
)


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from a copy of what it is made of, with one Metal source added."""
    source = tmp_path_factory.mktemp("source")
    no_bytecode = shutil.ignore_patterns("__pycache__")
    for name in ("mlx_gemma4", "kernels", "convert", "tests", "benchmarks"):
        shutil.copytree(repository / name, source / name, ignore=no_bytecode)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    (source / "kernels" / "metal" / "probe.metal").write_text("// copied into the wheel\n")
    # setuptools is in the test tools, so that building needs no network.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> set[str]:
    """Return the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def unpacked_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the wheel is installed."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True, timeout=120)
    return target


def run_installed(
    target: Path, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed wheel first on its path, in a folder outside the clone."""
    variables = os.environ | {"PYTHONPATH": str(target)} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120
    )


def test_every_package_of_the_tree_is_listed(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [p.parent for p in (repository / "mlx_gemma4").rglob("__init__.py")]
    found = {".".join(folder.relative_to(repository).parts) for folder in folders}
    mapped = {name for name, folder in settings["package-dir"].items() if "/" in folder}
    assert sorted(found | mapped) == settings["packages"]


def test_wheel_has_every_source_of_the_package(repository: Path, wheel_names: set[str]) -> None:
    sources = {
        str(path.relative_to(repository)) for path in (repository / "mlx_gemma4").rglob("*.py")
    }
    assert sources <= wheel_names
    assert "mlx_gemma4/py.typed" in wheel_names


def test_wheel_has_the_metal_sources(repository: Path, wheel_names: set[str]) -> None:
    folder = repository / "kernels" / "metal"
    sources = [path.name for suffix in ("*.metal", "*.h") for path in folder.glob(suffix)]
    expected = {f"mlx_gemma4/kernels/metal/{name}" for name in [*sources, "probe.metal"]}
    assert expected <= wheel_names


def test_wheel_has_the_recipes_and_the_card(repository: Path, wheel_names: set[str]) -> None:
    recipes = {path.name for path in (repository / "convert" / "recipes").glob("*.toml")}
    assert recipes
    assert {f"mlx_gemma4/convert/recipes/{name}" for name in recipes} <= wheel_names
    assert "mlx_gemma4/convert/templates/model_card.md.jinja" in wheel_names
    assert not any(name.startswith("convert/") for name in wheel_names)


def test_wheel_has_the_demo_checkpoint(repository: Path, wheel_names: set[str]) -> None:
    assert {f"mlx_gemma4/demo/{name}" for name in DEMO_FILES} <= wheel_names
    samples = {
        str(path.relative_to(repository))
        for path in (repository / "mlx_gemma4" / "demo" / "samples").iterdir()
    }
    assert len(samples) >= 3
    assert samples <= wheel_names


def test_wheel_installs_one_import_name(wheel_names: set[str]) -> None:
    top = {name.partition("/")[0] for name in wheel_names}
    assert top == {"mlx_gemma4", f"mlx_gemma4-{mlx_gemma4.__version__}.dist-info"}


@pytest.mark.parametrize("name", ["kernels", "convert"])
def test_top_folders_are_not_import_names(name: str) -> None:
    # transformers looks for an installed `kernels`, and would find the folder of that name.
    assert importlib.util.find_spec(name) is None, (
        "the repository's root is on sys.path; run tests by `make test` or .venv/bin/pytest"
    )


def test_no_code_lies_in_the_data_folders(repository: Path) -> None:
    for name in ("kernels", "convert"):
        assert not list((repository / name).glob("*.py"))


def test_the_root_is_not_on_the_path(repository: Path) -> None:
    assert repository not in {Path(entry or os.getcwd()).resolve() for entry in sys.path}


def test_wheel_imports_from_where_it_is_installed(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.resources, mlx_gemma4\n"
        "print(mlx_gemma4.__file__)\n"
        "print(importlib.resources.files('mlx_gemma4.kernels.metal') / 'probe.metal')\n"
    )
    result = run_installed(unpacked_wheel, tmp_path, "-c", code)
    assert result.returncode == 0, result.stderr
    assert [Path(line).is_relative_to(unpacked_wheel) for line in result.stdout.split()] == [
        True
    ] * 2


def test_wheel_runs_the_demo(unpacked_wheel: Path, tmp_path: Path) -> None:
    result = run_installed(unpacked_wheel, tmp_path, "-m", "mlx_gemma4", "demo")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_demo_checkpoint_is_small(repository: Path) -> None:
    folder = repository / "mlx_gemma4" / "demo"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 16e6
