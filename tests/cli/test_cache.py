"""`mlx-gemma4 cache`: what is shown, what is removed, and what is asked before."""

import json
import struct
import sys

import numpy as np
import pytest
from parity_case_models import model_of
from parity_cases import CASES_BY_NAME
from prompt_parts import join, read, text

from mlx_gemma4.cli import cache, main
from mlx_gemma4.cli.app import app
from mlx_gemma4.prompt_cache.archive import open_archive
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint
from mlx_gemma4.prompt_cache.stops import Spacing
from mlx_gemma4.prompt_cache.store import PromptCacheStore

if "cache" not in [group.name for group in app.registered_groups]:
    app.add_typer(cache.app, name="cache")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of a folder's files, in which two prompts share a document of 60 tokens."""
    model = model_of(CASES_BY_NAME["image_decode"])
    folder = tmp_path_factory.mktemp("prompts")
    archive = open_archive(
        folder,
        Fingerprint.of(model, model.make_cache),
        model.make_cache,
        spacing=Spacing(30, 20, 10),
        model_name="google/gemma-4-12B-it",
    )
    store = PromptCacheStore(model.make_cache, spacing=Spacing(30, 20, 10), archive=archive)
    rng = np.random.default_rng(0)
    document = text(rng, 60)
    for count in (40, 45):
        reading = store.fetch(join(document, text(rng, count)))
        read(model, reading)
        store.insert(reading)
        store.save()
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(written, tmp_path):
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def test_prompts_are_listed(folder, capsys):
    assert main(["cache", "list", str(folder)]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert " ".join(lines[0].split()) == "tokens size last used model goes on from file"
    assert {line.split()[0] for line in lines[1:3]} == {"100", "105"}
    assert "google/gemma-4-12B-it" in lines[1]
    assert lines[-1].startswith("2 prompts, ")
    assert lines[-1].endswith(f" in all, in {folder}")
    assert shown.err == ""


def test_prompts_are_listed_as_json(folder, capsys):
    assert main(["cache", "list", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes"] == size_of(folder)
    assert sorted(prompt["tokens"] for prompt in document["prompts"]) == [100, 105]
    assert all(prompt["stops"][-1] == prompt["tokens"] for prompt in document["prompts"])
    assert len(document["files"]) == len(list(folder.iterdir()))


def test_a_damaged_file_is_shown_with_the_reason(folder, capsys):
    (folder / "broken.safetensors").write_bytes(b"no header")
    assert main(["cache", "list", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "2 prompts" in shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith(f"note: the prompt cache {folder}/broken.safetensors is refused: ")


def test_a_folder_that_is_empty(tmp_path, capsys):
    assert main(["cache", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"0 prompts, 0 bytes in all, in {tmp_path}\n"
    assert main(["cache", "prune", str(tmp_path), "--all"]) == 0
    assert capsys.readouterr().out == f"nothing to remove in {tmp_path}\n"


def test_without_a_path_it_is_the_programs_own_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLX_GEMMA4_CACHE", str(tmp_path))
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.endswith(f" in {tmp_path}/prompts\n")


@pytest.mark.parametrize("command", [["list"], ["prune", "--all"]])
def test_a_path_where_nothing_is(tmp_path, capsys, command):
    assert main(["cache", *command, str(tmp_path / "none")]) == 2
    assert "does not exist; allowed is a folder or file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["--all", "--budget", "1GB"], ["--unused-days", "1", "--all"]]
)
def test_one_thing_has_to_be_said(folder, capsys, arguments):
    assert main(["cache", "prune", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert "say what to remove, with one of --budget, --unused-days, and --all" in error


def test_pruned_to_a_budget(folder, written, capsys):
    budget = size_of(folder) * 3 // 4
    assert main(["cache", "prune", str(folder), "--budget", f"{budget / 1000:.3f}kB", "--yes"]) == 0
    assert 0 < size_of(folder) <= budget
    assert capsys.readouterr().out.startswith("removed ")
    assert main(["cache", "list", str(folder), "--json"]) == 0
    for prompt in json.loads(capsys.readouterr().out)["prompts"]:
        assert prompt["stops"]  # what is left can be used


def test_pruned_by_age(folder, capsys):
    assert main(["cache", "prune", str(folder), "--unused-days", "1", "--yes"]) == 0
    assert capsys.readouterr().out == f"nothing to remove in {folder}\n"
    assert main(["cache", "prune", str(folder), "--unused-days", "0", "--yes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["removed"]) >= 6
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("answer", "is_removed"), [("y", True), ("", False), ("no", False)])
def test_it_asks_first(folder, monkeypatch, capsys, answer, is_removed):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: answer)
    before = size_of(folder)
    count = len(list(folder.iterdir()))
    assert main(["cache", "prune", str(folder), "--all"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(f"remove {count} of {count} files, ")
    assert size_of(folder) == (0 if is_removed else before)
    assert ("nothing was removed" in shown.err) is not is_removed


def test_where_nobody_can_be_asked_nothing_is_removed(folder, capsys):
    before = size_of(folder)
    assert main(["cache", "prune", str(folder), "--all"]) == 2
    assert "Nobody is there to ask; give --yes" in capsys.readouterr().err
    assert size_of(folder) == before


def test_what_is_not_ours_is_not_removed(folder, capsys):
    others = {"notes.txt": b"mine", "model.safetensors": struct.pack("<Q", 2) + b"{}"}
    for name, content in others.items():
        (folder / name).write_bytes(content)
    assert main(["cache", "prune", str(folder), "--all", "--yes"]) == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == others


def test_what_is_damaged_goes_first(folder, capsys):
    total = size_of(folder)
    damaged = min(folder.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    budget = f"{(total - 10) / 1000:.3f}kB"
    assert main(["cache", "prune", str(folder), "--budget", budget, "--json", "-y"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"][0] == str(damaged)


def test_without_a_command_the_help_is_shown(capsys):
    assert main(["cache"]) == 2
    assert "prune" in capsys.readouterr().out
