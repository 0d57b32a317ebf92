"""The documents do not promise what is not there: commands parse, links resolve, names exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlx_gemma4

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *sorted(REPOSITORY.glob("*.md")),
    *(REPOSITORY / name / "README.md" for name in ("kernels", "convert", "benchmarks")),
]
IDS = [str(path.relative_to(REPOSITORY)) for path in DOCUMENTS]


def code_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a document's code blocks, continued lines joined."""
    is_fenced, pending = False, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            is_fenced = not is_fenced
        elif is_fenced or line.startswith("    "):
            pending += line.strip()
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            yield pending
            pending = ""


def commands_of(path: Path, program: str) -> list[str]:
    """Return the command lines of a program in a document, without what is piped into it."""
    found = []
    for line in code_lines(path):
        command = line.rpartition("| ")[2].partition("  #")[0]
        if command.split() and command.split()[0].rpartition("/")[2] == program:
            found.append(command.strip())
    return found


CLI_COMMANDS = [command for path in DOCUMENTS for command in commands_of(path, "mlx-gemma4")]


def parse_command(command: str) -> None:
    """Parse a command line as `mlx-gemma4` would, without running it."""
    import typer.main

    from mlx_gemma4.cli.app import app

    _, *arguments = shlex.split(command)
    root: Any = typer.main.get_command(app)
    context = root.make_context("mlx-gemma4", arguments)
    name, subcommand, rest = root.resolve_command(
        context, [*context._protected_args, *context.args]
    )
    subcommand.make_context(name, rest, parent=context)


def test_readme_shows_both_commands() -> None:
    shown = " ".join(commands_of(REPOSITORY / "README.md", "mlx-gemma4"))
    assert "mlx-gemma4 generate" in shown
    assert "mlx-gemma4 inspect" in shown


@pytest.mark.parametrize("command", CLI_COMMANDS)
def test_command_lines_parse(command: str) -> None:
    parse_command(command)


def test_a_wrong_option_would_be_seen() -> None:
    from typer.exceptions import TyperException

    with pytest.raises(TyperException, match="--no-such-option"):
        parse_command("mlx-gemma4 generate --no-such-option hello")


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_make_targets_exist(path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z.]+):", makefile, re.MULTILINE))
    named = {command.split()[1] for command in commands_of(path, "make")}
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_resolve(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_python_in_documents_uses_what_is_exported(path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "mlx_gemma4":
                assert {alias.name for alias in node.names} <= set(mlx_gemma4.__all__)


def test_scripts_in_documents_exist() -> None:
    for path in DOCUMENTS:
        for command in commands_of(path, "python"):
            scripts = [word for word in command.split() if word.endswith(".py")]
            assert all((REPOSITORY / script).is_file() for script in scripts), command


def test_architecture_has_every_module() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    tree = text.partition("## The tree")[2].partition("\n## ")[0]
    folder, listed = REPOSITORY, set()
    for line in tree.splitlines():
        if match := re.match(r"^ {4}(\w[\w/]*)/ ", line):
            folder = REPOSITORY / match.group(1)
        elif match := re.match(r"^ {6}(\w+\.py) ", line):
            listed.add(folder / match.group(1))
    package = REPOSITORY / "mlx_gemma4"
    modules = {path for path in package.rglob("*.py") if path.stat().st_size}
    packages = {path for path in modules if path.name == "__init__.py"}
    listed = {path for path in listed if path.is_relative_to(package)}
    assert sorted(modules - packages - listed) == [], "not in the tree"
    assert sorted(listed - modules) == [], "in the tree alone"


def test_changelog_has_this_version() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"\n## {mlx_gemma4.__version__}" in changelog
