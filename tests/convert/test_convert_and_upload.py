"""convert/convert_and_upload.sh, with a stand-in for mlx-gemma4 that writes down its calls."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_gemma4.convert.recipe import read_recipe

# `convert` makes the folder; the call whose number is in $FAIL_AT fails; "damaged" never verifies.
STAND_IN = """#!/bin/sh
printf '%s|' "$@" >> "$CALLS"
printf '\\n' >> "$CALLS"
[ "$(wc -l < "$CALLS")" -ne "${FAIL_AT:-0}" ] || exit 7
case $1 in
convert) mkdir "$6" ;;
verify) [ ! -e "$2/damaged" ] ;;
esac
"""
SETS = ["q4", "q8", "mixed-4-8", "mxfp4", "nvfp4", "mxfp8"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, repository: Path) -> Run:
    """Return what runs the script in an empty folder."""
    program = tmp_path / "bin" / "mlx-gemma4"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (tmp_path / "work").mkdir()

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(repository / "convert" / "convert_and_upload.sh"), *arguments],
            cwd=tmp_path / "work",
            env={
                "PATH": f"{program.parent}:{os.environ['PATH']}",
                "CALLS": str(tmp_path / "calls"),
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=20,
        )

    return call


def calls(tmp_path: Path) -> list[list[str]]:
    """Return the calls since the last time, as lists of words."""
    file = tmp_path / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line.split("|")[:-1] for line in lines]


def test_the_set_one_after_the_other(run: Run, tmp_path: Path) -> None:
    result = run("google/gemma-4-12B-it", "me")
    assert result.returncode == 0, result.stderr
    expected = []
    for recipe in SETS:
        name = f"gemma-4-12b-it-{recipe}"
        expected += [
            ["convert", "google/gemma-4-12B-it", "--recipe", recipe, "--output", name],
            ["upload", name, "--repo", f"me/{name}"],
        ]
    assert calls(tmp_path) == expected
    assert "+ mlx-gemma4 upload gemma-4-12b-it-q8 --repo me/gemma-4-12b-it-q8\n" in result.stderr


def test_what_is_there_is_verified_and_not_converted_again(run: Run, tmp_path: Path) -> None:
    run("google/gemma-4-12B-it", "me", "q4")
    calls(tmp_path)
    assert run("google/gemma-4-12B-it", "me", "q4", "q8").returncode == 0
    assert [call[:2] for call in calls(tmp_path)] == [
        ["verify", "gemma-4-12b-it-q4"],
        ["upload", "gemma-4-12b-it-q4"],
        ["convert", "google/gemma-4-12B-it"],
        ["upload", "gemma-4-12b-it-q8"],
    ]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_it_stops_where_something_fails_and_goes_on_from_there(
    step: int, run: Run, tmp_path: Path
) -> None:
    failed = run("a/b", "me", "q4", "q8", FAIL_AT=str(step))
    assert failed.returncode == 7
    assert failed.stderr.endswith("stopped; the same command goes on from here\n")
    assert len(calls(tmp_path)) == step
    assert run("a/b", "me", "q4", "q8").returncode == 0
    again = calls(tmp_path)
    assert sum(call[0] == "convert" for call in again) == [2, 1, 1, 0][step - 1]
    assert [call[1] for call in again if call[0] == "upload"] == ["b-q4", "b-q8"]


def test_a_damaged_folder_is_neither_uploaded_nor_removed(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "b-q4"
    folder.mkdir()
    (folder / "damaged").write_text("")
    result = run("a/b", "me", "q4", "q8")
    assert result.returncode == 2
    assert "b-q4 is there and does not verify" in result.stderr
    assert calls(tmp_path) == [["verify", "b-q4"]]
    assert (folder / "damaged").exists()


def test_a_dry_run_runs_nothing(run: Run, tmp_path: Path) -> None:
    result = run("--dry-run", "--private", "--report", "a/B's model", "me", "/x y/mine.toml")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "== b-s-model-mine",
        "+ mlx-gemma4 convert 'a/B'\\''s model' --recipe '/x y/mine.toml' "
        "--output b-s-model-mine --report",
        "+ mlx-gemma4 upload b-s-model-mine --repo me/b-s-model-mine --private",
        "nothing was run",
    ]
    assert calls(tmp_path) == []
    assert list((tmp_path / "work").iterdir()) == []


def test_options_are_passed_on_and_words_stay_whole(run: Run, tmp_path: Path) -> None:
    assert run("--report", "--private", "./Für mich/", "me", "q4").returncode == 0
    assert calls(tmp_path) == [
        ["convert", "./Für mich/", "--recipe", "q4", "--output", "f-r-mich-q4", "--report"],
        ["upload", "f-r-mich-q4", "--repo", "me/f-r-mich-q4", "--private"],
    ]


def test_this_folder_is_called_by_its_name(run: Run, tmp_path: Path) -> None:
    assert run(".", "me", "q4").returncode == 0
    assert calls(tmp_path)[0][-1] == "work-q4"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: "),
        (["a/b"], "usage: "),
        (["--force", "a/b", "me"], "unknown option --force"),
        (["a/b", "me/you"], "USER is 'me/you'"),
        (["a/b", "me", "--dry-run"], "options come first"),
    ],
)
def test_a_wrong_call_is_explained(
    arguments: list[str], says: str, run: Run, tmp_path: Path
) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert calls(tmp_path) == []


def test_help_goes_to_stdout(run: Run) -> None:
    result = run("--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: convert_and_upload.sh")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(repository: Path) -> None:
    script = repository / "convert" / "convert_and_upload.sh"
    found = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert found.stdout == ""


def test_the_recipe_in_the_readme_is_one(repository: Path, tmp_path: Path) -> None:
    text = (repository / "convert" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    recipe = read_recipe(tmp_path / "mine.toml")
    assert len(recipe.rules) == text.count("[[modules]]\nmatch")
    assert all(rule.why for rule in recipe.rules)
